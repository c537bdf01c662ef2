"""Clips in tar files of tens of megabytes each, for storage that is far away: few large reads in place of many small.

A split is ``<split>.json``, which names everything but the content, beside ``<split>-000000.tar``, ``-000001.tar``, ….
Each tar is a shard of the form of `webdataset <https://github.com/webdataset/webdataset>`_: of clip ``00000012`` it
holds ``00000012.mp4`` (or ``00000012.00001.jpg``, … for a folder of frames) and ``00000012.json``. The tars may be
elsewhere: any URL that webdataset opens (https:, s3:, gs:, pipe:). The clips are shuffled once when they are written,
so that every shard is a fair sample of the split.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import check_root, register_dataset
from art.data.decoding.frames import StoredClip, Unreadable, numbered_frames
from art.data.files import atomic_write
from art.extras import import_extra

_FORMAT = "art shards 1"
#: What of a ClipSet goes into the index as it is.
_KEPT = ("class_names", "prompts", "mirror", "groups")


@dataclass(frozen=True)
class ShardSet(ClipSet):
    """A split that is in shards. The path of a clip is that of its shard, and the key of the clip within it.

    Attributes:
        shards: where each shard is, a path or a URL.
        shard_of: for each clip, its shard. The clips of a shard follow each other.
    """

    shards: tuple[str, ...] = ()
    shard_of: tuple[int, ...] = ()


def write_shards(
    clip_set: ClipSet, out: str | os.PathLike[str], *, shard_bytes: int = 32 * 2**20, seed: int = 0, url: str = ""
) -> ShardSet:
    """Write a split into shards. The index comes last: without it, there is nothing to be opened by mistake.

    Args:
        clip_set: the split. Files that cannot be read are left out, and counted in the index ("missing").
        out: the folder to write into; it may hold other splits.
        shard_bytes: of a shard, at which the next one is begun. Readers hold some shards in memory.
        seed: of the order in which the clips are written.
        url: where the shards will be read, in front of the name of each: ``https://host/set/``, or with ``{}`` in place
            of the name: ``pipe:aws s3 cp s3://bucket/{} -``. Empty: beside the index.

    Returns:
        the split as it will be opened.

    Raises:
        ValueError: ``shard_bytes`` is below 1; a clip is a part of a file, which would be stored whole for each of its
            clips; or no file can be read.
        FileExistsError: the split has been written there before.
        ModuleNotFoundError: webdataset is not installed.
    """
    out = Path(out)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    part = next((clip for clip in clip_set if (clip.start, clip.end) != (None, None)), None)
    if part is not None:
        raise ValueError(
            f"clip {part} is a part of a file, which would be stored whole for each of its clips; cut the clips into "
            "files of their own first (art prepare), and write those"
        )
    index = out / f"{clip_set.split}.json"
    if index.exists():
        raise FileExistsError(f"{index} is there already; choose another folder, or remove it and its shards")
    out.mkdir(parents=True, exist_ok=True)
    order = list(range(len(clip_set)))
    random.Random(seed).shuffle(order)
    clips, missing = [], 0
    with _Shards(out, clip_set.split, shard_bytes) as shards:
        for i in order:
            clip = clip_set.clips[i]
            try:
                files = _files(clip.path)
            except (OSError, Unreadable):
                missing += 1
                continue
            key = f"{i:08d}"
            about: dict[str, Any] = {
                "label": clip.label,
                "class": clip_set.class_names[clip.label],
                "path": clip_set.relative_path(i),
            }
            about["files"] = sorted(files)
            shard = shards.add({"__key__": key, **files, "json": about})
            clips.append([shard, key, clip.label])
    if not clips:
        raise ValueError(f"{clip_set.name}/{clip_set.split}: none of its {len(clip_set)} clips can be read")
    content = {"format": _FORMAT, "name": clip_set.name, "url": url, "shards": shards.names, "missing": missing}
    content |= {name: getattr(clip_set, name) for name in _KEPT} | {"clips": clips}
    atomic_write(index, lambda path: path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8"))
    return open_shards(out, clip_set.split)


def _files(path: Path) -> dict[str, bytes]:
    """What is stored of a clip, by the ending of its name in the shard."""
    if not path.is_dir():
        return {path.suffix.lower().lstrip(".") or "video": path.read_bytes()}
    names = numbered_frames(entry.name for entry in path.iterdir())
    numbered = (f"{i:06d}{Path(name).suffix.lower()}" for i, name in enumerate(names))
    return {stored: (path / name).read_bytes() for stored, name in zip(numbered, names, strict=True)}


class _Shards:
    """Writes one shard after the other, each under another name until it is whole."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self._library = import_extra("webdataset", extra="webdataset", needed_by="writing shards")
        self._folder, self._split, self._limit = folder, split, shard_bytes
        self._writer: Any = None
        self._bytes = 0
        self.names: list[str] = []

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._finish(kind is None)

    def add(self, sample: dict[str, Any]) -> int:
        """Write a clip; the number of its shard."""
        if self._writer is not None and self._bytes >= self._limit:
            self._finish(True)
        if self._writer is None:
            self.names.append(f"{self._split}-{len(self.names):06d}.tar")
            # No owner and no time: the same clips are the same shards.
            self._writer = self._library.TarWriter(str(self._partial), encoder=_encoded, user="", group="", mtime=0)
            self._bytes = 0
        self._writer.write(sample)
        self._bytes += sum(len(value) for value in sample.values() if isinstance(value, bytes))
        return len(self.names) - 1

    @property
    def _partial(self) -> Path:
        return self._folder / f"{self.names[-1]}.partial"

    def _finish(self, whole: bool) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        if whole:
            self._partial.replace(self._folder / self.names[-1])
        else:
            self._partial.unlink()


