"""Locations of inputs, and crash-safe files: atomic writes, and a journal from which interrupted work resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

#: URL schemes of remote shards, which are read through fsspec.
REMOTE_SCHEMES = ("s3", "gs", "hf", "https")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # at least two characters: C: is a drive
#: Suffix of files that are being written.
PARTIAL = ".partial"


def parse_location(location: str | os.PathLike[str], what: str, *, allow_remote: bool = False) -> Path | str:
    """Check where an input is stored. This is the only function that accepts a URL.

    A URL is a string and never becomes a path, and a path never becomes a URL, because ``Path`` removes one of two
    slashes. So a location that is derived from the contents of a file, as a path, cannot reach the network.

    Args:
        location: a local path, or a URL.
        what: the argument, or the file and field, for the error message.
        allow_remote: accept a URL of :data:`REMOTE_SCHEMES`. Only for a location that the user passed; False for the
            contents of a file.

    Returns:
        a local path, which may not exist, or a URL as a string.

    Raises:
        ValueError: the location is neither; in particular, it is a command for a shell (``pipe:``).
    """
    text = os.fspath(location)
    match = _SCHEME.match(text)
    if match is None:
        return Path(text)
    if allow_remote and is_url(location):
        return text
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if Path(text).exists():  # a colon in the name of a file
            return Path(text)
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    schemes = ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
    if match[1].lower() == "pipe":
        problem = "is a command, and commands are no longer run"
    elif is_url(text) and not allow_remote:
        problem = "is a URL; only shards that are named on the command line can be remote"
    else:
        problem = "is neither an existing file or directory nor a supported URL"
    raise ValueError(
        f"{what} {shown!r} {problem}. Pass the URL of remote shards ({schemes}) with data.root=URL or art predict URL, "
        "or use a local path"
    )


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a URL of one of :data:`REMOTE_SCHEMES`."""
    return isinstance(location, str) and location.lower().startswith(tuple(f"{name}://" for name in REMOTE_SCHEMES))


def check_regular_file(path: Path) -> None:
    """Raise ValueError if something exists at ``path`` that is not a regular file: a directory, a device, or a named
    pipe, which would be read until another process writes to it."""
    try:
        mode = path.stat().st_mode
    except OSError:  # opening the file reports why
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}; expected a regular file")


class DamagedFile(ValueError):
    """A file that cannot be read, or that differs from its checksum."""


def read_json_mapping(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that contains an object.

    Raises:
        DamagedFile: If the file is empty, is not JSON, or contains something else.
    """
    check_regular_file(path)
    data = path.read_bytes()
    if not data.strip(b" \t\r\n\0"):
        raise DamagedFile(f"{path}: the file is empty ({len(data)} bytes); restore it from a copy")
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: cannot be read as JSON ({error}); the file is damaged, restore it") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path}: contains a {type(content).__name__}, expected a JSON object")
    return content


def file_sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class WriteError(OSError):
    """An output file cannot be written, for example because the disk is full."""


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Add the path to an OSError of writing, which has none if a write fails, unlike opening the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise WriteError(error.errno, error.strerror, str(path)) from error


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Create or replace a file, and its parent directories, so that ``path`` is never incomplete: ``write`` writes it
    under the temporary name passed to it, which is renamed, or removed if an exception is raised. An OSError names the
    file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with naming_file(path):
            write(partial)
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8. Lone surrogates, from file names in another encoding, are escaped as in
    JSON."""
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def existing_ancestor(path: Path) -> Path:
    """Return the path itself if it exists, or the closest directory above it that does."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def check_writable(directory: Path, argument: str) -> None:
    """Raise ValueError, which names the ``argument``, unless files can be written to ``directory``. It need not exist,
    and is not created."""
    existing = existing_ancestor(directory)
    if not existing.is_dir():
        raise ValueError(f"{argument} {directory}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{argument} {directory} is not writable; use another directory")


class Journal:
    """An append-only file in JSON Lines format with an entry for each finished output file.

    Use it as a context manager. While it is open, its directory, which is created if it does not exist, is locked
    against other processes: opening it again raises ValueError. Opening it reads the entries and removes files that a
    killed process left incomplete. ``entries`` has the last entry of each file, by name (the value of ``"file"``).
    """

    def __init__(self, path: Path) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self._path = path

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+", encoding="utf-8")
        try:
            _lock(self._file, self._path.parent)
            self._read()
        except BaseException:
            self._file.close()
            raise
        for partial in self._path.parent.rglob(f"*{PARTIAL}"):
            partial.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entry: dict[str, Any]) -> None:
        """Append an entry. Raises WriteError if the journal cannot be written."""
        with naming_file(self._path):
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def _read(self) -> None:
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):  # an incomplete line
                entry = json.loads(line)
                self.entries[entry["file"]] = entry
        if text and not text.endswith("\n"):
            self._file.write("\n")


def _lock(file: TextIO, directory: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process is writing to {directory}; wait for it to finish or use another directory"
        ) from None
    except OSError:
        return  # the file system does not support locks
