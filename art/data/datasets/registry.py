"""Data sets by name."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from art.data.datasets.clips import ClipSet

#: Reads one split: called with the root folder and the name of the split.
Opener = Callable[[Path, str], ClipSet]


@dataclass(frozen=True)
class RequiredFile:
    """An annotation file that a reader looks for below the root of a data set.

    Attributes:
        path: where it is, or, where it is missing, the first of the places that were looked at.
        found: whether it is there.
        source: where its authors publish it, a URL or a sentence.
        splits: the splits that cannot be opened without it. Empty: it is needed only where clips are cut out of longer
            videos.

    Examples:
        >>> from art.data import required_files
        >>> file = required_files("finegym99", "data")[0]
        >>> file.path.name, file.found
        ('gym99_train_element_v1.1.txt', False)
    """

    path: Path
    found: bool
    source: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class DatasetEntry:
    """What is known of a data set before any of it is read.

    Attributes:
        name: what :func:`open_dataset` calls it.
        opener: reads one split.
        description: one line: what it is.
        splits: the splits that its authors publish, or a function that tells from the root what there is.
        required_files: tells from the root which annotation files the reader looks for; none where the clips' own
            places say everything.
    """

    name: str
    opener: Opener
    description: str = ""
    splits: tuple[str, ...] | Callable[[Path], tuple[str, ...]] | None = None
    required_files: Callable[[Path], tuple[RequiredFile, ...]] | None = None


#: Where the data sets that come with this package are registered: imported when they are asked for.
_BUILT_IN = {
    "motion": "art.data.motion",
    "folder": "art.data.datasets.folder",
    "csv": "art.data.datasets.table",
    "list": "art.data.datasets.path_list",
    "shards": "art.data.loading.shards",
    **dict.fromkeys(("finegym99", "finegym288", "finegym99_v1.0", "finegym288_v1.0"), "art.data.datasets.finegym"),
    "diving48": "art.data.datasets.diving48",
    **dict.fromkeys(("ntu60_xsub", "ntu60_xview", "ntu120_xsub", "ntu120_xset"), "art.data.datasets.ntu"),
    **dict.fromkeys(("kinetics400", "kinetics600"), "art.data.datasets.kinetics"),
    **dict.fromkeys(("something_v1", "something_v2"), "art.data.datasets.something"),
}
_LISTED = 20  # so many known words are named in an error
_entries: dict[str, DatasetEntry] = {}


def register_dataset(
    name: str,
    *,
    description: str = "",
    splits: tuple[str, ...] | Callable[[Path], tuple[str, ...]] | None = None,
    required_files: Callable[[Path], tuple[RequiredFile, ...]] | None = None,
) -> Callable[[Opener], Opener]:
    """Decorator that makes a function ``(root, split) -> ClipSet`` available to :func:`open_dataset` as ``name``.

    The other arguments are those of :class:`DatasetEntry`. Where ``splits`` are given, the function is called with
    one of them only.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> from pathlib import Path
        >>> from art.data import Clip, ClipSet, open_dataset, register_dataset
        >>> @register_dataset("one_clip", splits=("test",))
        ... def open_one_clip(root, split):
        ...     return ClipSet("one_clip", split, root, (Clip(root / "clip.mp4", 0),), ("walk", "run"))
        >>> open_dataset("one_clip", ".", "test").class_names
        ('walk', 'run')
    """

    def register(opener: Opener) -> Opener:
        other = _entries.get(name)
        same = other is not None and _origin(other.opener) == _origin(opener)
        if not same and (other is not None or _BUILT_IN.get(name, opener.__module__) != opener.__module__):
            raise ValueError(
                f"name {name!r} is taken by another data set; register {opener.__qualname__} as something else"
            )
        _entries[name] = DatasetEntry(name, opener, description, splits, required_files)
        return opener

    return register


def dataset_names() -> tuple[str, ...]:
    """The names that :func:`open_dataset` knows, sorted.

    Examples:
        >>> from art.data import dataset_names
        >>> "finegym99" in dataset_names()
        True
    """
    return tuple(sorted({*_BUILT_IN, *_entries}))


def dataset_entry(name: str) -> DatasetEntry:
    """What is known of the data set ``name``.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _entries and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    if name not in _entries:
        raise ValueError(f"data set {name!r} is unknown{nearest(name, dataset_names())}")
    return _entries[name]


def dataset_splits(name: str, root: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits of a data set: those that its authors publish, or, for a user's own clips, those in ``root``.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: ``root`` is no folder.

    Examples:
        >>> from art.data import dataset_splits
        >>> dataset_splits("folder", "data/mine")
        ('test', 'train')
    """
    entry = dataset_entry(name)
    check_root(Path(root))
    return (entry.splits(Path(root)) if callable(entry.splits) else entry.splits) or ()


def required_files(name: str, root: str | os.PathLike[str]) -> tuple[RequiredFile, ...]:
    """The annotation files that the reader of ``name`` looks for below ``root``, whether they are there or not.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: ``root`` is no folder.

    Examples:
        >>> from art.data import required_files
        >>> [file.path.name for file in required_files("diving48", "data")][:1]
        ['Diving48_V2_train.json']
    """
    entry = dataset_entry(name)
    check_root(Path(root))
    return entry.required_files(Path(root)) if entry.required_files else ()


def open_dataset(name: str, root: str | os.PathLike[str], split: str) -> ClipSet:
    """The clips of one split of a data set. No video is opened.

    Args:
        name: one of :func:`dataset_names`, or what was registered with :func:`register_dataset`.
        root: the folder that holds the data set.
        split: one of :func:`dataset_splits`.

    Raises:
        ValueError: an unknown name or split, or contents that do not fit together; the message says where.
        FileNotFoundError: ``root`` or an annotation file is not there.

    Examples:
        >>> from art.data import open_dataset
        >>> clips = open_dataset("folder", "data/mine", "train")
        >>> len(clips), clips.class_names
        (2, ('run', 'walk'))
    """
    entry = dataset_entry(name)
    if entry.splits and not callable(entry.splits) and split not in entry.splits:
        raise ValueError(f"data set {name!r} has no split {split!r}; expected one of {', '.join(entry.splits)}")
    return entry.opener(Path(root), split)


def _origin(opener: Opener) -> tuple[str, str]:
    return opener.__module__, opener.__qualname__


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """The end of a sentence about an unknown word: what was probably meant, or else what there is."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"; expected one of {', '.join(known[:_LISTED])}{more}"


def check_root(root: Path) -> None:
    """Raise FileNotFoundError unless ``root`` is a folder."""
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is {'no folder' if root.exists() else 'not there'}")
