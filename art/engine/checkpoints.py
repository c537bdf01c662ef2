"""Checkpoints that are whole or absent: a new one is written beside the old one, and then takes its place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch

TRAINING_STATE = "training_state.pt"


class CheckpointError(ValueError):
    """A folder that does not hold the checkpoint it should."""


class Saveable(Protocol):
    """A model that writes ``config.json`` and ``model.safetensors`` into a folder."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes the model."""


def save_checkpoint(folder: Path, model: Saveable, state: dict[str, Any]) -> None:
    """Writes the model and ``training_state.pt`` so that a crash at any moment leaves the former checkpoint readable.

    Args:
        folder: replaced as a whole.
        model: anything with ``save_pretrained``.
        state: tensors and plain containers only, because it is read back with ``weights_only=True``.
    """
    recover(folder)
    incoming = _incoming(folder)
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    model.save_pretrained(incoming)
    torch.save(state, incoming / TRAINING_STATE)
    _replace(folder, incoming)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint, with the same guarantee for ``target``."""
    recover(target)
    incoming = _incoming(target)
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(source, incoming)
    _replace(target, incoming)


def load_training_state(folder: Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` got as ``state``, onto the CPU.

    Raises:
        CheckpointError: if there is no training state in the folder, or it cannot be read.
    """
    recover(folder)
    path = folder / TRAINING_STATE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {TRAINING_STATE} there, so there is nothing to resume; train without --resume"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as a training state ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a dict of the training state")
    return state


def recover(folder: Path) -> None:
    """Puts the former checkpoint back if a crash came between the two renames of a save."""
    previous = _previous(folder)
    if previous.exists() and not folder.exists():
        previous.rename(folder)


def _incoming(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.incoming")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _replace(folder: Path, incoming: Path) -> None:
    for path in incoming.iterdir():
        _flush(path)
    _flush(incoming)
    previous = _previous(folder)
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():  # a folder that is not empty cannot be renamed over; recover() covers the moment in between
        folder.rename(previous)
    incoming.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _flush(path: Path) -> None:
    """Waits until a file's (or, where the system allows it, a folder's) content is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
