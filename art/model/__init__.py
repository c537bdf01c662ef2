"""The ART model, the baseline that it is compared with, and the files of saved models."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art.model.art_model import ARTModel, ARTOutput

_LAZY_EXPORTS = ("ARTModel", "ARTOutput")

__all__ = ["ARTModel", "ARTOutput"]

# Files of a directory written by `VideoClassifier.save_pretrained`.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def find_checkpoint(path: Path) -> Path:
    """Return ``path`` if it is a checkpoint, or the last checkpoint if it is the directory of a run.

    Raises:
        FileNotFoundError: If it is neither.
    """
    for directory in (path, path / "checkpoints" / "last"):
        # Not recover(): a training run that is replacing the checkpoint must remain the only writer.
        for candidate in (directory, previous_directory(directory)):
            if (candidate / CONFIG_FILE).is_file():
                return candidate
    raise FileNotFoundError(f"checkpoint: no {CONFIG_FILE} in {path}, expected the directory of a checkpoint or a run")


def recover(directory: Path) -> None:
    """Restore the previous checkpoint if a crash interrupted the replacement of ``directory``."""
    previous = previous_directory(directory)
    if previous.exists() and not directory.exists():
        previous.rename(directory)


def previous_directory(directory: Path) -> Path:
    """Return where a checkpoint is kept while a new one replaces it."""
    return directory.parent / f".{directory.name}.previous"


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'art.model' has no attribute {name!r}")
    return getattr(importlib.import_module("art.model.art_model"), name)
