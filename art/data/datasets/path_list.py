"""Clips in lists of ``path label`` lines, as other trainers write and read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from art.data.datasets.annotations import VIDEO_SUFFIXES, class_index, read_lines, read_table, read_text, shown
from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import check_root, register_dataset
from art.data.datasets.user_classes import CLASSES, read_classes, read_mirror

_SUFFIXES = (".txt", ".csv", ".list")
_LINE = re.compile(r"(.*[^\s,])[\s,]+(-?\d+)")  # what comes before the last number; there may be spaces in it


def list_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_list` that are told from names: of train, val and test, those that have lists."""
    return tuple(split for split in ("train", "val", "test") if _lists_of(root, split))


@register_dataset("list", description="your own clips in lists of lines 'path label'", splits=list_splits)
def open_list(root: Path, split: str) -> ClipSet:
    """Clips listed in a file of ``path label`` lines, with spaces or a comma between the two.

    The file is ``root/<split>.txt`` (or ``.csv``, ``.list``), or the only one with the split among the words of its
    name, such as ``kinetics400_train_list_videos.txt``. A path is relative to the root or absolute, and may hold
    spaces; a label is a class index. The number of frames may stand between them: ``frames/182040 58 3``.

    Class names come from ``classes.txt`` (one a line), or else from the only table in the root with the header
    ``id,name``; without both they are the indices, 0 to the greatest of the lists of all splits.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: no list of this split or several, or a line that does not fit; the message gives file and line.
    """
    check_root(root)
    path = _list_of(root, split)
    lines = _read(path)
    names = read_classes(root) or _read_names(root) or _indices(root, path, lines)
    clips = []
    seen: dict[str, int] = {}
    for line in lines:
        where = f"{path}:{line.number}"
        if line.path in seen:
            raise ValueError(f"{where}: {line.path} is there already, in line {seen[line.path]}; remove one")
        seen[line.path] = line.number
        clips.append(Clip(root / _without_count(root, line.path), class_index(line.label, where, len(names))))
    return ClipSet("list", split, root, tuple(clips), names, mirror=read_mirror(root, names))


@dataclass(frozen=True)
class _Line:
    number: int
    path: str
    label: int


def _lists_of(root: Path, split: str) -> list[Path]:
    """The lists of a split: the one that is called as it, or else all that have it among the words of their names."""
    for path in (root / f"{split}{suffix}" for suffix in _SUFFIXES):
        if path.is_file():
            return [path]
    files = sorted(path for path in root.iterdir() if path.suffix in _SUFFIXES)
    return [path for path in files if split.lower() in re.split(r"[^a-z0-9]+", path.stem.lower())]


def _list_of(root: Path, split: str) -> Path:
    lists = _lists_of(root, split)
    if len(lists) == 1:
        return lists[0]
    found = ", ".join(path.name for path in lists) or "none"
    raise ValueError(
        f"{root}: lists of split {split!r}: {found}; expected {split}.txt, or one with {split!r} in its name"
    )


def _read(path: Path) -> list[_Line]:
    lines = []
    for number, text in read_lines(path):
        match = _LINE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{path}:{number}: is {shown(text)}; expected a path and a class index, such as 'clips/a.mp4 3' "
                "(tables with a header path,label are the data set 'csv')"
            )
        lines.append(_Line(number, match[1], int(match[2])))
    if not lines:
        raise ValueError(f"{path} is empty; expected lines such as 'clips/a.mp4 3'")
    return lines


def _without_count(root: Path, path: str) -> str:
    """``frames/182040`` of ``frames/182040 58``; a video, or what is there as it stands, is kept."""
    match = _LINE.fullmatch(path)
    if match is None or path.lower().endswith(VIDEO_SUFFIXES) or (root / path).exists():
        return path
    return match[1]


def _read_names(root: Path) -> tuple[str, ...] | None:
    """The classes of the table ``id,name``, None where there is none."""
    tables = [path for path in sorted(root.glob("*.csv")) if read_text(path).partition("\n")[0].strip() == "id,name"]
    if not tables:
        return None
    if len(tables) > 1:
        found = ", ".join(path.name for path in tables)
        raise ValueError(f"{root}: tables with the header id,name: {found}; expected one, or {CLASSES}")
    rows = read_table(tables[0], ("id", "name"))
    names: dict[int, str] = {}
    for number, values in rows:
        label = class_index(values["id"], f"{tables[0]}:{number}", len(rows))
        if label in names:
            raise ValueError(f"{tables[0]}:{number}: class {label} is there already, as {names[label]!r}; remove one")
        names[label] = values["name"]
    return tuple(names[label] for label in range(len(names)))


def _indices(root: Path, path: Path, lines: list[_Line]) -> tuple[str, ...]:
    """Class names where none are given: every split must agree on them, so all lists are read."""
    others = {other for split in list_splits(root) for other in _lists_of(root, split)} - {path}
    labels = [line.label for part in (lines, *map(_read, sorted(others))) for line in part]
    return tuple(str(label) for label in range(max(labels) + 1)) or ("0",)
