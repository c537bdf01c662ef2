"""Annotation files and videos as their authors hand them out: where they lie, and errors that name file and line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art.data.datasets.registry import RequiredFile, check_root

#: Files that are taken for videos.
VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
#: Files that are taken for the frames of a clip, where a folder holds them.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file that a reader needs.

    Attributes:
        names: what it may be called, the name that its authors gave it first.
        source: where they publish it.
        splits: the splits that cannot be opened without it (see :class:`RequiredFile`).
        folders: where it may lie below the root.
    """

    names: tuple[str, ...]
    source: str
    splits: tuple[str, ...]
    folders: tuple[str, ...] = ("", "annotations")

    def find(self, root: Path) -> Path | None:
        """Where it is below ``root``, None where it is not."""
        return next((path for path in self._places(root) if path.is_file()), None)

    def path(self, root: Path) -> Path:
        """Where it is below ``root``.

        Raises:
            FileNotFoundError: ``root`` is no folder, or the file is not there.
        """
        check_root(root)
        found = self.find(root)
        if found is None:
            folders = " or ".join(str(root / folder) for folder in self.folders)
            raise FileNotFoundError(f"{self.names[0]} is not there; expected in {folders}. Get it from {self.source}")
        return found

    def required(self, root: Path) -> RequiredFile:
        """What is told of it before it is read."""
        found = self.find(root)
        return RequiredFile(found or self._places(root)[0], found is not None, self.source, self.splits)

    def _places(self, root: Path) -> list[Path]:
        return [root / folder / name for name in self.names for folder in self.folders]


def find_videos(root: Path, folders: Sequence[str], names: Collection[str], depth: int = 1) -> dict[str, Path]:
    """Where the videos called ``names`` are: a file with one of ``VIDEO_SUFFIXES``, or a folder of frames.

    Every folder is listed once, so that this takes as long as it takes to list them.

    Args:
        root: the root of the data set.
        folders: where to look below it; what is found in an earlier one counts.
        names: names of files without suffix, and of folders of frames.
        depth: how many levels of each of ``folders`` are listed.

    Returns:
        the names that were found, and where.
    """
    found: dict[str, Path] = {}
    wanted = names if isinstance(names, (set, frozenset, dict)) else set(names)
    for folder in folders:
        if (root / folder).is_dir():
            _find_in(root / folder, wanted, depth, found)
    return found


def _find_in(folder: Path, names: Collection[str], depth: int, found: dict[str, Path]) -> None:
    inner = []
    files: dict[str, str] = {}
    frames: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, suffix = entry.name.rpartition(".")
            if stem in names and f".{suffix.lower()}" in VIDEO_SUFFIXES:
                files[stem] = min(files.get(stem, entry.name), entry.name)  # one of several: everywhere the same
            elif entry.is_dir():
                if entry.name in names:
                    frames[entry.name] = entry.name
                elif not entry.name.startswith("."):
                    inner.append(entry.name)
    for stem, name in (*files.items(), *frames.items()):
        found.setdefault(stem, folder / name)
    if depth > 1:
        for name in sorted(inner):
            _find_in(folder / name, names, depth - 1, found)


def first_folder(root: Path, folders: Sequence[str]) -> Path:
    """The first of ``folders`` that is there; the first of all where none is: where a missing video is expected."""
    return next((root / folder for folder in folders if (root / folder).is_dir()), root / folders[0])


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, stripped, with their numbers from 1."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        kind: what it must be: ``list`` or ``dict``.

    Raises:
        ValueError: it is no JSON (such as a download that broke off), or of another kind.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: is no JSON: {error.msg}; was it downloaded whole?") from None
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "an object"
        raise ValueError(f"{path} holds {shown(content)}; expected {expected}")
    return content


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The lines of a table with a header that has at least ``columns``, with their numbers; blank lines are skipped.

    Raises:
        ValueError: no header, another header, or a line that does not fit it; the message gives file and line.
    """
    reader = csv.reader(read_text(path).splitlines(keepends=True), strict=True)
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


def class_index(value: object, where: str, count: int) -> int:
    """``value`` as a label, which annotations give as a number or as a string of digits.

    Raises:
        ValueError: it is neither, or not in 0..count-1; the message begins with ``where``.
    """
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: label is {shown(value)}; expected a whole number, 0 to {count - 1}")
    if not 0 <= value < count:
        raise ValueError(
            f"{where}: label {value} is out of range, expected 0 to {count - 1}: there are {count} classes"
        )
    return value


def shown(value: object) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
