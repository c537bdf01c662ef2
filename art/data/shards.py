"""Clips in tar files of tens of megabytes, for remote storage: a few large reads instead of many small ones.

A split consists of an index ``<split>.json``, with everything except the content of the clips, and the shards
``<split>-000000.tar``, ``-000001.tar``, … Each shard is in the format of
`webdataset <https://github.com/webdataset/webdataset>`_: clip ``00000012`` is stored as ``00000012.mp4`` (or
``00000012.00001.jpg``, … for a directory of frames) and ``00000012.json``. The shards may be elsewhere: any URL that
webdataset opens (https:, s3:, gs:, pipe:). The clips are shuffled once when they are written, so that every shard is a
random sample of the split.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art.data.datasets.base import Clip, ClipSet, check_root, register_dataset
from art.data.decoding.frames import StoredClip, Unreadable, numbered_frames
from art.data.files import write_text
from art.extras import import_extra

_FORMAT = "art shards 1"
#: Fields of ClipSet that the index stores unchanged.
_STORED_FIELDS = ("class_names", "prompts", "mirror", "groups")


@dataclass(frozen=True)
class ShardSet(ClipSet):
    """A split stored in shards. The path of a clip is the path of its shard plus the key of the clip in it.

    Attributes:
        shards: path or URL of each shard.
        shard_of: the shard of each clip. The clips of a shard are consecutive.
    """

    shards: tuple[str, ...] = ()
    shard_of: tuple[int, ...] = ()


def write_shards(
    clip_set: ClipSet, out: str | os.PathLike[str], *, shard_bytes: int = 32 * 2**20, seed: int = 0, url: str = ""
) -> ShardSet:
    """Write a split into shards. The index is written last, so that incomplete shards are never opened.

    Args:
        clip_set: the split. Files that cannot be read are skipped, and counted in the index ("missing").
        out: output directory; it may contain other splits.
        shard_bytes: size at which a new shard is started. Readers hold several shards in memory.
        seed: seed of the order in which the clips are written.
        url: where the shards will be read from: a prefix of their names, ``https://host/set/``, or a pattern with
            ``{}`` for the name, ``pipe:aws s3 cp s3://bucket/{} -``. Empty: the directory of the index.

    Returns:
        the split, as :func:`open_shards` returns it.

    Raises:
        ValueError: ``shard_bytes`` is below 1; a clip is a part of a file, which would be stored in full for each of
            its clips; or no file can be read.
        FileExistsError: the split already exists in ``out``.
        ModuleNotFoundError: webdataset is not installed.
    """
    out = Path(out)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    part = next((clip for clip in clip_set if (clip.start, clip.end) != (None, None)), None)
    if part is not None:
        raise ValueError(
            f"clip {part} is a part of a file, which would be stored in full for each of its clips; cut the clips into "
            "separate files first (art prepare), and write those"
        )
    index = out / f"{clip_set.split}.json"
    if index.exists():
        raise FileExistsError(f"{index} already exists; choose another directory, or remove it and its shards")
    out.mkdir(parents=True, exist_ok=True)
    order = list(range(len(clip_set)))
    random.Random(seed).shuffle(order)
    clips, missing = [], 0
    with _ShardWriter(out, clip_set.split, shard_bytes) as writer:
        for i in order:
            clip = clip_set.clips[i]
            try:
                files = _read_files(clip.path)
            except (OSError, Unreadable):
                missing += 1
                continue
            key, name = f"{i:08d}", clip_set.class_names[clip.label]
            metadata = {"label": clip.label, "class": name, "path": clip_set.relative_path(i), "files": sorted(files)}
            shard = writer.add({"__key__": key, **files, "json": metadata})
            clips.append([shard, key, clip.label])
    if not clips:
        raise ValueError(f"{clip_set.name}/{clip_set.split}: none of its {len(clip_set)} clips can be read")
    content = {"format": _FORMAT, "name": clip_set.name, "url": url, "shards": writer.names, "missing": missing}
    content |= {name: getattr(clip_set, name) for name in _STORED_FIELDS} | {"clips": clips}
    write_text(index, json.dumps(content, ensure_ascii=False))
    return open_shards(out, clip_set.split)


def _read_files(path: Path) -> dict[str, bytes]:
    """The files of a clip, by the suffix of their name in the shard."""
    if not path.is_dir():
        return {path.suffix.lower().lstrip(".") or "video": path.read_bytes()}
    names = numbered_frames(entry.name for entry in path.iterdir())
    numbered = (f"{i:06d}{Path(name).suffix.lower()}" for i, name in enumerate(names))
    return {stored: (path / name).read_bytes() for stored, name in zip(numbered, names, strict=True)}


class _ShardWriter:
    """Writes one shard after another, each under a temporary name until it is complete."""

    def __init__(self, directory: Path, split: str, shard_bytes: int) -> None:
        self._library = import_extra("webdataset", extra="webdataset", needed_by="writing shards")
        self._directory, self._split, self._limit = directory, split, shard_bytes
        self._writer: Any = None
        self._bytes = 0
        self.names: list[str] = []

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._close(complete=kind is None)

    def add(self, sample: dict[str, Any]) -> int:
        """Write a clip and return the number of its shard."""
        if self._writer is not None and self._bytes >= self._limit:
            self._close(complete=True)
        if self._writer is None:
            self.names.append(f"{self._split}-{len(self.names):06d}.tar")
            # Without owner and time, the same clips always result in the same bytes.
            self._writer = self._library.TarWriter(str(self._partial), encoder=_encode, user="", group="", mtime=0)
            self._bytes = 0
        self._writer.write(sample)
        self._bytes += sum(len(value) for value in sample.values() if isinstance(value, bytes))
        return len(self.names) - 1

    @property
    def _partial(self) -> Path:
        return self._directory / f"{self.names[-1]}.partial"

    def _close(self, complete: bool) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        if complete:
            self._partial.replace(self._directory / self.names[-1])
        else:
            self._partial.unlink()


def _encode(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {**sample, "json": json.dumps(sample["json"], ensure_ascii=False).encode()}


def shard_splits(root: Path) -> tuple[str, ...]:
    """The splits with an index in ``root``."""
    return tuple(sorted(path.stem for path in root.glob("*.json") if _FORMAT in path.read_text("utf-8")[:100]))


def open_shards(root: str | os.PathLike[str], split: str) -> ShardSet:
    """Open a split written by :func:`write_shards`. No shard is opened."""
    root = Path(root)
    check_root(root)
    path = root / f"{split}.json"
    if not path.is_file():
        found = ", ".join(shard_splits(root)) or "none"
        raise FileNotFoundError(f"{path} does not exist; splits in {root}: {found} (`art shards` writes them)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {_FORMAT!r}")
        fields: dict[str, Any] = {
            name: value if value is None else tuple(value) for name, value in content.items() if name in _STORED_FIELDS
        }
        names, url = content["shards"], content["url"]
        clips = tuple(Clip(root / names[shard] / key, label) for shard, key, label in content["clips"])
        shard_of = tuple(shard for shard, *_ in content["clips"])
        shards = tuple(_shard_url(root, url, name) for name in names)
        return ShardSet(content["name"], split, root, clips, shards=shards, shard_of=shard_of, **fields)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is not a valid index of shards: {type(error).__name__}: {error}") from error


# Not as a decorator, which would hide that the result is a ShardSet.
register_dataset("shards", description="clips in tar files written by `art shards`", splits=shard_splits)(open_shards)


def _shard_url(root: Path, url: str, name: str) -> str:
    if not url:
        return str(root / name)
    return url.replace("{}", name) if "{}" in url else url.rstrip("/") + "/" + name


def read_shard(place: str) -> Iterator[tuple[str, StoredClip]]:
    """Read the clips of a shard, in order, with their keys. The shard is read as one stream.

    Raises:
        OSError: the shard cannot be opened or is truncated; raised after the clips before the error.
        ModuleNotFoundError: webdataset is not installed.
    """
    import_extra("webdataset", extra="webdataset", needed_by="data.name=shards")
    from webdataset.tariterators import tarfile_samples

    try:
        for sample in tarfile_samples([{"url": place}]):
            key, metadata = sample["__key__"], json.loads(sample.get("json", "{}"))
            files = {name: value for name, value in sample.items() if not name.startswith("__") and name != "json"}
            if files and sorted(files) == metadata.get("files"):  # otherwise the shard is truncated within the clip
                yield key, StoredClip(f"{place}/{key}", files)
    except Exception as error:  # tarfile, webdataset's openers and the programs they call have no common base class
        reason = " ".join(str(error.args[0] if error.args else error).split())[:300]
        raise OSError(f"shard {place} cannot be read: {type(error).__name__}: {reason}") from error


def find_stored_clip(path: Path) -> StoredClip:
    """Read one clip of a :class:`ShardSet` by its path. This reads its shard up to the clip: use it for a few clips.
    Raises Unreadable if the shard does not contain the clip, or the index does not exist."""
    root, name = path.parent.parent, path.parent.name
    index = root / f"{name.rpartition('-')[0]}.json"
    if not index.is_file():
        raise Unreadable(f"is in a shard without an index: {index} does not exist")
    place = _shard_url(root, json.loads(index.read_text(encoding="utf-8"))["url"], name)
    for key, clip in read_shard(place):
        if key == path.name:
            return clip
    raise Unreadable(f"not found in shard {place}")
