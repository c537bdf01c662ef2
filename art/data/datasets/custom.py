"""Custom datasets in three layouts: class directories ("folder"), CSV tables ("csv"), and path lists ("list").

Two optional files in the root describe the classes. ``classes.txt`` lists the class names in the order of their
indices, one per line. ``mirror.csv`` with the header ``class,mirror`` enables horizontal flips in training: each row
names a class and the class of its flipped clips. Classes without a row keep their class, so a table without rows
enables flips that change no label.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from art.data.datasets.annotations import (
    FRAME_SUFFIXES,
    VIDEO_SUFFIXES,
    class_index,
    read_lines,
    read_table,
    read_text,
    short_repr,
)
from art.data.datasets.base import Clip, ClipSet, check_root, register_dataset, suggest

CLASSES, MIRROR = "classes.txt", "mirror.csv"
_LIST_SUFFIXES = (".txt", ".csv", ".list")
_LIST_LINE = re.compile(r"(.*[^\s,])[\s,]+(-?\d+)")  # a path, which may contain spaces, and a final number
_log = logging.getLogger(__name__)


def read_classes(root: Path) -> tuple[str, ...] | None:
    """The class names in ``root/classes.txt``, or None if there is no such file."""
    path = root / CLASSES
    if not path.exists():
        return None
    lines: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, read_text(path).rstrip().splitlines()), start=1):
        if not line:
            raise ValueError(f"{path}:{number}: blank line; expected one class name per line")
        if lines.setdefault(line, number) != number:
            raise ValueError(f"{path}:{number}: class {line!r} is already listed in line {lines[line]}")
    if not lines:
        raise ValueError(f"{path} is empty; expected one class name per line")
    return tuple(lines)


def read_mirror(root: Path, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The mirrored class of each class from ``root/mirror.csv``, or None if there is no such file."""
    path = root / MIRROR
    if not path.exists():
        return None
    mirror = list(range(len(class_names)))
    index = {name: i for i, name in enumerate(class_names)}
    for line, values in read_table(path, ("class", "mirror")):
        for name in (values["class"], values["mirror"]):
            if name not in index:
                raise ValueError(f"{path}:{line}: unknown class {name!r}{suggest(name, class_names)}")
        first, second = index[values["class"]], index[values["mirror"]]
        mirror[first], mirror[second] = second, first
    return tuple(mirror)


# Class directories: "folder"


