"""Annotation files and videos of published datasets: searching for them, and parsing with errors that name the line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art.data.datasets.base import Clip, RequiredFile, check_root

#: Suffixes of video files.
VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
#: Suffixes of frames in a directory of frames.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file that a reader requires; ``source`` and ``splits`` are those of :class:`RequiredFile`."""

    names: tuple[str, ...]  # accepted, the published one first
    source: str
    splits: tuple[str, ...]
    directories: tuple[str, ...] = ("", "annotations")  # to search, below the root

    def find(self, root: Path) -> Path | None:
        """The file below ``root``, or None if it is missing."""
        return next((path for path in self._candidates(root) if path.is_file()), None)

    def path(self, root: Path) -> Path:
        """The file below ``root``. Raises FileNotFoundError if ``root`` or the file does not exist."""
        check_root(root)
        found = self.find(root)
        if found is None:
            searched = " or ".join(str(root / directory) for directory in self.directories)
            raise FileNotFoundError(
                f"{self.names[0]} not found; expected in {searched}. Download it from {self.source}"
            )
        return found

    def required(self, root: Path) -> RequiredFile:
        """The entry of this file in :func:`art.data.required_files`."""
        found = self.find(root)
        return RequiredFile(found or self._candidates(root)[0], found is not None, self.source, self.splits)

    def _candidates(self, root: Path) -> list[Path]:
        return [root / directory / name for name in self.names for directory in self.directories]


def find_videos(root: Path, directories: Sequence[str], names: Collection[str], depth: int = 1) -> dict[str, Path]:
    """Find videos by name: files with one of ``VIDEO_SUFFIXES``, or directories of frames.

    Args:
        root: root of the dataset.
        directories: directories to search below the root, earlier ones first. Each is listed once, independent of the
            number of names.
        names: file names without suffix, or names of directories of frames.
        depth: levels of subdirectories to list.
    """
    found: dict[str, Path] = {}
    wanted = names if isinstance(names, (set, frozenset, dict)) else set(names)
    for directory in directories:
        if (root / directory).is_dir():
            _scan(root / directory, wanted, depth, found)
    return found


def _scan(directory: Path, names: Collection[str], depth: int, found: dict[str, Path]) -> None:
    subdirectories = []
    files: dict[str, str] = {}
    frames: dict[str, str] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            stem, _, suffix = entry.name.rpartition(".")
            if stem in names and f".{suffix.lower()}" in VIDEO_SUFFIXES:
                files[stem] = min(files.get(stem, entry.name), entry.name)  # of several, the same on every file system
            elif entry.is_dir():
                if entry.name in names:
                    frames[entry.name] = entry.name
                elif not entry.name.startswith("."):
                    subdirectories.append(entry.name)
    for stem, name in (*files.items(), *frames.items()):
        found.setdefault(stem, directory / name)
    if depth > 1:
        for name in sorted(subdirectories):
            _scan(directory / name, names, depth - 1, found)


def first_directory(root: Path, directories: Sequence[str]) -> Path:
    """The first directory that exists, or else the first one: where a missing video is expected."""
    return next((root / name for name in directories if (root / name).is_dir()), root / directories[0])


def labeled_clips(root: Path, directories: Sequence[str], labels: Mapping[str, int], suffix: str) -> tuple[Clip, ...]:
    """The clips with the given names, searched in some directories and the root; a missing one is expected in the first
    directory that exists, with ``suffix``."""
    found = find_videos(root, (*directories, ""), labels)
    expected = first_directory(root, directories)
    return tuple(Clip(found.get(name, expected / f"{name}{suffix}"), label) for name, label in labels.items())


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without a byte order mark. Raises ValueError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The non-blank lines of a file, stripped, with their line numbers (from 1)."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: Path, kind: type) -> Any:
    """Parse a JSON file that holds a ``list`` or ``dict`` (``kind``). Raises ValueError if it does not, or is not valid
    JSON, such as an incomplete download."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: invalid JSON: {error.msg}; check that the download is complete"
        ) from None
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "an object"
        raise ValueError(f"{path} holds {short_repr(content)}; expected {expected}")
    return content


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header; blank lines are skipped.

    Args:
        path: the file.
        columns: required columns; the file may have more.

    Returns:
        the line number of each row, and its values by column.

    Raises:
        ValueError: the header is missing or incomplete, or a row does not match it; the message names file and line.
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
                    "quote values that contain a comma"
                )
            rows.append((reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: invalid CSV: {error}") from None
    if header is None:
        raise ValueError(f"{path} is empty; expected the header {','.join(columns)!r}")
    return rows


def class_index(value: object, where: str, count: int) -> int:
    """Parse a label, which annotations store as a number or as a string of digits. Raises ValueError, with a message
    that begins with ``where``, if it is neither, or not in 0..count-1."""
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: label is {short_repr(value)}; expected an integer, 0 to {count - 1}")
    if not 0 <= value < count:
        raise ValueError(
            f"{where}: label {value} is out of range, expected 0 to {count - 1}: there are {count} classes"
        )
    return value


def short_repr(value: object) -> str:
    """``repr(value)`` for an error message, truncated to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
