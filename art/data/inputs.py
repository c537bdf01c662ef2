"""What is to be predicted: single clips, and what lists them: folders, tables, lists, shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from art.data.datasets.annotations import FRAME_SUFFIXES, VIDEO_SUFFIXES, read_lines, read_table
from art.data.datasets.table import time_span
from art.data.decoding.frames import StoredClip
from art.data.loading.shards import open_shards, read_shard

LISTS = (".txt", ".list")


@dataclass(frozen=True)
class Item:
    """One clip.

    Attributes:
        name: what it is called in the answers: its path, or shard and key.
        place: the file, a folder of frames, or either in memory. None: it should be there and is not.
        start: seconds since the first frame of the file; None is its beginning.
        end: likewise; None is its end.
        problem: why there is no ``place``.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import Item
        >>> Item("clip.mp4 from 1 s on", Path("clip.mp4"), start=1.0).end is None
        True
    """

    name: str
    place: Path | StoredClip | None
    start: float | None = None
    end: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """Clips that are read together: some files, or those of a shard.

    Attributes:
        items: the clips, where they are files.
        shard: path or URL of the shard.
        keys: the clips that the shard should hold; empty: what it holds is known once it has been read.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import find_sources
        >>> source = find_sources([Path("clip.mp4")], clips_at_once=8)[0]
        >>> [item.name for item in source.open()]
        ['clip.mp4']
    """

    items: tuple[Item, ...] = ()
    shard: str | None = None
    keys: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the source from another one: the names of its clips, or the shard."""
        if self.shard is not None:
            return (self.shard, *self.keys)
        return tuple(f"{item.name} {item.start} {item.end}" for item in self.items)

    def open(self) -> Iterator[Item]:
        """The clips. A shard is read as one stream; what it should hold and does not comes as a problem, and so does a
        shard of which nothing else is known, where it cannot be read to its end."""
        if self.shard is None:
            yield from self.items
            return
        missing, problem = dict.fromkeys(self.keys), f"shard {self.shard} does not hold it"
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


def find_sources(inputs: Sequence[Path], clips_at_once: int) -> list[Source]:
    """The clips that some paths mean, in the order of the paths; each clip once.

    A path is a video file; a folder with videos or folders of frames at any depth, or a folder of frames itself; a
    ``.csv`` table with a column ``path`` and perhaps ``time_start`` and ``time_end`` (seconds); a ``.txt`` or ``.list``
    file with a path a line (what follows it there as a label is not looked at); a shard, ``.tar``; or the ``.json``
    index of a split that is in shards. Paths in tables and lists are relative to their folder, or absolute.

    Args:
        inputs: the paths. A video that is not there is an item all the same: it is told of with the answers.
        clips_at_once: so many files make a source; a shard is one.

    Raises:
        ValueError: a folder, table or list without clips, or a line that does not fit; it names file and line.
        FileNotFoundError: there is no such table, list or index.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import find_sources
        >>> [len(source.items) for source in find_sources([Path("data/mine/train")], clips_at_once=8)]
        [2]
    """
    if clips_at_once < 1:
        raise ValueError(f"clips_at_once must be at least 1, got {clips_at_once}")
    items: dict[tuple[str, float | None, float | None], Item] = {}
    shards: dict[str, Source] = {}
    for path in inputs:
        suffix = path.suffix.lower()
        if suffix == ".tar":
            shards.setdefault(str(path), Source(shard=str(path)))
        elif suffix == ".json":
            shards |= {str(source.shard): source for source in _of_index(path)}
        else:
            for item in _items(path, suffix):
                items.setdefault((item.name, item.start, item.end), item)
    files = list(items.values())
    parts = [tuple(files[begin : begin + clips_at_once]) for begin in range(0, len(files), clips_at_once)]
    return [*(Source(part) for part in parts), *shards.values()]


def _items(path: Path, suffix: str) -> list[Item]:
    if path.is_dir():
        return [Item(str(clip), clip) for clip in _in_folder(path)]
    if suffix == ".csv":
        return _of_table(path)
    if suffix in LISTS:
        return _of_list(path)
    return [Item(str(path), path)]


def _in_folder(root: Path) -> list[Path]:
    """Videos at any depth, and folders that hold pictures and no videos; sorted, hidden ones left out."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen = [name for name in sorted(files) if not name.startswith(".")]
        videos = [name for name in seen if name.lower().endswith(VIDEO_SUFFIXES)]
        found += [Path(folder) / name for name in videos]
        if not videos and any(name.lower().endswith(FRAME_SUFFIXES) for name in seen):
            found.append(Path(folder))
    if not found:
        raise ValueError(
            f"{root} holds no clips; expected video files ({', '.join(VIDEO_SUFFIXES)}) or folders of frames at any "
            "depth (shards are named by their index: DIR/test.json)"
        )
    return found


def _of_table(path: Path) -> list[Item]:
    items = []
    for line, values in read_table(path, ("path",)):
        where = f"{path}:{line}"
        if not values["path"]:
            raise ValueError(f"{where}: path is empty")
        clip = path.parent / values["path"]
        items.append(Item(str(clip), clip, *time_span(values, where)))
    return _some(items, path)


_LABELLED = re.compile(r"(.*[^\s,])[\s,]+-?\d+")


def _of_list(path: Path) -> list[Item]:
    items = []
    for _, text in read_lines(path):
        clip, labelled = path.parent / text, _LABELLED.fullmatch(text)
        while labelled is not None and not clip.exists():  # a label, and before it perhaps a number of frames
            clip, labelled = path.parent / labelled[1], _LABELLED.fullmatch(labelled[1])
        items.append(Item(str(clip), clip))
    return _some(items, path)


def _some(items: list[Item], path: Path) -> list[Item]:
    if not items:
        raise ValueError(f"{path} lists no clips; expected at least one")
    return items


def _of_index(path: Path) -> list[Source]:
    split = open_shards(path.parent, path.stem)
    keys: dict[int, list[str]] = {}
    for clip, shard in zip(split.clips, split.shard_of, strict=True):
        keys.setdefault(shard, []).append(clip.path.name)
    return [Source(shard=split.shards[shard], keys=tuple(held)) for shard, held in sorted(keys.items())]
