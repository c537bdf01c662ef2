"""Annotation files and videos of published datasets: searching for them, and parsing with errors that name the line."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from art.data.datasets.base import Clip, RequiredFile, check_root, suggest
from art.data.files import check_regular_file
from art.terminal import short_repr

#: Optional files in the root of a custom dataset.
CLASSES, MIRROR = "classes.txt", "mirror.csv"
#: A class index in text. Unlike str.isdigit, it excludes "²", and is short enough to be a number of classes.
INDEX = "[0-9]{1,9}"
#: Suffixes of video files, in lower case; files with capitals are found, too.
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".wmv", ".flv", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".ts",
    ".mts", ".m2ts", ".mod", ".tod", ".vob", ".asf", ".f4v", ".3gp", ".3g2", ".ogv", ".gif", ".divx", ".dv", ".mxf",
    ".rm", ".rmvb", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".mjpeg", ".mjpg", ".y4m",
)  # fmt: skip
#: Suffixes of frames in a directory of frames.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
#: The most common suffixes, for error messages.
COMMON_SUFFIXES = ", ".join((*VIDEO_SUFFIXES[:8], "…"))
#: What operating systems, archives and network drives add to directories.
_SYSTEM_NAMES = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin", "lost+found",
     "system volume information", "__pycache__")
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or directory is not part of a dataset: its name begins with a dot (``.DS_Store``, ``._clip.mp4``),
    or an operating system created it (``Thumbs.db``, ``__MACOSX``)."""
    return name.startswith((".", "~$")) or name.lower() in _SYSTEM_NAMES


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC). macOS stores decomposed names, which look the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


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
    """Read a UTF-8 file, or a UTF-16 file with a byte order mark, without the mark. Line ends become ``\\n``. Raises
    ValueError if it is not text or not a regular file."""
    check_regular_file(path)
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding).lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; save the file with the encoding UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}:{line}: contains a null byte; expected text")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The non-blank lines of a file, stripped, with their line numbers (from 1)."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, stripped) for number, line in lines if (stripped := line.strip())]


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


#: Delimiters of tables, the usual one first, with their names for messages.
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


class Table(NamedTuple):
    """The content of a CSV file: column names, and the line number and values of each row."""

    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The line number of each row of a CSV file, and its values by column; see :func:`parse_table`."""
    table = parse_table(path, columns)
    return [(line, dict(zip(table.header, values, strict=True))) for line, values in table.rows]


def parse_table(path: Path, columns: tuple[str, ...]) -> Table:
    """Read a CSV file. Values are stripped, and blank lines are skipped.

    The delimiter is a comma, semicolon, tab or vertical bar. Column names may have capitals. A table of clips (the
    first of ``columns`` is ``path``) needs no header if its first row begins with the path of a clip. A line that
    begins with ``#`` is a comment, unless it names an existing file or, in a table without paths, has all columns.

    Args:
        path: the file.
        columns: required columns; the file may have more.

    Raises:
        ValueError: the header is missing or incomplete, or a row does not match it; the message names file and line.
    """
    text = _without_comments(path, read_text(path), columns)
    found = _find_header(path, text, columns)
    if found is None:
        raise ValueError(_header_problem(path, text, columns))
    delimiter, header, has_header = found
    repeated = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
    if repeated is not None:
        raise ValueError(f"{path}: the header has two columns {repeated!r}; rename one")
    rows: list[tuple[int, list[str]]] = []
    for number, values in itertools.islice(_rows(path, text, delimiter), 1 if has_header else 0, None):
        if len(values) != len(header):
            raise ValueError(
                f"{path}:{number}: has {len(values)} values, expected {len(header)} "
                f"({delimiter.join(header)[:80]}); quote values that contain {_DELIMITERS[delimiter]}"
            )
        rows.append((number, values))
    return Table(header, rows)


def has_columns(path: Path, columns: tuple[str, ...]) -> bool:
    """Whether a file is a table with a header that has these columns."""
    try:
        found = _find_header(path, _without_comments(path, read_text(path), columns), columns)
    except (ValueError, OSError):
        return False
    return found is not None and found[2]


def _without_comments(path: Path, text: str, columns: tuple[str, ...]) -> str:
    """The text with blank lines instead of comments, so that lines keep their numbers."""

    def is_comment(line: str) -> bool:
        if not line.lstrip().startswith("#"):
            return False
        values = [value.strip().strip('"') for value in re.split(r"[,;\t|]", line)]
        if "path" not in columns:
            return len(values) < len(columns)
        # In "#1,clip.mp4", the label comes first.
        return not any(value.lower().endswith(VIDEO_SUFFIXES) for value in values[1:]) and not any(
            os.path.lexists(path.parent / value.replace("\\", "/")) for value in values if value
        )

    if "#" not in text:
        return text
    return "\n".join("" if is_comment(line) else line for line in text.split("\n"))


def _find_header(path: Path, text: str, columns: tuple[str, ...]) -> tuple[str, list[str], bool] | None:
    """The delimiter, the column names, and whether they are the first row; None if the columns are not found."""
    first = {delimiter: row for delimiter in _DELIMITERS if (row := _first_row(path, text, delimiter))}
    for delimiter, row in first.items():
        header = [name if name in columns else name.lower() for name in row]
        if set(columns) <= set(header):
            return delimiter, header, True
    if columns[0] == "path":
        names = ["path", "label"]
        for delimiter, row in sorted(first.items(), key=lambda item: -len(item[1])):
            if len(columns) <= len(row) <= len(names) and _is_clip(path.parent, row):
                return delimiter, names[: len(row)], False
    return None


def _is_clip(root: Path, row: Sequence[str]) -> bool:
    if row[0].lower().endswith(VIDEO_SUFFIXES):
        return True
    return bool(row[0]) and os.path.lexists(root / row[0]) and not row[-1].lower().endswith(VIDEO_SUFFIXES)


def _first_row(path: Path, text: str, delimiter: str) -> list[str] | None:
    try:
        return next((values for _, values in _rows(path, text, delimiter)), None)
    except ValueError:
        return None


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line and the values of each row that is not blank."""
    text = re.sub(r"\Asep=.\n", "\n", text)  # Excel's way to name the delimiter
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            values = [value.strip() for value in row]
            if any(values):
                yield reader.line_num, values
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: invalid CSV: {error}") from None


