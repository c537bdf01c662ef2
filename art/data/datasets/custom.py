"""Custom datasets in CSV tables ("csv") and path lists ("list"); class directories are in :mod:`.directories`.

Two optional files in the root describe the classes. ``classes.txt`` lists the class names in the order of their
indices, one per line. ``mirror.csv`` with the header ``class,mirror`` enables horizontal flips in training: each row
names a class and the class of its flipped clips. Classes without a row keep their class, so a table without rows
enables flips that change no label.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from art.data.datasets.annotations import (
    CLASSES,
    INDEX,
    MIRROR,
    VIDEO_SUFFIXES,
    class_index,
    composed,
    has_columns,
    is_hidden,
    read_classes,
    read_lines,
    read_mirror,
    read_table,
)
from art.data.datasets.base import Clip, ClipSet, check_root, register_dataset, suggest
from art.data.datasets.directories import directory_splits, open_directory
from art.data.datasets.splits import SPLITS, find_split, split_name
from art.terminal import short_repr

__all__ = [
    "CLASSES", "MIRROR", "ClipPaths", "clips_of_table", "directory_splits", "list_splits", "open_csv",
    "open_directory", "open_list", "read_classes", "read_mirror", "split_list_line", "strip_frame_count",
    "table_splits", "time_span", "unquoted",
]  # fmt: skip

_COLUMNS = ("path", "label")
_TABLE_SUFFIXES = (".csv", ".tsv")
_LIST_SUFFIXES = (".txt", ".csv", ".list")
# A path, which may contain spaces, separators, and a final number.
_LIST_LINE = re.compile(rf"(?P<path>.*[^\s,;])[\s,;]+(?P<label>-?{INDEX})")


class ClipPaths:
    """Converts the paths in a table or list to those of files: relative to ``root``, with ``~`` for the home directory.

    If there is no such file, backslashes are read as slashes, and names are compared in Unicode's composed form.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directories: dict[Path, Path] = {}
        self._names: dict[Path, dict[str, str]] = {}

    def __call__(self, text: str) -> Path:
        """The path of a clip, which may not exist."""
        path = self._join(text)
        if ("\\" in text or not text.isascii()) and not os.path.lexists(path):
            return self._find(self._join(text.replace("\\", "/")))
        return path

    def _join(self, text: str) -> Path:
        # Unlike Path.expanduser, this does not raise if there is no home directory.
        return self._root / (os.path.expanduser(text) if text.startswith("~/") else text)  # noqa: PTH111

    def _find(self, path: Path) -> Path:
        """The existing path that differs in the form of its letters only; ``path`` if there is none."""
        if path.parent == path:
            return path
        if path.parent not in self._directories:
            self._directories[path.parent] = self._find(path.parent)
        directory = self._directories[path.parent]
        return directory / self._names_in(directory).get(composed(path.name), path.name)

    def _names_in(self, directory: Path) -> dict[str, str]:
        """The names in a directory by their composed form."""
        if directory not in self._names:
            try:
                self._names[directory] = {composed(entry.name): entry.name for entry in directory.iterdir()}
            except OSError:
                self._names[directory] = {}
        return self._names[directory]


def _index_names(largest: int, clips: int, where: str) -> tuple[str, ...]:
    """The names of classes that are known by their indices only."""
    if largest > 100 + 10 * clips:
        raise ValueError(
            f"{where}: label {largest} is too large for {clips} clips; expected class indices from 0, or a list of the "
            f"class names in {CLASSES}"
        )
    return tuple(map(str, range(largest + 1)))


# Tables: "csv"


class _Row(NamedTuple):
    where: str
    line: int
    path: str
    label: str
    start: float | None
    end: float | None

    @property
    def number(self) -> int | None:
        """The label if it is a class index."""
        return int(self.label) if re.fullmatch(INDEX, self.label) else None


