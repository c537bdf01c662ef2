"""Clips in tar files of tens of megabytes, for remote storage: a few large reads instead of many small ones.

A split consists of an index ``<split>.json``, with everything except the content of the clips, and the shards
``<split>-000000.tar``, ``-000001.tar``, … Each shard is in the format of
`webdataset <https://github.com/webdataset/webdataset>`_: clip ``00000012`` is stored as ``00000012.mp4`` (or
``00000012.00001.jpg``, … for a directory of frames) and ``00000012.json``. The clips are shuffled once when they are
written, so that every shard is a random sample of the split.

Index and shards are in one directory, which may be remote if the user passes its URL
(:data:`art.data.files.REMOTE_SCHEMES`). What they contain is data: the names in an index are names of files in that
directory, and members of a shard that are not regular files are ignored.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from art.data.datasets.annotations import FRAME_SUFFIXES, VIDEO_SUFFIXES
from art.data.datasets.base import Clip, ClipSet, check_root, register_dataset
from art.data.decoding.frames import StoredClip, Unreadable, read_files
from art.data.files import PARTIAL, naming_file, parse_location, write_text
from art.extras import import_extra, install_command
from art.terminal import one_line, plural, short_repr

_FORMAT = "art shards 1"
_MAX_NAMES = 3  # clips listed in warnings
_log = logging.getLogger(__name__)
#: Fields of ClipSet that the index stores unchanged: lists, with the type of their elements.
_STORED_FIELDS = {"class_names": str, "prompts": str, "mirror": int, "groups": str}
_TYPE_NAMES: dict[type, str] = {str: "a string", int: "an integer", list: "a list"}
#: Remote directories that the user opened in this process, by the path that :class:`Clip` has for them.
_remote_roots: dict[Path, str] = {}


@dataclass(frozen=True)
class ShardSet(ClipSet):
    """A split stored in shards. The path of a clip is the path of its shard plus the key of the clip in it; for remote
    shards it only names the clip.

    Attributes:
        shards: path or URL of each shard.
        shard_of: the shard of each clip. The clips of a shard are consecutive.
    """

    shards: tuple[str, ...] = ()
    shard_of: tuple[int, ...] = ()


def write_shards(
    clip_set: ClipSet,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 32 * 2**20,
    seed: int = 0,
    check: Callable[[Path], str | None] = lambda _: None,
) -> ShardSet:
    """Write a split into shards. The index is written last, so that incomplete shards are never opened.

    Args:
        clip_set: the split. Files that cannot be read, or are empty, are skipped with a warning, and counted in the
            index ("missing").
        out: output directory; it may contain other splits.
        shard_bytes: size at which a new shard is started. Readers hold several shards in memory.
        seed: seed of the order in which the clips are written.
        check: returns why a clip cannot be read, from its path, or None. By default, contents are not checked.

    Returns:
        the split, as :func:`open_shards` returns it.

    Raises:
        ValueError: ``shard_bytes`` is below 1; ``out`` is not a local path; the split is not valid in the name of a
            shard; a clip is a part of a file, which would be stored in full for each of its clips; or no file can be
            read.
        FileExistsError: the split already exists in ``out``.
    """
    directory = Path(parse_location(out, "out"))
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    _check_name(f"{clip_set.split}-000000.tar", "the name of a shard")
    part = next((clip for clip in clip_set if (clip.start, clip.end) != (None, None)), None)
    if part is not None:
        raise ValueError(
            f"clip {part} is a part of a file, which would be stored in full for each of its clips; cut the clips into "
            "separate files first (art prepare), and write those"
        )
    index = directory / f"{clip_set.split}.json"
    if index.exists():
        raise FileExistsError(f"{index} already exists; choose another directory, or remove it and its shards")
    directory.mkdir(parents=True, exist_ok=True)
    order = list(range(len(clip_set)))
    random.Random(seed).shuffle(order)
    clips, missing = [], 0
    with _ShardWriter(directory, clip_set.split, shard_bytes) as writer:
        for i in order:
            clip = clip_set.clips[i]
            try:
                if (problem := check(clip.path)) is not None:
                    raise Unreadable(problem)
                files = read_files(clip.path)
            except (OSError, Unreadable) as error:
                missing += 1
                if missing <= _MAX_NAMES:
                    _log.warning("clip %s is skipped: %s", clip, error)
                continue
            key, name = f"{i:08d}", clip_set.class_names[clip.label]
            metadata = {"label": clip.label, "class": name, "path": clip_set.relative_path(i), "files": sorted(files)}
            metadata["crc32"] = [zlib.crc32(files[name]) for name in sorted(files)]
            shard = writer.add(key, files | {"json": json.dumps(metadata, ensure_ascii=False).encode()})
            clips.append([shard, key, clip.label])
    if not clips:
        raise ValueError(f"{clip_set.name}/{clip_set.split}: none of its {plural(len(clip_set), 'clip')} can be read")
    content = {"format": _FORMAT, "name": clip_set.name, "url": "", "shards": writer.names, "missing": missing}
    content |= {name: getattr(clip_set, name) for name in _STORED_FIELDS} | {"clips": clips}
    write_text(index, json.dumps(content | {"crc32": _checksum(content)}, ensure_ascii=False))
    return open_shards(directory, clip_set.split)


class _ShardWriter:
    """Writes one shard after another, each under a temporary name until it is complete."""

    def __init__(self, directory: Path, split: str, shard_bytes: int) -> None:
        self._directory, self._split, self._limit = directory, split, shard_bytes
        self._tar: tarfile.TarFile | None = None
        self._bytes = 0
        self.names: list[str] = []

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._close(complete=kind is None)

    def add(self, key: str, files: dict[str, bytes]) -> int:
        """Write a clip and return the number of its shard."""
        if self._bytes >= self._limit:
            self._close(complete=True)
        if self._tar is None:
            self.names.append(f"{self._split}-{len(self.names):06d}.tar")
            self._tar = tarfile.open(self._partial, "w")  # noqa: SIM115 - closed by _close
            self._bytes = 0
        with naming_file(self._partial):
            self._write(key, files)
        return len(self.names) - 1

    def _write(self, key: str, files: dict[str, bytes]) -> None:
        assert self._tar is not None
        for name, content in files.items():
            member = tarfile.TarInfo(f"{key}.{name}")  # without owner and time: the same clips are the same bytes
            member.size, member.mode = len(content), 0o444
            self._tar.addfile(member, io.BytesIO(content))
            self._bytes += len(content)

    @property
    def _partial(self) -> Path:
        return self._directory / f"{self.names[-1]}{PARTIAL}"

    def _close(self, complete: bool) -> None:
        if self._tar is None:
            return
        tar, self._tar = self._tar, None
        try:
            with naming_file(self._partial):
                tar.close()
            if complete:
                self._partial.replace(self._directory / self.names[-1])
        finally:
            self._partial.unlink(missing_ok=True)


# The index


def shard_splits(root: Path) -> tuple[str, ...]:
    """The splits with an index in ``root``."""
    return tuple(sorted(path.stem for path in root.glob("*.json") if _is_index(path)))


def _is_index(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _FORMAT.encode() in file.read(100)


def open_shards(root: str | os.PathLike[str], split: str) -> ShardSet:
    """Open a split written by :func:`write_shards`. No shard is opened.

    Args:
        root: directory of the index and the shards: a local path or, as a string, a URL of
            :data:`art.data.files.REMOTE_SCHEMES`.
        split: name of the split.

    Raises:
        ValueError: the root is another kind of URL, or the index is invalid; the message names it.
        FileNotFoundError: the root or the index does not exist.
        OSError: the index cannot be read.
        ModuleNotFoundError: a library for remote files is not installed.
    """
    location = parse_location(root, "root", allow_remote=True)
    if isinstance(location, str):
        return open_index(f"{location.rstrip('/')}/{split}.json")
    check_root(location)
    path = location / f"{split}.json"
    if not path.is_file():
        found = ", ".join(shard_splits(location)) or "none"
        raise FileNotFoundError(f"{path} does not exist; splits in {location}: {found} (`art shards` writes them)")
    return open_index(path)


def open_index(index: str | os.PathLike[str]) -> ShardSet:
    """Open a split by the path or URL of its index; see :func:`open_shards`."""
    location = parse_location(index, "index", allow_remote=True)
    root = location.parent if isinstance(location, Path) else location.rpartition("/")[0]
    content = _read_index(location)
    path = Path(root)
    if isinstance(root, str):
        _remote_roots[path] = root
    places = tuple(_shard_place(root, content["url"], name, location) for name in content["shards"])
    try:
        for _, key, _ in content["clips"]:
            _check_name(key, "the key of a clip")
        clips = tuple(Clip(path / content["shards"][shard] / key, label) for shard, key, label in content["clips"])
        shard_of = tuple(shard for shard, *_ in content["clips"])
        stored = {name: content[name] for name in _STORED_FIELDS if name in content}
        fields: dict[str, Any] = {name: value if value is None else tuple(value) for name, value in stored.items()}
        return ShardSet(content["name"], Path(location).stem, path, clips, shards=places, shard_of=shard_of, **fields)
    except ValueError as error:
        raise _invalid_index(location, error) from error


# Not as a decorator, which would hide that the result is a ShardSet.
register_dataset("shards", description="clips in tar files written by `art shards`", splits=shard_splits)(open_shards)


def _read_index(location: Path | str) -> dict[str, Any]:
    """The content of an index, with values of the expected types."""
    try:
        with _open_file(location) as file:
            text = file.read()
    except ImportError:
        raise
    except Exception as error:  # of any of the libraries
        raise _read_error(f"index {location}", error) from error
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError(f"it contains {short_repr(content)}, expected an object")
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {short_repr(content['format'])}, expected {_FORMAT!r}")
        checksum = content.pop("crc32", None)  # absent in older files
        if checksum is not None and checksum != _checksum(content):
            raise ValueError("it is damaged: its checksum differs (if you edited the file, remove the entry crc32)")
        _check_types(content)
    except (KeyError, TypeError, IndexError, ValueError, RecursionError) as error:
        raise _invalid_index(location, error) from error
    return content


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _check_types(content: dict[str, Any]) -> None:
    """Raise TypeError or another error unless each value that is used has the expected type."""
    for name, expected in {"name": str, "url": str, "clips": list, "missing": int}.items():
        value = content.get(name, 0) if name == "missing" else content[name]
        if type(value) is not expected:
            raise TypeError(f"{name} is {short_repr(value)}, expected {_TYPE_NAMES[expected]}")
    for name, kind in {"shards": str, **_STORED_FIELDS}.items():
        values = content[name] if name in ("shards", "class_names") else content.get(name, [])
        if name == "mirror" and values is None:  # unknown
            continue
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise TypeError(f"{name} is {short_repr(values)}, expected a list of {kind.__name__}")
        if kind is str:
            "".join(values).encode()  # raises UnicodeEncodeError, which is a ValueError
    for row in content["clips"]:
        if not isinstance(row, list) or [type(value) for value in row] != [int, str, int]:
            raise TypeError(f"clips has {short_repr(row)}, expected [shard, key, label]")
        if not 0 <= row[0] < len(content["shards"]):
            raise IndexError(f"clips has shard {row[0]}, expected 0 to {len(content['shards']) - 1}")


def _invalid_index(location: Path | str, error: Exception) -> ValueError:
    return ValueError(f"{location} is not a valid index of shards: {type(error).__name__}: {one_line(error)}")


def _check_name(name: str, what: str) -> None:
    """Raise ValueError unless ``name`` is the name of a file, which cannot be in another directory."""
    if not name or name in (".", "..") or len(name) > 200 or any(c in "/\\:" or not c.isprintable() for c in name):
        raise ValueError(f"{what} is {short_repr(name)}; expected a file name without / \\ : and control characters")


def _shard_place(root: Path | str, url: str, name: str, index: Path | str) -> str:
    """The path or URL of a shard. The index may name another local directory, but not a URL."""
    _check_name(name, f"{index}: the name of a shard")
    if isinstance(root, str):
        if url:
            raise ValueError(f"{index}: url is {short_repr(url)}; expected an empty one, because the index is remote")
        return f"{root}/{name}"
    if not url:
        return str(root / name)
    parse_location(url, f"{index}: url")
    return str(root / (url.replace("{}", name) if "{}" in url else f"{url}/{name}"))


# Reading shards


def _open_file(location: Path | str) -> IO[bytes]:
    if isinstance(location, Path):
        if location.exists() and not location.is_file():  # opening a named pipe would wait for its writer
            raise OSError(f"{location} is not a regular file")
        return location.open("rb")
    fsspec = import_extra("fsspec", extra="remote", needed_by=f"reading {location}", uses_torch=False)
    try:
        # Not fsspec.open, which would also open the chained URLs (a::b) of a name.
        return fsspec.filesystem(location.partition("://")[0].lower()).open(location, "rb")
    except ImportError as error:
        raise ModuleNotFoundError(f"reading {location} ({error}): {install_command('remote')}") from error


class _ShardFile:
    """The bytes of a shard, for tarfile, which neither reports all kinds of truncation nor stops at the end of a file
    if a member claims to be much larger."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._recent, self._count, self._at_end = file, b"", 0, 0

    def read(self, size: int) -> bytes:
        """Read some bytes. Raises EOFError if the end has been read several times."""
        data = self._file.read(size)
        self._at_end = 0 if data else self._at_end + 1
        if self._at_end > 8:
            raise EOFError("the file is truncated")
        self._count += len(data)
        self._recent = (self._recent + data)[-2 * tarfile.RECORDSIZE :]
        return data

    def is_zero(self, offset: int) -> bool:
        """Whether the block at ``offset``, which was read recently, is one that marks the end of an archive."""
        begin = offset - self._count + len(self._recent)
        return begin >= 0 and self._recent[begin : begin + tarfile.BLOCKSIZE] == bytes(tarfile.BLOCKSIZE)