def directory_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_directory`: the directories in ``root`` that are not hidden, sorted."""
    return tuple(_subdirectories(root))


@register_dataset("folder", description="your own clips, one directory per class", splits=directory_splits)
def open_directory(root: Path, split: str) -> ClipSet:
    """Open ``root/<split>/<class>/<clip>.{mp4,avi,webm,mkv,mov}``, or directories of frames instead of video files:
    ``root/<split>/<class>/<clip>/00001.jpg``.

    Without ``classes.txt``, the classes are the sorted names of the class directories of all splits, so that all splits
    use the same indices. Prompts are class names with underscores replaced by spaces.
    """
    check_root(root)
    splits = _subdirectories(root)
    if split not in splits:
        listed = ", ".join(splits) or "none"
        raise ValueError(f"{root} has no split {split!r}; found: {listed}; expected {root}/{split}/<class>/<clip>")
    directories = _subdirectories(root / split)
    names = read_classes(root) or tuple(sorted({name for other in splits for name in _subdirectories(root / other)}))
    index = {name: i for i, name in enumerate(names)}
    clips: list[Clip] = []
    skipped: list[Path] = []
    for name in directories:
        directory = root / split / name
        if name not in index:
            raise ValueError(f"{directory}: {name!r} is not in {root / CLASSES}{suggest(name, names)}")
        videos, others = _list_class(directory)
        clips += [Clip(directory / video, index[name]) for video in videos]
        skipped += [directory / other for other in others]
    if not clips:
        raise ValueError(
            f"{root / split} has no clips in {len(directories)} class directories ({len(skipped)} other files); "
            f"expected {root / split}/<class>/<clip> ending in {', '.join(VIDEO_SUFFIXES)}, or directories of frames"
        )
    if skipped:
        _log.warning("skipping %d files in %s that are not videos, such as %s", len(skipped), root / split, skipped[0])
    prompts = tuple(name.replace("_", " ") for name in names)
    return ClipSet("folder", split, root, tuple(clips), names, prompts, read_mirror(root, names))


def _list_class(directory: Path) -> tuple[list[str], list[str]]:
    """The sorted names of the clips in a class directory, and of its other files.

    The directory is listed once, independent of the number of clips. Only its first subdirectory is opened, to detect
    an extra directory level; any other one without frames is a clip that cannot be read.
    """
    videos, frames, others = [], [], []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(VIDEO_SUFFIXES):
                videos.append(entry.name)
            elif entry.is_dir():
                frames.append(entry.name)
            else:
                others.append(entry.name)
    if frames:
        first = directory / min(frames)
        with os.scandir(first) as entries:
            has_frames = any(entry.name.lower().endswith(FRAME_SUFFIXES) for entry in entries)
        if not has_frames:
            raise ValueError(
                f"{first} is a directory without frames ({', '.join(FRAME_SUFFIXES)}); expected video files "
                f"({', '.join(VIDEO_SUFFIXES)}) or directories of frames"
            )
    return sorted(videos + frames), sorted(others)


def _subdirectories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


# Tables: "csv"


class _Row(NamedTuple):
    where: str
    line: int
    path: str
    label: str
    start: float | None
    end: float | None


def table_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_csv`: the tables in ``root`` with the columns ``path`` and ``label``, sorted."""
    return tuple(name for name, path in _tables(root).items() if _lists_clips(path))


@register_dataset("csv", description="your own clips in tables path,label", splits=table_splits)
def open_csv(root: Path, split: str) -> ClipSet:
    """Open the clips in ``root/<split>.csv``, a table with the header ``path,label``.

    Paths are absolute or relative to the root; labels are class names or class indices. The optional columns
    ``time_start`` and ``time_end`` (seconds) select a part of the file; an empty value is the beginning or the end.
    Other columns are ignored. Without ``classes.txt``, the classes are the sorted labels of all tables with this
    header in the root, or, if all labels are integers, 0 to the largest.
    """
    check_root(root)
    names = read_classes(root)
    tables = _tables(root)
    if split not in tables:
        listed = ", ".join(tables) or "none"
        raise ValueError(f"{root} has no split {split!r}; found: {listed}; expected {root}/{split}.csv")
    if names is None:
        lists = [path for path in tables.values() if path == tables[split] or _lists_clips(path)]
        names = _classes_of([row for path in lists for row in _read_rows(path)])
    return ClipSet(
        "csv", split, root, clips_of_table(tables[split], root, names), names, mirror=read_mirror(root, names)
    )


def clips_of_table(table: Path, root: Path, class_names: Sequence[str]) -> tuple[Clip, ...]:
    """Read the clips of one ``path,label`` table, as in :func:`open_csv`."""
    clips: list[Clip] = []
    lines: dict[tuple[Path, float | None, float | None], int] = {}
    index = {name: i for i, name in enumerate(class_names)}
    for row in _read_rows(table):
        if row.label in index:
            label = index[row.label]
        elif row.label.isascii() and row.label.isdigit() and int(row.label) < len(class_names):
            label = int(row.label)
        elif row.label.lstrip("-").isdigit():
            raise ValueError(f"{row.where}: label {row.label} is out of range, expected 0 to {len(class_names) - 1}")
        else:
            raise ValueError(f"{row.where}: unknown class {row.label!r}{suggest(row.label, class_names)}")
        key = (root / row.path, row.start, row.end)
        if key in lines:
            raise ValueError(f"{row.where}: clip {row.path} is already listed in line {lines[key]}; remove one")
        lines[key] = row.line
        clips.append(Clip(key[0], label, row.start, row.end))
    if not clips:
        raise ValueError(f"{table} lists no clips; expected rows 'path,label' below the header")
    return tuple(clips)


def time_span(values: Mapping[str, str], where: str) -> tuple[float | None, float | None]:
    """Parse the columns ``time_start`` and ``time_end`` of a table row, in seconds; None if empty or absent. Errors
    begin with ``where``, the file and line."""
    start, end = (_seconds(values.get(column, ""), f"{where}: {column}") for column in ("time_start", "time_end"))
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise ValueError(f"{where}: the clip from {start} s to {end} s has no duration; expected 0 <= start < end")
    return start, end


def _seconds(value: str, where: str) -> float | None:
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{where} is {value!r}; expected seconds, such as 12.5, or an empty value") from None


def _tables(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(root.glob("*.csv")) if path.name != MIRROR}


def _lists_clips(table: Path) -> bool:
    header = next(iter(read_text(table).splitlines()), "")
    return {"path", "label"} <= {name.strip() for name in header.split(",")}


def _read_rows(table: Path) -> list[_Row]:
    rows = []
    for line, values in read_table(table, ("path", "label")):
        where = f"{table}:{line}"
        for column in ("path", "label"):
            if not values[column]:
                raise ValueError(f"{where}: {column} is empty")
        rows.append(_Row(where, line, values["path"], values["label"], *time_span(values, where)))
    return rows


def _classes_of(rows: Sequence[_Row]) -> tuple[str, ...]:
    numbers = [row for row in rows if row.label.isascii() and row.label.isdigit()]
    if numbers and len(numbers) < len(rows):
        named = next(row for row in rows if not (row.label.isascii() and row.label.isdigit()))
        raise ValueError(
            f"{numbers[0].where}: label {numbers[0].label} is an index, but {named.where} has the name "
            f"{named.label!r}; use one kind of label, or add {CLASSES} to the directory of the tables"
        )
    if numbers:
        return tuple(str(i) for i in range(max(int(row.label) for row in numbers) + 1))
    return tuple(sorted({row.label for row in rows}))


# Path lists: "list"


def list_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_list`: those of train, val and test for which there is a list."""
    return tuple(split for split in ("train", "val", "test") if _find_lists(root, split))