def table_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_csv`, sorted: the tables in ``root`` that are named after a split, such as
    ``train.csv``, or have a header with the columns ``path`` and ``label``."""
    return tuple(sorted(name for name, path in _tables(root).items() if _lists_clips(path)))


@register_dataset("csv", description="your own clips in tables path,label", splits=table_splits)
def open_csv(root: Path, split: str) -> ClipSet:
    """Open the clips in ``root/<split>.csv``, a table with the columns ``path`` and ``label``.

    The name may be another spelling of the split, such as ``Validation.csv``; without a test table, "test" opens the
    validation table. Values are separated by commas, semicolons or tabs. Paths are absolute or relative to the root;
    labels are class names or class indices. The optional columns ``time_start`` and ``time_end`` (seconds) select a
    part of the file; an empty value is the beginning or the end. Other columns are ignored. Without ``classes.txt``,
    the classes are the sorted labels of all tables in the root, or, if all labels are integers, 0 to the largest.
    """
    check_root(root)
    names = read_classes(root)
    tables = _tables(root)
    found = find_split(split, [*tables, *(path.stem for path in tables.values())])
    if found is None:
        listed = ", ".join(sorted(tables)[:20]) or "none"
        raise ValueError(f"{root} has no split {split!r}; found: {listed}; expected {root}/{split}.csv")
    table = tables[found] if found in tables else next(path for path in tables.values() if path.stem == found)
    rows = _read_rows(table)
    if names is None:
        others = [path for path in tables.values() if path != table and _lists_clips(path)]
        names = _classes_of([*rows, *(row for path in others for row in _read_rows(path))])
    clips = _clips_of_rows(rows, table, root, names)
    return ClipSet("csv", found, root, clips, names, mirror=read_mirror(root, names))


def clips_of_table(table: Path, root: Path, class_names: Sequence[str]) -> tuple[Clip, ...]:
    """Read the clips of one ``path,label`` table, as in :func:`open_csv`."""
    return _clips_of_rows(_read_rows(table), table, root, class_names)


def _clips_of_rows(rows: Sequence[_Row], table: Path, root: Path, class_names: Sequence[str]) -> tuple[Clip, ...]:
    clips: list[Clip] = []
    lines: dict[tuple[str, float | None, float | None], int] = {}
    repeated: list[tuple[_Row, int]] = []
    index = {name: i for i, name in enumerate(class_names)}
    paths = ClipPaths(root)
    for row in rows:
        label = index.get(row.label)
        label = row.number if label is None else label
        if label is None and not re.fullmatch(r"-?[0-9]+", row.label):
            raise ValueError(f"{row.where}: unknown class {short_repr(row.label)}{suggest(row.label, class_names)}")
        if label is None or label >= len(class_names):
            raise ValueError(
                f"{row.where}: label {row.label[:20]} is out of range, expected 0 to {len(class_names) - 1}: there are "
                f"{len(class_names)} {'class' if len(class_names) == 1 else 'classes'}"
            )
        path = paths(row.path)
        key = (os.path.normpath(path), row.start, row.end)
        if key in lines:
            repeated.append((row, lines[key]))
            continue
        lines[key] = row.line
        clips.append(Clip(path, label, row.start, row.end))
    if repeated:
        row, line = repeated[0]
        more = f" ({len(repeated)} rows of this table are repeated)" if len(repeated) > 1 else ""
        raise ValueError(f"{row.where}: clip {row.path} is already listed in line {line}; remove one{more}")
    if not clips:
        raise ValueError(f"{table} lists no clips; expected rows 'path,label' below the header")
    return tuple(clips)


def time_span(values: Mapping[str, str], where: str) -> tuple[float | None, float | None]:
    """Parse the columns ``time_start`` and ``time_end`` of a table row, in seconds; None if empty or absent. Errors
    begin with ``where``, the file and line."""
    texts = values.get("time_start", ""), values.get("time_end", "")
    if texts == ("", ""):
        return None, None
    start, end = _seconds(texts[0], f"{where}: time_start"), _seconds(texts[1], f"{where}: time_end")
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise ValueError(f"{where}: the clip from {start} s to {end} s has no duration; expected 0 <= start < end")
    return start, end


def _seconds(value: str, where: str) -> float | None:
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{where} is {short_repr(value)}; expected seconds, such as 12.5, or an empty value")
    return seconds


def _tables(root: Path) -> dict[str, Path]:
    """The tables in ``root`` by the split that they are named after, or else by their names."""
    found = [path for path in root.iterdir() if path.suffix.lower() in _TABLE_SUFFIXES and not is_hidden(path.name)]
    tables: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: (path.stem != split_name(path.stem), path)):
        if path.name not in (MIRROR, SPLITS):
            split = split_name(path.stem)
            tables[path.stem if split is None or split in tables else split] = path
    return tables


def _lists_clips(table: Path) -> bool:
    return split_name(table.stem) is not None or has_columns(table, _COLUMNS)


def _read_rows(table: Path) -> list[_Row]:
    rows = []
    for line, values in read_table(table, _COLUMNS):
        where = f"{table}:{line}"
        for column in _COLUMNS:
            if not values[column]:
                raise ValueError(f"{where}: {column} is empty")
        rows.append(_Row(where, line, values["path"], composed(values["label"]), *time_span(values, where)))
    return rows


def _classes_of(rows: Sequence[_Row]) -> tuple[str, ...]:
    numbers = [row for row in rows if row.number is not None]
    if numbers and len(numbers) < len(rows):
        named = next(row for row in rows if row.number is None)
        raise ValueError(
            f"{numbers[0].where}: label {numbers[0].label} is an index, but {named.where} has the name "
            f"{short_repr(named.label)}; use one kind of label, or add {CLASSES} to the directory of the tables"
        )
    if numbers:
        largest = max(numbers, key=lambda row: row.number or 0)
        return _index_names(largest.number or 0, len(rows), largest.where)
    return tuple(sorted({row.label for row in rows}))


# Path lists: "list"


def list_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_list`: those of train, val and test for which there is a list."""
    return tuple(split for split in ("train", "val", "test") if _find_lists(root, split))


@register_dataset("list", description="your own clips in lists of lines 'path label'", splits=list_splits)
def open_list(root: Path, split: str) -> ClipSet:
    """Open the clips in a file of ``path label`` lines, separated by spaces or a comma, as used by other trainers.

    The file is ``root/<split>.txt`` (or ``.csv``, ``.list``), or else the only one with the split as a word of its
    name, such as ``kinetics400_train_list_videos.txt``. Without a test list, "test" opens the validation list. Paths
    are absolute or relative to the root and may contain spaces; labels are class indices. The number of frames may
    precede the label: ``frames/182040 58 3``.

    Class names come from ``classes.txt`` (one per line), or else from the only table in the root with the header
    ``id,name``. Without either they are the indices, 0 to the largest in the lists of all splits.
    """
    check_root(root)
    lists = _find_lists(root, split)
    if not lists and split_name(split) == "test" and (lists := _find_lists(root, "val")):
        split = "val"
    if len(lists) != 1:
        found = ", ".join(path.name for path in lists) or "none"
        raise ValueError(
            f"{root}: lists of split {split!r}: {found}; expected {split}.txt, or one file with {split!r} in its name"
        )
    paths = ClipPaths(root)
    lines = _read_list(lists[0], paths)
    names = read_classes(root) or _read_id_names(root)
    if names is None:  # all splits must use the same classes, so all lists are read
        others = {other for name in list_splits(root) for other in _find_lists(root, name)} - {lists[0]}
        labeled = {other: _read_list(other, paths) for other in sorted(others)} | {lists[0]: lines}
        largest, where = max((label, f"{file}:{line}") for file, part in labeled.items() for line, _, label in part)
        names = _index_names(max(0, largest), sum(map(len, labeled.values())), where)
    clips = []
    seen: dict[str, int] = {}
    repeated: list[tuple[int, str, int]] = []
    for number, text, label in lines:
        path = paths(text)
        where, key = f"{lists[0]}:{number}", os.path.normpath(path)
        if key in seen:
            repeated.append((number, text, seen[key]))
            continue
        seen[key] = number
        clips.append(Clip(path, class_index(label, where, len(names))))
    if repeated:
        number, text, line = repeated[0]
        more = f" ({len(repeated)} lines of this list are repeated)" if len(repeated) > 1 else ""
        raise ValueError(f"{lists[0]}:{number}: {text} is already listed in line {line}; remove one{more}")
    return ClipSet("list", split, root, tuple(clips), names, mirror=read_mirror(root, names))


def split_list_line(paths: ClipPaths, text: str) -> tuple[str, str, int] | None:
    """Split a line of a list: the path, the text after it, and the label; None if the line has no label.

    A number of frames before the label belongs to the text after the path: ``frames/182040 58 3``. The path of a video,
    or of an existing file, may end in a number.
    """
    match = _LIST_LINE.fullmatch(text)
    if match is None:
        return None
    path = strip_frame_count(paths, match["path"])
    return unquoted(path), text[len(path) :], int(match["label"])


def is_comment(paths: ClipPaths, text: str) -> bool:
    """Whether a line of a list is a comment: it begins with ``#``, and there is no such file."""
    if not text.startswith("#"):
        return False
    parts = split_list_line(paths, text)
    return not any(os.path.lexists(paths(path)) for path in (unquoted(text), parts[0] if parts else text))


