"""Inputs of prediction: what a path is (video, frames, directory, table, list, shard, index), and its clips."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from art._deprecated import renamed_names
from art.data.datasets.annotations import (
    COMMON_SUFFIXES,
    FRAME_SUFFIXES,
    VIDEO_SUFFIXES,
    is_hidden,
    read_lines,
    read_table,
)  # fmt: skip
from art.data.datasets.custom import (
    ClipPaths,
    has_other_label,
    is_comment,
    list_line_error,
    split_list_line,
    time_span,
    unquoted,
)
from art.data.decoding.frames import StoredClip
from art.data.files import parse_location
from art.data.shards import open_index, read_shard

#: Kinds of inputs. "directory" also means a directory of frames.
InputKind = Literal["video", "directory", "table", "list", "shard", "index"]
_KIND_OF_SUFFIX: dict[str, InputKind] = {
    ".csv": "table", ".tsv": "table", ".txt": "list", ".list": "list", ".tar": "shard", ".json": "index",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One clip.

    Attributes:
        name: name of the clip in the predictions: its path, or shard and key.
        place: the video file, directory of frames, or clip in memory. None if the clip is missing.
        start: seconds since the first frame of the file; None is the beginning.
        end: seconds since the first frame of the file; None is the end.
        problem: why ``place`` is None.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import Item
        >>> Item("clip.mp4 from 1 s", Path("clip.mp4"), start=1.0).end is None
        True
    """

    name: str
    place: Path | StoredClip | None
    start: float | None = None
    end: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """Clips that are read together: a group of files, or the clips of one shard.

    Attributes:
        items: the clips, if they are files.
        shard: path or URL of the shard.
        keys: the expected clips of the shard; empty if they are unknown before the shard is read.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import open_inputs
        >>> source = open_inputs([Path("clip.mp4")])[0]
        >>> [item.name for item in source.open()]
        ['clip.mp4']
    """

    items: tuple[Item, ...] = ()
    shard: str | None = None
    keys: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that identify the source: those of its clips, or of its shard."""
        if self.shard is not None:
            return (self.shard, *self.keys)
        return tuple(f"{item.name} {item.start} {item.end}" for item in self.items)

    def open(self) -> Iterator[Item]:
        """Iterate over the clips. A shard is read as one stream. Clips missing from it are returned with a problem, and
        so is a shard without known keys that cannot be read to its end."""
        if self.shard is None:
            yield from self.items
            return
        missing, problem = dict.fromkeys(self.keys), f"not found in shard {self.shard}"
        try:
            for key, clip in read_shard(self.shard):
                missing.pop(key, None)
                yield Item(f"{self.shard}/{key}", clip)
        except OSError as error:
            problem = str(error)
            if not self.keys:
                yield Item(self.shard, None, problem=problem)
        for key in missing:
            yield Item(f"{self.shard}/{key}", None, problem=problem)


def input_kind(path: Path | str) -> InputKind:
    """The kind of an input: a directory by looking at the file system, anything else by its suffix. A path with an
    unknown suffix is a video. Raises ValueError for a URL that is not one of a shard or an index."""
    suffix = (path if isinstance(path, Path) else PurePosixPath(urlsplit(path).path)).suffix.lower()
    if suffix in (".tar", ".json"):
        return _KIND_OF_SUFFIX[suffix]
    if isinstance(path, str):
        raise ValueError(f"clip {path}: only shards (.tar, or the .json index of a split) can be remote; download it")
    return "directory" if path.is_dir() else _KIND_OF_SUFFIX.get(suffix, "video")


def open_inputs(paths: Sequence[str | os.PathLike[str]], clips_at_once: int = 512) -> list[Source]:
    """List the clips of some paths, in order and without duplicates.

    A path is a video file; a directory of frames, or a directory with videos or directories of frames at any depth; a
    ``.csv`` table with a column ``path`` and, optionally, ``time_start`` and ``time_end`` (seconds); a ``.txt`` or
    ``.list`` file with one path per line (a label after the path is ignored); a ``.tar`` shard; or the ``.json`` index
    of a split in shards. Paths in tables and lists are absolute or relative to the file's directory.

    Args:
        paths: the paths. A video that does not exist is listed, too, and reported when it is read. A shard or an index
            may be remote: a string with a URL of :data:`art.data.files.REMOTE_SCHEMES`.
        clips_at_once: number of files per source; each shard is one source.

    Raises:
        ValueError: a directory, table or list has no clips, or a line is invalid; the message names file and line. Or
            an argument or an index contains a URL that is not supported there.
        FileNotFoundError: a table, list or index does not exist.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import open_inputs
        >>> [len(source.items) for source in open_inputs([Path("data/mine/train")])]
        [2]
    """
    if clips_at_once < 1:
        raise ValueError(f"clips_at_once must be at least 1, got {clips_at_once}")
    items: dict[tuple[str, float | None, float | None], Item] = {}
    shards: dict[str, Source] = {}
    for path in [parse_location(path, "clip", allow_remote=True) for path in paths]:
        kind = input_kind(path)
        if kind == "shard":
            shards.setdefault(str(path), Source(shard=str(path)))
        elif kind == "index":
            shards |= {str(source.shard): source for source in _sources_of_index(path)}
        else:
            for item in _items_of(Path(path), kind):
                items.setdefault((item.name, item.start, item.end), item)
    files = list(items.values())
    parts = [tuple(files[begin : begin + clips_at_once]) for begin in range(0, len(files), clips_at_once)]
    return [*(Source(part) for part in parts), *shards.values()]


__getattr__ = renamed_names(__name__, {"find_sources": "open_inputs"})


def _items_of(path: Path, kind: InputKind) -> list[Item]:
    if kind == "video":
        return [Item(str(path), path)]
    if kind == "directory":
        return [Item(str(clip), clip) for clip in _clips_in(path)]
    items = _items_of_table(path) if kind == "table" else _items_of_list(path)
    if not items:
        raise ValueError(f"{path} lists no clips; expected at least one")
    return items


def _clips_in(root: Path) -> list[Path]:
    """Videos at any depth, and directories with images and no videos; sorted, without hidden ones."""
    found: list[Path] = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = sorted(name for name in subdirectories if not is_hidden(name))
        visible = [name for name in sorted(files) if not is_hidden(name)]
        videos = [name for name in visible if name.lower().endswith(VIDEO_SUFFIXES)]
        found += [Path(directory) / name for name in videos]
        if not videos and any(name.lower().endswith(FRAME_SUFFIXES) for name in visible):
            found.append(Path(directory))
    if not found:
        raise ValueError(
            f"{root} contains no clips; expected video files ({COMMON_SUFFIXES}) or directories of frames at "
            "any depth (for shards, pass their index: DIR/test.json)"
        )
    return found


def _items_of_table(path: Path) -> list[Item]:
    items, paths = [], ClipPaths(path.parent)
    for line, values in read_table(path, ("path",)):
        where = f"{path}:{line}"
        if not values["path"]:
            raise ValueError(f"{where}: path is empty")
        clip = paths(values["path"])
        items.append(Item(str(clip), clip, *time_span(values, where)))
    return items


def _items_of_list(path: Path) -> list[Item]:
    items, paths = [], ClipPaths(path.parent)
    for number, text in read_lines(path):
        if is_comment(paths, text):
            continue
        clip, parts = paths(unquoted(text)), split_list_line(paths, text)
        if parts is not None and not os.path.lexists(clip):  # a label, which is ignored
            clip = paths(parts[0])
        elif parts is None and has_other_label(paths, text):
            raise list_line_error(path, number, text)
        items.append(Item(str(clip), clip))
    return items


def _sources_of_index(path: Path | str) -> list[Source]:
    split = open_index(path)
    keys: dict[int, list[str]] = {}
    for clip, shard in zip(split.clips, split.shard_of, strict=True):
        keys.setdefault(shard, []).append(clip.path.name)
    return [Source(shard=split.shards[shard], keys=tuple(held)) for shard, held in sorted(keys.items())]
