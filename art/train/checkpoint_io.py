"""Reading and verifying the files of a checkpoint. Nothing in them is executed.

``SHA256SUMS`` lists the SHA-256 digest of every file of a checkpoint in the format of ``sha256sum``, so that
``sha256sum --check SHA256SUMS`` in the directory verifies it too. Checkpoints of earlier versions do not have it.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from art.data.files import file_sha256
from art.terminal import one_line
from art.train.distributed import DistContext, is_connection_error

#: File of a checkpoint with the training state other than tensors, next to ``config.json`` and ``model.safetensors``.
TRAINING_STATE = "training_state.pt"
#: Directory of a checkpoint with the tensors of the training state, written by all ranks.
TENSORS = "training_state"
#: File in that directory with the names, shapes and places of the tensors.
METADATA = ".metadata"
#: File of a checkpoint with the checksums of the others.
CHECKSUMS = "SHA256SUMS"

SINGLE = DistContext(torch.device("cpu"))


class CheckpointError(ValueError):
    """A directory without a valid checkpoint."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing, cannot be read, or differs from its checksum."""


def write_checksums(directory: Path) -> None:
    """Write ``SHA256SUMS`` for all files of a checkpoint."""
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    lines = [f"{file_sha256(directory / name)}  {name}\n" for name in names if name != CHECKSUMS]
    (directory / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def verify_checkpoint(directory: Path) -> dict[str, Any]:
    """Check every file of a checkpoint and return its training state, see :func:`load_training_state`.

    Files without a checksum (all files of a checkpoint of an earlier version) are only checked for readable values.

    Raises:
        DamagedCheckpoint: a file is missing or damaged; the message names it.
        CheckpointError: the directory has no training state.
    """
    for name, expected in _read_checksums(directory).items():
        path = directory / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: is missing, but {CHECKSUMS} lists it; the checkpoint is damaged")
        if file_sha256(path) != expected:
            raise DamagedCheckpoint(f"{path}: does not match its checksum in {CHECKSUMS}; the file is damaged")
    state = load_training_state(directory)
    _check_sizes(directory / TENSORS)
    return state


def _read_checksums(directory: Path) -> dict[str, str]:
    """Return the digest of each file by name; empty for a checkpoint without checksums."""
    path = directory / CHECKSUMS
    if not path.exists():
        return {}
    matches = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in path.read_text("utf-8", "replace").splitlines()]
    found = {match[2]: match[1] for match in matches if match is not None}
    required = [TRAINING_STATE, *(f"{TENSORS}/{file.name}" for file in (directory / TENSORS).glob("*"))]
    if None in matches or any(name not in found for name in required):
        raise DamagedCheckpoint(f"{path}: is damaged; expected a digest and a name per line for every file")
    return found


def load_training_state(directory: Path) -> dict[str, Any]:
    """Load the ``values`` of :meth:`CheckpointWriter.save` to the CPU.

    Raises:
        CheckpointError: the directory has no training state, or it cannot be read.
    """
    path = directory / TRAINING_STATE
    if not path.is_file():
        raise CheckpointError(f"{directory}: no {TRAINING_STATE}, so there is nothing to resume; omit --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedCheckpoint(f"{path}: cannot be read as a training state ({one_line(error)})") from error
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"{path}: contains a {type(state).__name__}, expected a dict of the training state")
    return state


def saved_tensors(directory: Path) -> dict[str, torch.Size]:
    """Return the names and shapes of the tensors of a checkpoint's training state.

    Raises:
        CheckpointError: they cannot be read.
    """
    path = directory / TENSORS
    with convert_errors(DamagedCheckpoint, f"{path / METADATA}: is damaged", (AttributeError, TypeError)):
        entries = _Reader(path).read_metadata().state_dict_metadata
        return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _check_sizes(tensors: Path) -> None:
    """Raise DamagedCheckpoint if a file with tensors is missing or too short."""
    with convert_errors(DamagedCheckpoint, f"{tensors / METADATA}: is damaged", (AttributeError, TypeError)):
        for part in (_Reader(tensors).read_metadata().storage_data or {}).values():
            path, end = tensors / part.relative_path, part.offset + part.length
            size = path.stat().st_size if path.is_file() else 0
            if size < end:
                raise DamagedCheckpoint(f"{path}: has {size} bytes, expected at least {end}; the file is damaged")


def load_tensors(directory: Path, tensors: Mapping[str, Tensor], dist_ctx: DistContext = SINGLE) -> None:
    """Load saved tensors into ``tensors``, in place, with any sharding. A collective operation.

    Raises:
        CheckpointError: a tensor is missing, has a different shape, or cannot be read.
    """
    # Values that are damaged, in a checkpoint without checksums, can raise any exception.
    with convert_errors(CheckpointError, f"{directory / TENSORS}: cannot be read", (Exception,)):
        dcp.load(
            dict(tensors),
            storage_reader=_Reader(directory / TENSORS),
            process_group=dist_ctx.control,
            no_dist=not dist_ctx.is_distributed,
        )


class _Reader(dcp.FileSystemReader):
    """Reads saved tensors without executing code in the file: PyTorch unpickles the metadata without restrictions."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
        try:
            metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        except Exception as error:
            raise DamagedCheckpoint(f"{path}: cannot be read as tensors ({one_line(error)})") from error
        if not isinstance(metadata, Metadata):
            raise DamagedCheckpoint(f"{path}: contains a {type(metadata).__name__}, expected checkpoint metadata")
        if metadata.storage_meta is None:
            metadata.storage_meta = dcp_metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Creates only the types that checkpoint metadata consists of."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch", "Size"): torch.Size,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
        **{(f"pathlib{part}", f"{kind}Path"): PurePath for part in ("", "._local") for kind in ("Posix", "Windows")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return self._ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == dcp_metadata.__name__ and isinstance(found := getattr(dcp_metadata, name, None), type):
            return found
        if (module, name) == ("torch.distributed.checkpoint.filesystem", "_StorageInfo"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in checkpoint metadata")


@contextmanager
def convert_errors(to: type[Exception], message: str, others: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Convert PyTorch's CheckpointException (a BaseException) and ``others``, and hide a warning without a group."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise to(f"{message} (rank {rank}: {one_line(cause)})") from error
    except others as error:
        if is_connection_error(error):
            raise
        raise to(f"{message} ({one_line(error)})") from error
