"""A user's own clips in tables, a file for each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from art.data.datasets.annotations import read_table, read_text
from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import check_root, nearest, register_dataset
from art.data.datasets.user_classes import CLASSES, MIRROR, read_classes, read_mirror


def table_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_csv`: the tables in ``root`` that list clips, sorted."""
    return tuple(name for name, path in _tables(root).items() if _is_list_of_clips(path))


@register_dataset("csv", description="your own clips in tables path,label", splits=table_splits)
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
    tables = _tables(root)
    if split not in tables:
        raise ValueError(
            f"{root} has no split {split!r}: there are {', '.join(tables) or 'none'}; expected {root}/{split}.csv"
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


def _tables(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(root.glob("*.csv")) if path.name != MIRROR}


def _is_list_of_clips(table: Path) -> bool:
    header = next(iter(read_text(table).splitlines()), "")
    return {"path", "label"} <= {name.strip() for name in header.split(",")}


def _read_rows(table: Path) -> list[_Row]:
    rows = []
    for line, values in read_table(table, ("path", "label")):
        for column in ("path", "label"):
            if not values[column]:
                raise ValueError(f"{table}:{line}: {column} is empty")
        start, end = time_span(values, f"{table}:{line}")
        rows.append(_Row(table, line, values["path"], values["label"], start, end))
    return rows


def time_span(values: Mapping[str, str], where: str) -> tuple[float | None, float | None]:
    """``time_start`` and ``time_end`` of a line of a table, seconds; None where it says nothing.

    Args:
        values: by column.
        where: file and line, for the error.

    Raises:
        ValueError: one of them is no number, or nothing lies between them.
    """
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
        raise ValueError(f"{where} is {value!r}; expected seconds, such as 12.5, or nothing") from None


def _classes_of(rows: Sequence[_Row]) -> tuple[str, ...]:
    numbers = [row for row in rows if row.label.isascii() and row.label.isdigit()]
    if numbers and len(numbers) < len(rows):
        named = next(row for row in rows if row not in numbers)
        raise ValueError(
            f"{numbers[0].where}: label {numbers[0].label} is an index, but {named.where} has the name "
            f"{named.label!r}; expected one kind of label, or {CLASSES} beside the tables"
        )
    if numbers:
        return tuple(str(i) for i in range(max(int(row.label) for row in numbers) + 1))
    return tuple(sorted({row.label for row in rows}))
