"""Custom datasets in class directories ("folder"), with or without directories of splits.

``<root>/<split>/<class>/<clip>``, where splits may have their usual spellings (``Train``, ``validation``), or
``<root>/<class>/<clip>``, for which a split is generated: stratified, and by subdirectories of the classes, so that
clips of a person or session stay together. ``splits.csv`` in the root or in a run directory stores a generated split.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from art.data.datasets.annotations import (
    CLASSES,
    COMMON_SUFFIXES,
    FRAME_SUFFIXES,
    VIDEO_SUFFIXES,
    composed,
    is_hidden,
    read_classes,
    read_mirror,
)
from art.data.datasets.base import Clip, ClipSet, check_root, register_dataset, suggest
from art.data.datasets.splits import (
    GENERATED_SPLITS,
    SPLITS,
    describe_split,
    directory_split,
    find_split,
    mentioned_splits,
    read_splits,
    split_clips,
    split_name,
)
from art.terminal import plural, short_repr

_MAX_NAMES = 3  # directories listed in a message
_log = logging.getLogger(__name__)


def directory_splits(root: Path) -> tuple[str, ...]:
    """The splits of :func:`open_directory`, sorted: "train", "val" and "test" for directories with one of their usual
    names, and other directories with the same classes; or those generated for class directories."""
    splits = _split_directories(root)
    if splits:
        return tuple(sorted(splits))
    return GENERATED_SPLITS if any(_holds_clips(root / name) for name in _subdirectories(root)) else ()


def lacks_split_directories(root: Path) -> bool:
    """Whether ``root`` has class directories, but no directories of splits."""
    return not _split_directories(root)


@register_dataset("folder", description="your own clips, one directory per class", splits=directory_splits)
def open_directory(
    root: Path, split: str, *, table: Path | None = None, seed: int = 0, test_fraction: float = 0.2
) -> ClipSet:
    """Open a split of clips in class directories.

    A clip is a video file or a directory of frames, in the class directory or its subdirectories. Without
    ``classes.txt``, the classes are the sorted names of the class directories of all splits, so that all splits use the
    same indices. Prompts are class names with underscores replaced by spaces.

    Args:
        root: contains ``<split>/<class>/<clip>`` or ``<class>/<clip>``.
        split: name of a split, or another spelling of it. Without a test split, "test" opens the validation split.
        table: ``splits.csv`` of a run, used if there are no directories of splits and most of its clips are in
            ``root``. Default: the one in ``root``.
        seed: selects another split, if one is generated.
        test_fraction: fraction of the clips of each class for the test, if a split is generated.

    Raises:
        FileNotFoundError: ``root`` is not a directory.
        ValueError: the split does not exist or has no clips, or a class is not in ``classes.txt``.
    """
    check_root(root)
    splits = _split_directories(root)
    if splits:
        return _open_split(root, split, splits)
    found = find_split(split, GENERATED_SPLITS)
    if found is not None:
        train, test = split_directory(root, table=table, seed=seed, test_fraction=test_fraction).clip_sets
        return train if found == "train" else test
    directories = _subdirectories(root)
    if split not in directories:
        raise ValueError(
            f"{root} has no split {split!r}; found: {', '.join(directories[:20]) or 'none'}; expected {root}/{split}, "
            f"or one of {', '.join(GENERATED_SPLITS)}, which are generated for class directories{_table_hint(root)}"
        )
    return _open_split(root, split, {name: name for name in directories})


@dataclass(frozen=True)
class GeneratedSplit:
    """A split generated for class directories, or read from a table.

    Attributes:
        clip_sets: the clips for training, and those for the test.
        splits: the split of each clip, by its path relative to the root: the content of ``splits.csv``.
        notes: what a user should know about the split.
    """

    clip_sets: tuple[ClipSet, ClipSet]
    splits: dict[str, str]
    notes: list[str]


def split_directory(
    root: Path, *, table: Path | None = None, seed: int = 0, test_fraction: float = 0.2
) -> GeneratedSplit:
    """Make the split of ``<root>/<class>/<clip>``; arguments and errors are those of :func:`open_directory`.

    The subdirectory of a class, as in ``run/anna/1.mp4``, is the group of its clips; see
    :func:`art.data.datasets.splits.split_clips`.
    """
    check_root(root)
    listed = _list_classes(root)
    splits: dict[str, str] = {}
    notes: list[str] = []
    for file in filter(None, (table, root / SPLITS)):
        if not splits and file.is_file():
            splits, notes = _splits_of_table(file, listed, required=file == root / SPLITS)
    is_new = not splits
    if is_new:
        splits = _make_split(listed, seed, test_fraction)
    class_names = _class_names(root, [_class_of(name) for name in splits])
    parts = {split: sorted(name for name in splits if splits[name] == split) for split in ("train", "test")}
    train, test = (_clip_set(root, split, part, class_names, is_new) for split, part in parts.items())
    if is_new:
        notes = describe_split(train, test, [[group_of(name) for name in part] for part in parts.values()])
    return GeneratedSplit((train, test), splits, notes)


def _make_split(listed: Sequence[str], seed: int, test_fraction: float) -> dict[str, str]:
    names = [composed(name).rpartition(".")[0] for name in listed]  # without suffix: the same after re-encoding
    if len(set(names)) < len(names):
        names = list(listed)
    index = {name: i for i, name in enumerate(dict.fromkeys(map(_class_of, listed)))}
    labels = [index[_class_of(name)] for name in listed]
    groups = [group_of(name) for name in listed]
    assigned = split_clips(names, labels, groups, seed=seed, test_fraction=test_fraction)
    return dict(zip(listed, assigned, strict=True))


def _clip_set(root: Path, split: str, names: list[str], class_names: tuple[str, ...], is_new: bool) -> ClipSet:
    if not names:
        expected = "a class with at least two clips" if is_new else f"{SPLITS} with rows of this split"
        raise ValueError(f"{root}: no clips for the split {split!r}; expected {expected}")
    index = {name: i for i, name in enumerate(class_names)}
    unknown = next((name for name in names if _class_of(name) not in index), None)
    if unknown is not None:
        name = _class_of(unknown)
        raise ValueError(f"{root / name}: {name!r} is not in {root / CLASSES}{suggest(name, class_names)}")
    clips = tuple(Clip(root / name, index[_class_of(name)]) for name in names)
    return ClipSet("folder", split, root, clips, class_names, _prompts(class_names), read_mirror(root, class_names))


def _splits_of_table(table: Path, listed: Sequence[str], *, required: bool) -> tuple[dict[str, str], list[str]]:
    """The split of each clip in a table, and what differs from the clips that exist. Missing clips remain listed.
    Empty if most are missing and the table is not ``required``: it belongs to other clips."""
    existing = {composed(name): name for name in listed}
    splits = read_splits(table)
    for name in splits:
        if "/" not in name or name.startswith(("/", "../")):
            raise ValueError(f"{table}: path is {short_repr(name)}; expected <class>/<clip>, such as 'run/1.mp4'")
    missing = sum(name not in existing for name in splits)
    if not required and 2 * missing > len(splits):
        return {}, []
    notes = [f"{missing} of {len(splits)} clips in {table} do not exist"] if missing else []
    new = [name for key, name in existing.items() if key not in splits]
    if new:
        notes.append(f"not in {table}, and not used: {plural(len(new), 'clip')}, such as {new[0]}")
    return {existing.get(name, name): split for name, split in splits.items()}, notes


def _open_split(root: Path, split: str, splits: dict[str, str]) -> ClipSet:
    """Open ``<root>/<split>/<class>/<clip>``; ``splits`` are the directories by split."""
    found = find_split(split, splits)
    if found is None and (root / split).is_dir() and not is_hidden(split):
        found, splits = split, {**splits, split: split}
    if found is None:
        only_train = f"; to hold out a part of the training clips, use {root / splits[next(iter(splits))]} as the root"
        raise ValueError(
            f"{root} has no split {split!r}; found: {', '.join(sorted(splits))}; expected {root}/{split}/<class>/<clip>"
            f"{only_train if list(splits) == ['train'] else ''}"
        )
    # An exact name is used as such: saved runs may name a directory "validation".
    name, directory = (split, root / split) if split in splits.values() else (found, root / splits[found])
    directories = _subdirectories(directory)
    class_names = _class_names(
        root, sorted({name for other in splits.values() for name in _subdirectories(root / other)})
    )
    index = {name: i for i, name in enumerate(class_names)}
    clips: list[Clip] = []
    skipped: list[str] = []
    for class_directory in directories:
        label = index.get(composed(class_directory))
        if label is None:
            raise ValueError(
                f"{directory / class_directory}: {class_directory!r} is not in {root / CLASSES}"
                f"{suggest(class_directory, class_names)}"
            )
        listing = _list_clips(directory / class_directory)
        clips += [Clip(directory / class_directory / name, label) for name in listing.clips]
        skipped += [f"{class_directory}/{other}" for other in listing.others]
    if not clips:
        raise ValueError(
            f"{directory} has no clips in {len(directories)} class directories ({len(skipped)} other files); "
            f"expected {directory}/<class>/<clip> ending in {COMMON_SUFFIXES}, or directories of frames"
        )
    _report_skipped(directory, skipped)
    prompts, mirror = _prompts(class_names), read_mirror(root, class_names)
    return ClipSet("folder", name, root, tuple(clips), class_names, prompts, mirror)


def _class_names(root: Path, directories: Sequence[str]) -> tuple[str, ...]:
    """The names in ``classes.txt``, or else those of the class directories."""
    names = read_classes(root)
    if names is None:
        return tuple(sorted({composed(name) for name in directories}))
    return names


def _prompts(class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in class_names)


def _class_of(name: str) -> str:
    return composed(name.partition("/")[0])


def group_of(name: str) -> str | None:
    """The subdirectory of a class in which a clip is; None if it is in the class directory itself."""
    parts = name.split("/")
    return composed(parts[1]).casefold() if len(parts) > 2 else None


# Listing of directories


@dataclass
class _Listing:
    """Names of clips and of other files, relative to a directory."""

    clips: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _split_directories(root: Path) -> dict[str, str]:
    """The directories of splits by the names of the splits; empty if the directories in ``root`` are classes.

    A class may be called "train" or "test", too: a directory of a split has subdirectories. A directory that
    ``classes.txt`` lists is a class, unless its name is exactly that of a split.
    """
    directories = _subdirectories(root)
    listed = _listed_classes(root) if any(map(mentioned_splits, directories)) else frozenset()
    named = [name for name in directories if split_name(name) or (directory_split(name) and name not in listed)]
    if not any(_subdirectories(root / name) for name in named) and len(named) < len(directories):
        _check_unrecognized(root, [name for name in directories if name not in listed])
        return {}
    splits: dict[str, str] = {}
    for name in sorted(named, key=lambda name: (split_name(name) is None, name)):
        split = str(directory_split(name))
        if split in splits:
            raise ValueError(f"{root}: {splits[split]} and {name} are both the split {split!r}; move them together")
        splits[split] = name
    if len(named) == len(directories):
        return splits
    classes = {name for directory in named for name in _subdirectories(root / directory)}
    others = [name for name in directories if name not in named]
    if not splits:
        _check_unrecognized(root, [name for name in others if name not in listed])
    return splits | {name: name for name in others if not classes.isdisjoint(_subdirectories(root / name))}


def _listed_classes(root: Path) -> frozenset[str]:
    """The classes in ``classes.txt``; empty if there is no such file."""
    return frozenset(read_classes(root) or ())


def _check_unrecognized(root: Path, directories: Sequence[str]) -> None:
    """Raise ValueError if directories that mention different splits contain the same subdirectories: they are splits
    with names that are not recognized, and would become classes."""
    mentioned = {name: mentioned_splits(name) for name in directories if mentioned_splits(name)}
    if len({split for splits in mentioned.values() for split in splits}) < 2:
        return
    inner = [other for name in mentioned for other in _subdirectories(root / name)]
    if len(set(inner)) < len(inner):
        raise ValueError(
            f"{root}: {', '.join(mentioned)} seem to be splits, but have names that are not recognized; rename them to "
            f"train, val or test, as in {root}/train/<class>/<clip> (if they are classes, list them all in {CLASSES})"
        )


def _table_hint(root: Path) -> str:
    """The end of an error message if ``root`` has a table or list that is named after a split."""
    for path in sorted(root.iterdir()):
        name = {".csv": "csv", ".tsv": "csv", ".txt": "list", ".list": "list"}.get(path.suffix.lower())
        if name is not None and split_name(path.stem) is not None:
            return f"; for the clips in {path.name}, use the dataset {name!r} (data.name={name})"
    return ""


def _list_classes(root: Path) -> list[str]:
    """The paths of all clips in the class directories of ``root``, relative to it, sorted."""
    listing = _Listing()
    without: list[str] = []
    directories = _subdirectories(root)
    for name in directories:
        part = _list_clips(root / name)
        listing.clips += [f"{name}/{clip}" for clip in part.clips]
        listing.others += [f"{name}/{other}" for other in part.others]
        if not part.clips:
            without.append(name)
    classes = {_class_of(name) for name in listing.clips}
    inner = {part.split("/")[1] for part in listing.clips if part.count("/") > 1}
    exact = {name for name in inner if split_name(name)}
    expected = (
        f"expected {root}/<class>/<clip> or {root}/<split>/<class>/<clip>, with clips ending in {COMMON_SUFFIXES}"
    )
    if not classes:
        raise ValueError(
            f"{root} has no clips in {len(directories)} {'directory' if len(directories) == 1 else 'directories'}; "
            f"{expected}, or directories of frames{_table_hint(root)}"
        )
    if len(classes) == 1:
        (name,) = classes
        hint = f"; if {root / name} contains the classes, use it as the root" if inner else ""
        raise ValueError(
            f"{root} has only one class with clips, {name!r}; expected at least two class directories{hint}"
            f"{_table_hint(root)}"
        )
    if inner and all(map(directory_split, inner)) and (len(set(map(directory_split, inner))) > 1 or inner <= exact):
        listed = ", ".join(sorted(inner))
        raise ValueError(
            f"{root}: the classes contain directories of splits ({listed}); expected {root}/<split>/<class>"
        )
    if without:
        listed = ", ".join(without[:_MAX_NAMES])
        _log.warning(
            "directories without clips in %s, which are no classes: %d, such as %s", root, len(without), listed
        )
    with os.scandir(root) as entries:
        loose = sorted(entry.name for entry in entries if _is_video(entry))
    _report_skipped(root, listing.others)
    if loose:
        count = plural(len(loose), "video")
        _log.warning("skipping %s in %s outside the class directories, such as %s", count, root, loose[0])
    return sorted(listing.clips)


def _list_clips(directory: Path) -> _Listing:
    """The sorted clips in a class directory and its subdirectories, and its other files.

    Of the subdirectories of a directory, one is inspected to find out whether they are directories of frames; if so,
    the others are not listed, so that listing is fast with many clips.
    """
    videos, subdirectories, others = [], [], []
    with os.scandir(directory) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            _check_name(directory, entry.name)
            if _is_video(entry):
                videos.append(entry.name)
            elif not entry.is_dir():
                others.append(entry.name)
            elif not _is_loop(entry):
                subdirectories.append(entry.name)
    subdirectories.sort()
    if _are_frames(directory, subdirectories):
        return _Listing(sorted(videos + subdirectories), sorted(others))
    listing = _Listing(videos, others)
    for name in subdirectories:
        part = _list_clips(directory / name)
        listing.clips += [f"{name}/{clip}" for clip in part.clips]
        listing.others += [f"{name}/{other}" for other in part.others]
    return _Listing(sorted(listing.clips), sorted(listing.others))


def _are_frames(directory: Path, subdirectories: Sequence[str]) -> bool:
    """Whether the subdirectories are directories of frames: the first that is not empty has images and no videos."""
    for name in subdirectories:
        with os.scandir(directory / name) as entries:
            visible = [entry for entry in entries if not is_hidden(entry.name)]
        if any(_is_video(entry) for entry in visible):
            return False
        if any(entry.name.lower().endswith(FRAME_SUFFIXES) for entry in visible):
            return True
        if any(entry.is_dir() for entry in visible):
            return False
    return False


def _holds_clips(directory: Path) -> bool:
    listing = _list_clips(directory)
    return bool(listing.clips)


def _is_video(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(VIDEO_SUFFIXES) and not is_hidden(entry.name)


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Whether a directory is a link to a directory that contains it."""
    return entry.is_symlink() and Path(entry.path).parent.resolve().is_relative_to(Path(entry.path).resolve())


def _check_name(directory: Path, name: str) -> None:
    if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ValueError(f"{str(directory)!r} contains {name!r}, which is not UTF-8; rename the file")


def _subdirectories(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())


def _report_skipped(directory: Path, skipped: Sequence[str]) -> None:
    if skipped:
        first = directory / skipped[0]
        _log.warning("skipping %s in %s (not videos), such as %s", plural(len(skipped), "file"), directory, first)