def has_other_label(paths: ClipPaths, text: str) -> bool:
    """Whether a line without a class index has something else after its path, such as the name of a class."""
    if text.lower().endswith(VIDEO_SUFFIXES) or os.path.lexists(paths(unquoted(text))):
        return False
    starts = (unquoted(text[: separator.start()]) for separator in re.finditer(r"[\s,;]+", text))
    return any(start.lower().endswith(VIDEO_SUFFIXES) or os.path.lexists(paths(start)) for start in starts if start)


def list_line_error(file: Path, number: int, text: str) -> ValueError:
    """The error for a line of a list that has no class index."""
    return ValueError(
        f"{file}:{number}: got {short_repr(text)}; expected a path and a class index, such as 'clips/a.mp4 3' "
        "(for tables with a header path,label, use the dataset 'csv')"
    )


def strip_frame_count(paths: ClipPaths, path: str) -> str:
    """``frames/182040`` from ``frames/182040 58``; a video or an existing path is returned unchanged."""
    match = _LIST_LINE.fullmatch(path)
    if match is None or path.lower().endswith(VIDEO_SUFFIXES) or os.path.lexists(paths(path)):
        return path
    return match["path"]


def unquoted(path: str) -> str:
    """The path without the quotes around it, if any."""
    return path[1:-1] if len(path) > 2 and path[0] == path[-1] and path[0] in "\"'" else path


