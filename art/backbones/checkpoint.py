"""Published checkpoints: read from a file as names and tensors, loaded by name, nothing skipped in silence."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

# Where training scripts put the parameters in what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
_LISTED = 20


def read_checkpoint(path: str | os.PathLike[str], *, prefixes: Sequence[str] = ()) -> dict[str, Tensor]:
    """The parameters and buffers in a checkpoint file, on the CPU, by name.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, or a dict with one in it under
            "state_dict", "model_state_dict", "model_state" or "model". Only tensors and plain containers are unpickled.
        prefixes: taken off the front of each name where they are, in this order: what a wrapper adds ("module.").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state dict, or more than ``torch.load(weights_only=True)`` reads; or two of its
            names are the same without their prefixes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"pretrained is {str(path)!r}: there is no such file; expected the path of a checkpoint"
        )
    state: dict[str, Tensor] = {}
    for name, tensor in _tensors(path).items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name in state:
            raise ValueError(
                f"{path} holds {name!r} twice, with and without a prefix ({', '.join(prefixes)}); save one of the two"
            )
        state[name] = tensor
    return state


def load_by_name(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | os.PathLike[str],
    fits: str,
    may_lack: Collection[str] = (),
) -> list[str]:
    """Copy ``state`` into ``module``: every name of one is a name of the other, and shapes are equal.

    A batch normalisation's ``num_batches_tracked`` may be missing, as in checkpoints from before PyTorch 0.4.1: no
    result depends on it where the momentum is a number.

    Args:
        module: what to fill.
        state: names and tensors; dtypes are converted.
        source: the file, for the error.
        fits: what would fit, for the error.
        may_lack: names that ``state`` may lack; they keep their values.

    Returns:
        The names of ``may_lack`` that ``state`` lacked, in the module's order.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ: all that do not fit, in one error, and nothing is
            loaded.
    """
    own = module.state_dict()
    lacking = [name for name in own if name not in state]
    faults = {
        "missing": [n for n in lacking if n not in may_lack and not n.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        found = [f"  {len(names)} {what}: {_listed(names)}" for what, names in faults.items() if names]
        raise ValueError("\n".join([f"{source} does not fit:", *found, f"  What would fit: {fits}"]))
    module.load_state_dict(dict(state), strict=False)
    return [name for name in lacking if name in may_lack]


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
    saved = _unpickled(path)
    inner = [saved[key] for key in _WRAPPERS if key in saved] if isinstance(saved, Mapping) else []
    for state in (saved, *inner):
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return dict(state)
    keys = f" with the keys {_listed([str(key) for key in saved])}" if isinstance(saved, Mapping) else ""
    raise ValueError(
        f"{path} holds a {type(saved).__name__}{keys}; expected names and tensors, by themselves or under one of "
        f"{', '.join(_WRAPPERS)}"
    )


def _unpickled(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint end the unpickling with any error at all
        raise ValueError(
            f"{path} cannot be read as tensors alone, and nothing else is unpickled, because that may run any code; "
            "where the file is trusted, save its state dict by itself with torch.save. The reason: "
            f"{type(error).__name__}: {(str(error) or 'the file ends too soon').splitlines()[0]}"
        ) from error


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown}, and {len(names) - _LISTED} more"