def _header_problem(path: Path, text: str, columns: tuple[str, ...]) -> str:
    expected = f"{','.join(columns)!r}"
    number, first = next(((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()), (0, ""))
    if not number:
        return f"{path} is empty; expected the header {expected}"
    problem = f"{path}:{number}: the header is {short_repr(first.strip())}; expected {expected}, separated by commas"
    if columns[0] == "path" and re.fullmatch(r".*\s-?[0-9]+\s*", first):
        problem += " (for lines 'path label' without a header, use the dataset 'list')"
    return problem


def read_classes(root: Path) -> tuple[str, ...] | None:
    """The class names in ``root/classes.txt``, or None if there is no such file. A line that begins with ``#`` is a
    comment, unless there is a directory or a label with this name."""
    path = root / CLASSES
    if not path.exists():
        return None
    text = read_text(path).rstrip()
    if not text:
        raise ValueError(f"{path} is empty; expected one class name per line")
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        name = composed(line.strip())
        if name.startswith("#") and not _is_class(root, name):
            continue
        if not name:
            raise ValueError(f"{path}:{number}: blank line; expected one class name per line")
        if name in lines:
            raise ValueError(f"{path}:{number}: class {short_repr(name)} is already listed in line {lines[name]}")
        lines[name] = number
    if not lines:
        raise ValueError(f"{path} has comments only; expected one class name per line")
    return tuple(lines)


def _is_class(root: Path, name: str) -> bool:
    """Whether a line of ``classes.txt`` that begins with ``#`` is a class and not a comment: a directory or a label in
    a table has this name."""
    directories = [root, *(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))]
    if any(composed(path.name) == name for directory in directories for path in directory.iterdir()):
        return True
    for table in (path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv") and path.is_file()):
        with contextlib.suppress(ValueError, OSError):
            if any(composed(row["label"]) == name for _, row in read_table(table, ("path", "label"))):
                return True
    return False


def read_mirror(root: Path, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The mirrored class of each class from ``root/mirror.csv``, or None if there is no such file."""
    path = root / MIRROR
    if not path.exists():
        return None
    mirror = list(range(len(class_names)))
    index = {name: i for i, name in enumerate(class_names)}
    for line, values in read_table(path, ("class", "mirror")):
        pair = composed(values["class"]), composed(values["mirror"])
        for name in pair:
            if name not in index:
                raise ValueError(f"{path}:{line}: unknown class {short_repr(name)}{suggest(name, class_names)}")
        first, second = (index[name] for name in pair)
        mirror[first], mirror[second] = second, first
    return tuple(mirror)


def class_index(value: object, where: str, count: int) -> int:
    """Parse a label, which annotations store as a number or as a string of digits. Raises ValueError, with a message
    that begins with ``where``, if it is neither, or not in 0..count-1."""
    if isinstance(value, str) and re.fullmatch(rf"\s*-?{INDEX}\s*", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: label is {short_repr(value)}; expected an integer, 0 to {count - 1}")
    if not 0 <= value < count:
        raise ValueError(
            f"{where}: label {value} is out of range, expected 0 to {count - 1}: there are {count} classes"
        )
    return value
