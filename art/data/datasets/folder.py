"""A user's own clips: a folder for each class."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from art.data.datasets.annotations import FRAME_SUFFIXES, VIDEO_SUFFIXES
from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import check_root, nearest, register_dataset
from art.data.datasets.user_classes import CLASSES, read_classes, read_mirror

_log = logging.getLogger(__name__)


def folder_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_folder`: the folders in ``root`` that are not hidden, sorted."""
    return tuple(_folders(root))


@register_dataset("folder", description="your own clips, a folder for each class", splits=folder_splits)
def open_folder(root: Path, split: str) -> ClipSet:
    """Clips at ``root/<split>/<class name>/<clip>.{mp4,avi,webm,mkv,mov}``, or a folder of frames in place of a file:
    ``root/<split>/<class name>/<clip>/00001.jpg``.

    Without ``classes.txt`` the classes are the sorted names of the class folders of all splits together, so that every
    split agrees on the indices. Underscores of class names are spaces in the prompts.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: no such split, a class folder that is no class, folders among the clips that hold no frames, or
            no clips.
    """
    check_root(root)
    splits = _folders(root)
    if split not in splits:
        listed = ", ".join(splits) or "none"
        raise ValueError(f"{root} has no split {split!r}: there are {listed}; expected {root}/{split}/<class>/<clip>")
    found = _folders(root / split)
    names = read_classes(root) or tuple(sorted({name for other in splits for name in _folders(root / other)}))
    index = {name: i for i, name in enumerate(names)}
    clips: list[Clip] = []
    others: list[Path] = []
    for name in found:
        folder = root / split / name
        if name not in index:
            raise ValueError(f"{folder}: {name!r} is not in {root / CLASSES}{nearest(name, names)}")
        videos, rest = _list_class(folder)
        clips += [Clip(folder / video, index[name]) for video in videos]
        others += [folder / other for other in rest]
    if not clips:
        raise ValueError(
            f"{root / split} has no clips in its {len(found)} class folders and {len(others)} other files; expected "
            f"{root / split}/<class>/<clip> ending in {', '.join(VIDEO_SUFFIXES)}, or folders of frames"
        )
    if others:
        _log.warning(
            "%d files below %s are no videos and are left out, such as %s", len(others), root / split, others[0]
        )
    prompts = tuple(name.replace("_", " ") for name in names)
    return ClipSet("folder", split, root, tuple(clips), names, prompts, read_mirror(root, names))


def _list_class(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the clips in a class folder, and of its other files, each sorted.

    One listing, however many clips there are: only the first of the folders in it is looked into, which tells frames
    from a level too much; another one without frames is a clip that cannot be read.
    """
    videos, frames, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(VIDEO_SUFFIXES):
                videos.append(entry.name)
            elif entry.is_dir():
                frames.append(entry.name)
            else:
                others.append(entry.name)
    if frames and not _holds_frames(folder / min(frames)):
        raise ValueError(
            f"{folder / min(frames)} is a folder without frames ({', '.join(FRAME_SUFFIXES)}); expected video files "
            f"({', '.join(VIDEO_SUFFIXES)}) or folders of frames"
        )
    return sorted(videos + frames), sorted(others)


def _holds_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(FRAME_SUFFIXES) for entry in entries)


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