def _encoded(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value, ensure_ascii=False).encode() if name == "json" else value
        for name, value in sample.items()
    }


def shard_splits(root: Path) -> tuple[str, ...]:
    """The splits that have an index in ``root``."""
    return tuple(sorted(path.stem for path in root.glob("*.json") if _FORMAT in path.read_text("utf-8")[:100]))


def open_shards(root: str | os.PathLike[str], split: str) -> ShardSet:
    """A split that :func:`write_shards` has written; no shard is opened.

    Raises:
        FileNotFoundError: there is no such folder, or no index in it.
        ValueError: the index is not one of shards, or its parts do not fit together.
    """
    root = Path(root)
    check_root(root)
    path = root / f"{split}.json"
    if not path.is_file():
        there = ", ".join(shard_splits(root)) or "none"
        raise FileNotFoundError(f"there is no index {path}; splits in {root}: {there} (art shards writes them)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {_FORMAT!r}")
        kept: dict[str, Any] = {
            name: value if value is None else tuple(value) for name, value in content.items() if name in _KEPT
        }
        names, url = content["shards"], content["url"]
        clips = tuple(Clip(root / names[shard] / key, label) for shard, key, label in content["clips"])
        shard_of = tuple(shard for shard, *_ in content["clips"])
        places = tuple(_place(root, url, name) for name in names)
        return ShardSet(content["name"], split, root, clips, shards=places, shard_of=shard_of, **kept)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is no index of shards: {type(error).__name__}: {error}") from error


register_dataset("shards", description="clips in tar files that `art shards` has written", splits=shard_splits)(
    open_shards
)


def _place(root: Path, url: str, name: str) -> str:
    if not url:
        return str(root / name)
    return url.replace("{}", name) if "{}" in url else url.rstrip("/") + "/" + name


def read_shard(place: str) -> Iterator[tuple[str, StoredClip]]:
    """The clips of a shard, in its order, each with its key. The shard is read as one stream.

    Raises:
        OSError: it cannot be opened, or ends too soon: after the clips that came before.
        ModuleNotFoundError: webdataset is not installed.
    """
    import_extra("webdataset", extra="webdataset", needed_by="data.name=shards")
    from webdataset.tariterators import tarfile_samples

    try:
        for sample in tarfile_samples([{"url": place}]):
            key, about = sample["__key__"], json.loads(sample.get("json", "{}"))
            files = {name: value for name, value in sample.items() if not name.startswith("__") and name != "json"}
            if files and sorted(files) == about.get("files"):  # else the shard ends within the clip
                yield key, StoredClip(f"{place}/{key}", files)
    except Exception as error:  # of tarfile, of webdataset's openers and of what they call: no common base
        reason = " ".join(str(error.args[0] if error.args else error).split())[:300]
        raise OSError(f"shard {place} cannot be read: {type(error).__name__}: {reason}") from error


def find_stored_clip(path: Path) -> StoredClip:
    """One clip of a :class:`ShardSet` by its path. Its shard is read up to it: for a few clips, not for many.

    Raises:
        Unreadable: the shard does not hold it, or there is no index.
        OSError: the shard cannot be read.
    """
    root, name = path.parent.parent, path.parent.name
    index = root / f"{name.rpartition('-')[0]}.json"
    if not index.is_file():
        raise Unreadable(f"is in a shard without an index: there is no {index}")
    place = _place(root, json.loads(index.read_text(encoding="utf-8"))["url"], name)
    for key, clip in read_shard(place):
        if key == path.name:
            return clip
    raise Unreadable(f"is not there: shard {place} ends without it")
