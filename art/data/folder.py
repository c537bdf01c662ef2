"""A user's own clips: a folder for each class, or a table.

Both readers look for two optional files in the root folder: ``classes.txt``, the class names in the order of their
indices, one a line; and ``mirror.csv`` with the header ``class,mirror``, which allows horizontal flips in training by
telling what a class becomes (a class that is not in it stays what it is; a table without rows changes none).
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .clips import Clip, ClipSet
from .registry import check_root, nearest, register_dataset

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")

_CLASSES, _MIRROR = "classes.txt", "mirror.csv"
_log = logging.getLogger(__name__)


@register_dataset("folder")
def open_folder(root: Path, split: str) -> ClipSet:
    """Clips at ``root/<split>/<class name>/<clip>.{mp4,avi,webm,mkv,mov}``.

    Without ``classes.txt`` the classes are the sorted names of the class folders of all splits together, so that every
    split agrees on the indices. Underscores of class names are spaces in the prompts.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: no such split, a class folder that is no class, a folder among the clips, or no clips.
    """
    check_root(root)
    splits = _folders(root)
    if split not in splits:
        raise ValueError(
            f"{root} has no split {split!r}: there are {_listed(splits)}; expected {root}/{split}/<class>/<clip>"
        )
    found = _folders(root / split)
    names = read_classes(root) or tuple(sorted({name for other in splits for name in _folders(root / other)}))
    for name in found:
        if name not in names:
            raise ValueError(f"{root / split / name}: {name!r} is not in {root / _CLASSES}{nearest(name, names)}")
    clips: list[Clip] = []
    others: list[Path] = []
    for name in found:
        for path in sorted(p for p in (root / split / name).iterdir() if not p.name.startswith(".")):
            if path.is_dir():
                raise ValueError(f"{path} is a folder; expected video files ({', '.join(VIDEO_SUFFIXES)})")
            if path.suffix.lower() in VIDEO_SUFFIXES:
                clips.append(Clip(path, names.index(name)))
            else:
                others.append(path)
    if not clips:
        raise ValueError(
            f"{root / split} has no clips in its {len(found)} class folders and {len(others)} other files; expected "
            f"{root / split}/<class>/<clip> ending in {', '.join(VIDEO_SUFFIXES)}"
        )
    if others:
        _log.warning(
            "%d files below %s are no videos and are left out, such as %s", len(others), root / split, others[0]
        )
    prompts = tuple(name.replace("_", " ") for name in names)
    return ClipSet("folder", split, root, tuple(clips), names, prompts, read_mirror(root, names))


@register_dataset("csv")
def open_csv(root: Path, split: str) -> ClipSet:
    """Clips listed in ``root/<split>.csv`` with the header ``path,label``.

    A path is relative to the root or absolute; a label is a class name or a class index. Two more columns,
    ``time_start`` and ``time_end``, cut a clip out of its file (seconds); an empty value is the beginning or the end.
    Other columns are not looked at. Without ``classes.txt`` the classes are the sorted labels of all tables in the
    root together (of those with this header), or, where all of them are whole numbers, 0 to the greatest.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: no such split, or a line that does not fit; the message gives file and line.
    """
    check_root(root)
    names = read_classes(root)
    tables = {path.stem: path for path in sorted(root.glob("*.csv")) if path.name != _MIRROR}
    if split not in tables:
        raise ValueError(
            f"{root} has no split {split!r}: there are {_listed(list(tables))}; expected {root}/{split}.csv"
        )
    if names is None:
        lists = [path for path in tables.values() if path == tables[split] or _is_list_of_clips(path)]
        names = _classes_of([row for path in lists for row in _read_rows(path)])
    clips = clips_of_table(tables[split], root, names)
    return ClipSet("csv", split, root, clips, names, mirror=read_mirror(root, names))


def clips_of_table(table: Path, root: Path, class_names: Sequence[str]) -> tuple[Clip, ...]:
    """The clips of one ``path,label`` table, as :func:`open_csv` reads it.

    Raises:
        ValueError: a line that does not fit; the message gives file and line.
    """
    clips: list[Clip] = []
    lines: dict[Clip, int] = {}
    index = {name: i for i, name in enumerate(class_names)}
    for row in _read_rows(table):
        if row.label in index:
            label = index[row.label]
        elif row.label.isascii() and row.label.isdigit() and int(row.label) < len(class_names):
            label = int(row.label)
        elif row.label.lstrip("-").isdigit():
            raise ValueError(f"{row.where}: label {row.label} is out of range, expected 0 to {len(class_names) - 1}")
        else:
            raise ValueError(f"{row.where}: label {row.label!r} is no class{nearest(row.label, tuple(class_names))}")
        clip = Clip(root / row.path, label, row.start, row.end)
        same = Clip(clip.path, 0, clip.start, clip.end)
        if same in lines:
            raise ValueError(
                f"{row.where}: clip {row.path} is there already, in line {lines[same]}; remove one of them"
            )
        lines[same] = row.line
        clips.append(clip)
    if not clips:
        raise ValueError(f"{table} lists no clips; expected lines 'path,label' below its header")
    return tuple(clips)


def read_classes(root: Path) -> tuple[str, ...] | None:
    """The class names of ``root/classes.txt``, None where there is no such file.

    Raises:
        ValueError: it is empty, or a line is blank or there twice.
    """
    path = root / _CLASSES
    if not path.exists():
        return None
    lines = [line.strip() for line in _read_text(path).rstrip().splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise ValueError(f"{path}:{number}: is blank; expected one class name a line")
        if line in lines[: number - 1]:
            raise ValueError(f"{path}:{number}: class {line!r} is there already, in line {lines.index(line) + 1}")
    if not lines:
        raise ValueError(f"{path} is empty; expected one class name a line")
    return tuple(lines)


def read_mirror(root: Path, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """What ``root/mirror.csv`` says each class becomes in a mirror, None where there is no such file.

    Raises:
        ValueError: a line that does not fit; the message gives file and line.
    """
    path = root / _MIRROR
    if not path.exists():
        return None
    mirror = list(range(len(class_names)))
    index = {name: i for i, name in enumerate(class_names)}
    for line, values in _read_table(path, ("class", "mirror")):
        for name in (values["class"], values["mirror"]):
            if name not in index:
                raise ValueError(f"{path}:{line}: {name!r} is no class{nearest(name, tuple(class_names))}")
        first, second = index[values["class"]], index[values["mirror"]]
        mirror[first], mirror[second] = second, first
    return tuple(mirror)


@dataclass(frozen=True)
class _Row:
    table: Path
    line: int
    path: str
    label: str
    start: float | None
    end: float | None

    @property
    def where(self) -> str:
        return f"{self.table}:{self.line}"


def _is_list_of_clips(table: Path) -> bool:
    header = next(iter(_read_text(table).splitlines()), "")
    return {"path", "label"} <= {name.strip() for name in header.split(",")}


def _read_rows(table: Path) -> list[_Row]:
    rows = []
    for line, values in _read_table(table, ("path", "label")):
        for column in ("path", "label"):
            if not values[column]:
                raise ValueError(f"{table}:{line}: {column} is empty")
        start, end = (
            _seconds(values.get(column, ""), f"{table}:{line}: {column}") for column in ("time_start", "time_end")
        )
        if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
            raise ValueError(
                f"{table}:{line}: the clip from {start} s to {end} s has no duration; expected 0 <= start < end"
            )
        rows.append(_Row(table, line, values["path"], values["label"], start, end))
    return rows


def _seconds(value: str, where: str) -> float | None:
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{where} is {value!r}; expected seconds, such as 12.5, or nothing") from None


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The lines of a table with a header that has at least ``columns``, with their numbers; blank lines are skipped."""
    reader = csv.reader(_read_text(path).splitlines(keepends=True), strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] | None = None
    try:
        for values in reader:
            values = [value.strip() for value in values]
            if not any(values):
                continue
            if header is None:
                header = values
                if not set(columns) <= set(header):
                    raise ValueError(
                        f"{path}:{reader.line_num}: the header is {','.join(header)!r}; expected "
                        f"{','.join(columns)!r}, separated by commas"
                    )
                continue
            if len(values) != len(header):
                raise ValueError(
                    f"{path}:{reader.line_num}: has {len(values)} values, expected {len(header)} ({','.join(header)}); "
                    "a value that holds a comma needs quotes"
                )
            rows.append((reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: is no line of a CSV table: {error}") from None
    if header is None:
        raise ValueError(f"{path} is empty; expected the header {','.join(columns)!r}")
    return rows


def _classes_of(rows: Sequence[_Row]) -> tuple[str, ...]:
    numbers = [row for row in rows if row.label.isascii() and row.label.isdigit()]
    if numbers and len(numbers) < len(rows):
        named = next(row for row in rows if row not in numbers)
        raise ValueError(
            f"{numbers[0].where}: label {numbers[0].label} is an index, but {named.where} has the name "
            f"{named.label!r}; expected one kind of label, or {_CLASSES} beside the tables"
        )
    if numbers:
        return tuple(str(i) for i in range(max(int(row.label) for row in numbers) + 1))
    return tuple(sorted({row.label for row in rows}))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