@register_dataset("list", description="your own clips in lists of lines 'path label'", splits=list_splits)
def open_list(root: Path, split: str) -> ClipSet:
    """Open the clips in a file of ``path label`` lines, separated by spaces or a comma, as used by other trainers.

    The file is ``root/<split>.txt`` (or ``.csv``, ``.list``), or else the only one with the split as a word of its
    name, such as ``kinetics400_train_list_videos.txt``. Paths are absolute or relative to the root and may contain
    spaces; labels are class indices. The number of frames may precede the label: ``frames/182040 58 3``.

    Class names come from ``classes.txt`` (one per line), or else from the only table in the root with the header
    ``id,name``. Without either they are the indices, 0 to the largest in the lists of all splits.
    """
    check_root(root)
    lists = _find_lists(root, split)
    if len(lists) != 1:
        found = ", ".join(path.name for path in lists) or "none"
        raise ValueError(
            f"{root}: lists of split {split!r}: {found}; expected {split}.txt, or one file with {split!r} in its name"
        )
    lines = _read_list(lists[0])
    names = read_classes(root) or _read_id_names(root)
    if names is None:  # all splits must use the same classes, so all lists are read
        others = {other for name in list_splits(root) for other in _find_lists(root, name)} - {lists[0]}
        labels = [label for part in (lines, *map(_read_list, sorted(others))) for _, _, label in part]
        names = tuple(str(label) for label in range(max(labels) + 1)) or ("0",)
    clips = []
    seen: dict[str, int] = {}
    for number, path, label in lines:
        where = f"{lists[0]}:{number}"
        if path in seen:
            raise ValueError(f"{where}: {path} is already listed in line {seen[path]}; remove one")
        seen[path] = number
        clips.append(Clip(root / _strip_frame_count(root, path), class_index(label, where, len(names))))
    return ClipSet("list", split, root, tuple(clips), names, mirror=read_mirror(root, names))


def _find_lists(root: Path, split: str) -> list[Path]:
    """The file named after the split, or else all files with the split among the words of their names."""
    for path in (root / f"{split}{suffix}" for suffix in _LIST_SUFFIXES):
        if path.is_file():
            return [path]
    files = sorted(path for path in root.iterdir() if path.suffix in _LIST_SUFFIXES)
    return [path for path in files if split.lower() in re.split(r"[^a-z0-9]+", path.stem.lower())]


def _read_list(path: Path) -> list[tuple[int, str, int]]:
    """Number, path and label of each line."""
    lines = []
    for number, text in read_lines(path):
        match = _LIST_LINE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{path}:{number}: got {short_repr(text)}; expected a path and a class index, such as 'clips/a.mp4 3' "
                "(for tables with a header path,label, use the dataset 'csv')"
            )
        lines.append((number, match[1], int(match[2])))
    if not lines:
        raise ValueError(f"{path} is empty; expected lines such as 'clips/a.mp4 3'")
    return lines


def _strip_frame_count(root: Path, path: str) -> str:
    """``frames/182040`` from ``frames/182040 58``; a video or an existing path is returned unchanged."""
    match = _LIST_LINE.fullmatch(path)
    if match is None or path.lower().endswith(VIDEO_SUFFIXES) or (root / path).exists():
        return path
    return match[1]


def _read_id_names(root: Path) -> tuple[str, ...] | None:
    """The class names of the table ``id,name``, or None if there is no such table."""
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
            raise ValueError(f"{tables[0]}:{number}: class {label} is already listed, as {names[label]!r}; remove one")
        names[label] = values["name"]
    return tuple(names[label] for label in range(len(names)))
