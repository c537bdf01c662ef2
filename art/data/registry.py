"""Data sets by name."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable
from pathlib import Path

from .clips import ClipSet

#: Reads one split: called with the root folder and the name of the split.
Opener = Callable[[Path, str], ClipSet]

_BUILT_IN = {"motion": "art.data.motion", "folder": "art.data.folder", "csv": "art.data.folder"}
_openers: dict[str, Opener] = {}


def register_dataset(name: str) -> Callable[[Opener], Opener]:
    """Decorator that makes a function ``(root, split) -> ClipSet`` available to :func:`open_dataset` as ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def register(opener: Opener) -> Opener:
        other = _openers.get(name)
        same = other is not None and (other.__module__, other.__qualname__) == (opener.__module__, opener.__qualname__)
        if not same and (other is not None or _BUILT_IN.get(name, opener.__module__) != opener.__module__):
            raise ValueError(
                f"name {name!r} is taken by another data set; register {opener.__qualname__} as something else"
            )
        _openers[name] = opener
        return opener

    return register


def dataset_names() -> tuple[str, ...]:
    """The names that :func:`open_dataset` knows, sorted."""
    return tuple(sorted({*_BUILT_IN, *_openers}))


def open_dataset(name: str, root: str | os.PathLike[str], split: str) -> ClipSet:
    """The clips of one split of a data set. No video is opened.

    Args:
        name: "motion", "folder", "csv", or what was registered with :func:`register_dataset`.
        root: the folder that holds the data set.
        split: "train", "test", …

    Raises:
        ValueError: an unknown name or split, or contents that do not fit together; the message says where.
        FileNotFoundError: ``root`` does not hold the data set.
    """
    if name not in _openers and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    if name not in _openers:
        raise ValueError(f"data set {name!r} is unknown{nearest(name, dataset_names())}")
    return _openers[name](Path(root), split)


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """The end of a sentence about an unknown word: what was probably meant, or else what there is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def check_root(root: Path) -> None:
    """Raise FileNotFoundError unless ``root`` is a folder."""
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is {'no folder' if root.exists() else 'not there'}")