def _find_lists(root: Path, split: str) -> list[Path]:
    """The file named after the split, or else all files with the split among the words of their names."""
    for path in (root / f"{split}{suffix}" for suffix in _LIST_SUFFIXES):
        if path.is_file():
            return [path]
    files = sorted(
        path for path in root.iterdir()
        if path.suffix.lower() in _LIST_SUFFIXES and not is_hidden(path.name)
        and path.name not in (CLASSES, MIRROR, SPLITS)
    )  # fmt: skip
    wanted = split_name(split)
    named = [path for path in files if wanted is not None and split_name(path.stem) == wanted]
    if named:
        return named

    def matches(word: str) -> bool:
        return word == split.lower() or (wanted is not None and split_name(word) == wanted)

    return [path for path in files if any(map(matches, re.split(r"[^a-z0-9]+", path.stem.lower())))]


def _read_list(file: Path, paths: ClipPaths) -> list[tuple[int, str, int]]:
    """Number, path and label of each line."""
    lines = []
    for number, text in read_lines(file):
        if is_comment(paths, text):
            continue
        parts = split_list_line(paths, text)
        if parts is None:
            raise list_line_error(file, number, text)
        lines.append((number, parts[0], parts[2]))
    if not lines:
        raise ValueError(f"{file} is empty; expected lines such as 'clips/a.mp4 3'")
    return lines


def _read_id_names(root: Path) -> tuple[str, ...] | None:
    """The class names of the table ``id,name``, or None if there is no such table."""
    tables = [path for path in sorted(root.glob("*.csv")) if has_columns(path, ("id", "name"))]
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
        names[label] = composed(values["name"])
    return tuple(names[label] for label in range(len(names)))
