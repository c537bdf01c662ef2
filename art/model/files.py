"""The files of a saved model, ``config.json`` and ``model.safetensors``, and their checksums.

``config.json`` has the key "sha256" with the SHA-256 digest of each of the two files: that of ``model.safetensors`` is
the digest of the file, that of ``config.json`` of its other content as canonical JSON, so that reformatting is not an
error. Files of earlier versions have no such key and are not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from art.data.files import DamagedFile, file_sha256, naming_file, read_json_mapping
from art.model import CONFIG_FILE, WEIGHTS_FILE
from art.terminal import list_names

_KEY = "sha256"


class NonFiniteError(ValueError):
    """The weights or the outputs of a model are NaN or infinite."""


def state_sha256(module: nn.Module) -> str:
    """Return the SHA-256 digest of the state dict of a module: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_config(path: Path, config: Mapping[str, Any], weights_sha256: str | None = None) -> None:
    """Write ``config.json`` with checksums.

    Args:
        path: the file.
        config: its content. An existing checksum of the weights is kept.
        weights_sha256: digest of ``model.safetensors``, if it is new.
    """
    checksums = {name: value for name, value in config.get(_KEY, {}).items() if name != CONFIG_FILE}
    if weights_sha256 is not None:
        checksums[WEIGHTS_FILE] = weights_sha256
    content = json.loads(json.dumps({**config, _KEY: checksums}))  # as it will be read: tuples become lists
    content[_KEY] = {**checksums, CONFIG_FILE: _content_sha256(content)}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A class name from a directory that is not UTF-8 has lone surrogates, which JSON can escape.
    with naming_file(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of ``config.json``, with the weights' checksum, if any, under "sha256".

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedFile: If it cannot be read or differs from its checksum.
    """
    path = _existing(directory / CONFIG_FILE)
    config = read_json_mapping(path)
    if _KEY not in config:
        return config
    checksums = config[_KEY]
    if not isinstance(checksums, dict) or checksums.pop(CONFIG_FILE, None) != _content_sha256(config):
        raise DamagedFile(
            f"{path}: does not match its checksum: the file is damaged or was edited; restore it, or remove the key "
            f'"{_KEY}" from it if the change is intended'
        )
    return config


def read_weights(directory: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of ``model.safetensors`` on the CPU, checked against the result of :func:`read_config`.

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedFile: If it cannot be read or differs from its checksum.
    """
    path = _existing(directory / WEIGHTS_FILE)
    expected = config.get(_KEY, {}).get(WEIGHTS_FILE)
    if expected is not None and file_sha256(path) != expected:
        raise DamagedFile(
            f"{path}: does not match its checksum in {CONFIG_FILE}: the file is damaged or incomplete, or belongs to "
            "another checkpoint; copy it again, or use another checkpoint"
        )
    try:
        return load_file(path)
    except Exception as error:  # invalid bytes can raise any exception
        raise DamagedFile(f"{path}: cannot be read as safetensors ({error}); the file is damaged") from error


def check_finite(model: nn.Module, source: Path) -> None:
    """Raise :class:`NonFiniteError` if weights of ``model``, loaded from ``source``, are NaN or infinite."""
    if names := non_finite_names(model.named_parameters(), model.named_buffers()):
        raise NonFiniteError(
            f"{source}: the weights are not finite ({list_names(names)}): the training that saved them diverged; use "
            "an earlier checkpoint, or train again with a smaller learning rate"
        )


def non_finite_names(parameters: Iterable[tuple[str, Tensor]], buffers: Iterable[tuple[str, Tensor]] = ()) -> list[str]:
    """Return the names of tensors with values that are NaN or infinite. Buffers may contain -inf (attention masks)."""
    found = [name for name, value in parameters if value.is_floating_point() and not value.isfinite().all()]
    for name, value in buffers:
        if value.is_floating_point() and value.numel() and not value.amax().isfinite():
            found.append(name)
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a directory written by save_pretrained")
    return path


def _content_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