def _read_members(file: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of each regular file of a shard. Links, devices and sparse files have no content."""
    stream = _ShardFile(file)
    with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
        for member in tar:
            if member.size < 0:
                raise tarfile.ReadError(f"member {short_repr(member.name)} has a negative size")
            directory, slash, name = member.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if stem and dot and member.isreg() and not member.issparse() and (content := tar.extractfile(member)):
                yield directory + slash + stem, suffix.lower(), content.read()
        if not stream.is_zero(tar.offset):
            raise tarfile.ReadError("the file is truncated or damaged: the end of the archive is missing")


def read_shard(place: str | os.PathLike[str]) -> Iterator[tuple[str, StoredClip]]:
    """Read the clips of a shard, in order, with their keys. The shard is read as one stream.

    Args:
        place: a local path or, as a string, a URL.

    Raises:
        OSError: the shard cannot be opened, is truncated, or contains no clips, or a clip is incomplete; raised after
            the clips that can be read.
    """
    found, problem, errors = 0, "", []

    def read_members() -> Iterator[tuple[str, str, bytes]]:
        try:
            with _open_file(parse_location(place, "shard", allow_remote=True)) as file:
                yield from _read_members(file)
        except Exception as error:  # tarfile and the libraries for remote files have no common base class
            errors.append(error)  # raised below, after the last clip before it

    for key, members in itertools.groupby(read_members(), key=lambda member: member[0]):
        stored = [(suffix, content) for _, suffix, content in members]
        files = dict(stored)
        try:
            is_clip = _is_clip(stored, files.pop("json", b"{}"))
        except (ValueError, RecursionError) as error:
            problem = problem or f"clip {key} is incomplete or damaged: {one_line(error)}"
            continue
        if is_clip:
            found += 1
            yield key, StoredClip(f"{place}/{key}", files)
    if errors:
        raise _read_error(f"shard {place}", errors[0]) from errors[0]
    if problem or not found:
        raise OSError(f"shard {place}: {problem or 'contains no clips; expected a file written by `art shards`'}")


def _is_clip(stored: list[tuple[str, bytes]], metadata: bytes) -> bool:
    """Whether the files with the same key are a clip. Raises ValueError if they are not those in its metadata."""
    content = json.loads(metadata)
    expected = content.get("files") if isinstance(content, dict) else None
    files = sorted(file for file in stored if file[0] != "json")
    names = [suffix for suffix, _ in files]
    if expected is None and len(names) == len(stored) and not f".{names[0]}".endswith(VIDEO_SUFFIXES + FRAME_SUFFIXES):
        return False
    if not names or names != expected or len(stored) != len(names) + 1:
        raise ValueError(f"its files are {short_repr(names)}, expected {short_repr(expected)}")
    if content.get("crc32") not in (None, [zlib.crc32(value) for _, value in files]):  # absent in older files
        raise ValueError("its checksum differs")
    return True


def find_stored_clip(path: Path) -> StoredClip:
    """Read one clip of a :class:`ShardSet` by its path. This reads its shard up to the clip: use it for a few clips.
    Raises Unreadable if the shard does not contain the clip, or there is no valid index."""
    name = path.parent.name
    root = _remote_roots.get(path.parent.parent, path.parent.parent)
    split = name.rpartition("-")[0]
    index = f"{root}/{split}.json" if isinstance(root, str) else root / f"{split}.json"
    if isinstance(index, Path) and not index.is_file():
        raise Unreadable(f"is in a shard without an index: {index} does not exist")
    try:
        place = _shard_place(root, _read_index(index)["url"], name, index)
    except ValueError as error:
        raise Unreadable(f"is in a shard without a valid index: {error}") from error
    for key, clip in read_shard(place):
        if key == path.name:
            return clip
    raise Unreadable(f"not found in shard {place}")


def _read_error(what: str, error: Exception) -> OSError:
    return OSError(f"{what} cannot be read: {type(error).__name__}: {one_line(error)}")
