"""Clips, clip sets, and the registry of datasets by name."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from art.data.files import is_url, parse_location


@dataclass(frozen=True)
class Clip:
    """One labeled clip: a video, or the part of it from ``start`` (inclusive) to ``end`` (exclusive).

    Attributes:
        path: the video file, or a directory of numbered frames (``00001.jpg``, …). The path may not exist: missing
            files are reported when clips are read.
        label: index into the class names.
        start: seconds since the first frame of the video; None is the beginning.
        end: seconds since the first frame of the video; None is the end.

    Examples:
        >>> from pathlib import Path
        >>> from art.data import Clip
        >>> print(Clip(Path("gym.mp4"), label=3, start=2.5, end=4.0))
        gym.mp4 [2.5..4 s]
    """

    path: Path
    label: int
    start: float | None = None
    end: float | None = None

    def __str__(self) -> str:
        if self.start is None and self.end is None:
            return str(self.path)
        start = "" if self.start is None else f"{self.start:g}"
        end = "" if self.end is None else f"{self.end:g}"
        return f"{self.path} [{start}..{end} s]"


@dataclass(frozen=True)
class ClipSet:
    """One split of a dataset.

    Attributes:
        name: name of the dataset.
        split: ``"train"``, ``"test"``, …
        root: directory of the dataset.
        clips: the clips, in a fixed order.
        class_names: name of each class; the position is the label.
        prompts: text that describes each class to a text encoder. Defaults to the class names.
        mirror: for each class, the class of its horizontally flipped clips (itself, or its left/right counterpart).
            None: unknown, so clips must not be flipped.
        groups: for each class, the group under which its results are reported (FineGym's sets, such as
            ``"FX_turns"``). Empty: the dataset has no groups.

    Raises:
        ValueError: there are no clips or no classes; a class name is blank or repeated; ``prompts``, ``mirror`` or
            ``groups`` does not have one entry per class; a group is blank; ``mirror`` is not its own inverse; a label
            is out of range; a time span is empty; a clip is listed twice.

    Examples:
        >>> from pathlib import Path
        >>> from art.data import Clip, ClipSet
        >>> clips = (Clip(Path("a.mp4"), 0), Clip(Path("b.mp4"), 1))
        >>> mine = ClipSet("mine", "train", Path("."), clips, ("turn left", "turn right"), mirror=(1, 0))
        >>> mine.labels, mine.prompts
        ((0, 1), ('turn left', 'turn right'))
    """

    name: str
    split: str
    root: Path
    clips: tuple[Clip, ...]
    class_names: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    mirror: tuple[int, ...] | None = None
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            object.__setattr__(self, "prompts", tuple(self.class_names))
        self._check_classes()
        self._check_clips()

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    @property
    def labels(self) -> tuple[int, ...]:
        """The label of each clip."""
        return tuple(clip.label for clip in self.clips)

    def relative_path(self, index: int) -> str:
        """The path of clip ``index`` relative to the root, with forward slashes; the full path if it is elsewhere."""
        path = self.clips[index].path
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def _check_classes(self) -> None:
        where, names, count = f"{self.name}/{self.split}", self.class_names, len(self.class_names)
        if not names:
            raise ValueError(f"{where}: class_names is empty; expected at least one class")
        blank = [i for i, name in enumerate(names) if not name.strip()]
        if blank:
            raise ValueError(f"{where}: class {blank[0]} has a blank name; expected a name for each class")
        if len(set(names)) != count:
            repeated = sorted(name for name, times in Counter(names).items() if times > 1)
            raise ValueError(f"{where}: class names must differ, but {_quoted(repeated)} appear more than once")
        for field, values in {"prompts": self.prompts, "groups": self.groups}.items():
            if values and len(values) != count:
                raise ValueError(
                    f"{where}: {field} has {len(values)} entries, expected one for each of {count} classes"
                )
        ungrouped = [name for name, group in zip(names, self.groups, strict=False) if not group.strip()]
        if ungrouped:
            raise ValueError(f"{where}: the group of {_quoted(ungrouped)} is blank; expected a name for each class")
        if self.mirror is None:
            return
        if len(self.mirror) != count or not all(0 <= other < count for other in self.mirror):
            raise ValueError(f"{where}: mirror must hold a class index for each of {count} classes, got {self.mirror}")
        wrong = [names[i] for i, other in enumerate(self.mirror) if self.mirror[other] != i]
        if wrong:
            raise ValueError(f"{where}: mirror must be its own inverse, but is not for {_quoted(wrong)}")

    def _check_clips(self) -> None:
        where, count = f"{self.name}/{self.split}", len(self.class_names)
        if not self.clips:
            raise ValueError(f"{where}: no clips found in {self.root}; expected at least one")
        for index, clip in enumerate(self.clips):
            if not 0 <= clip.label < count:
                raise ValueError(
                    f"{where}: clip {index} ({clip}) has label {clip.label}, expected 0 to {count - 1}: there are "
                    f"{count} classes"
                )
            if (clip.start or 0.0) < 0 or (clip.end is not None and clip.end <= (clip.start or 0.0)):
                raise ValueError(f"{where}: clip {index} ({clip}) has no duration; expected 0 <= start < end")
        # A path caches its string, which is needed to open the file anyway and hashes faster than the path.
        seen = set()
        for index, clip in enumerate(self.clips):
            key = (str(clip.path), clip.start, clip.end)
            if key in seen:
                raise ValueError(f"{where}: clip {clip} is listed twice (the second time as clip {index}); remove one")
            seen.add(key)


def mirror_by_words(
    class_names: Sequence[str], pairs: Sequence[tuple[str, str]] = (("left", "right"),)
) -> tuple[int, ...]:
    """Derive the class of flipped clips from the class names, by swapping the words of each pair.

    Args:
        class_names: name of each class.
        pairs: words that a horizontal flip swaps. A name without any of them keeps its class.

    Returns:
        for each class, the index of its mirrored class, as in :attr:`ClipSet.mirror`.

    Raises:
        ValueError: a swapped name is not a class.
    """
    swap = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, swap)) + r")\b")
    index = {name: i for i, name in enumerate(class_names)}
    mirror = []
    for name in class_names:
        swapped = pattern.sub(lambda word: swap[word.group()], name)
        if swapped not in index:
            raise ValueError(
                f"class {name!r} has no mirror image: there is no class {swapped!r}; expected both or neither"
            )
        mirror.append(index[swapped])
    return tuple(mirror)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


#: Reads one split: called with the root directory and the name of the split.
Opener = Callable[[Path, str], ClipSet]


@dataclass(frozen=True)
class RequiredFile:
    """An annotation file that a dataset reader looks for below the root.

    Attributes:
        path: the file, or, if it is missing, the first path that was searched.
        found: whether the file exists.
        source: where its authors publish it, a URL or a sentence.
        splits: the splits that cannot be opened without it. Empty: it is only needed to cut clips out of longer videos.

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
    """A registered dataset.

    Attributes:
        splits: the published splits, or a function that returns the splits found in a root directory.
        required_files: returns the annotation files that the reader looks for in a root directory.
    """

    name: str
    opener: Opener
    description: str = ""  # one line
    splits: tuple[str, ...] | Callable[[Path], tuple[str, ...]] | None = None
    required_files: Callable[[Path], tuple[RequiredFile, ...]] | None = None


#: Module of each dataset in this package; imported when the dataset is first used.
_BUILT_IN = {
    "motion": "art.data.motion.dataset",
    "folder": "art.data.datasets.directories",
    **dict.fromkeys(("csv", "list"), "art.data.datasets.custom"),
    "shards": "art.data.shards",
    **dict.fromkeys(
        ("finegym99", "finegym288", "finegym99_v1.0", "finegym288_v1.0", "diving48"), "art.data.datasets.sports"
    ),
    **dict.fromkeys(("ntu60_xsub", "ntu60_xview", "ntu120_xsub", "ntu120_xset"), "art.data.datasets.ntu"),
    **dict.fromkeys(("kinetics400", "kinetics600"), "art.data.datasets.kinetics"),
    **dict.fromkeys(("something_v1", "something_v2"), "art.data.datasets.something"),
}
_MAX_LISTED = 20  # valid names listed in an error
_MAX_COMPARED, _MAX_LENGTH = 1000, 100  # number and length of names among which a similar one is searched
_entries: dict[str, DatasetEntry] = {}


def register_dataset(
    name: str,
    *,
    description: str = "",
    splits: tuple[str, ...] | Callable[[Path], tuple[str, ...]] | None = None,
    required_files: Callable[[Path], tuple[RequiredFile, ...]] | None = None,
) -> Callable[[Opener], Opener]:
    """Decorator that registers a function ``(root, split) -> ClipSet`` for :func:`open_dataset` as ``name``.

    The other arguments are those of :class:`DatasetEntry`. If ``splits`` is a tuple, the function is only called with
    one of them.

    Raises:
        ValueError: the name is already registered.

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
        other, own_name = _entries.get(name), (opener.__module__, opener.__qualname__)
        # The same function may register again, as when its module is reloaded.
        same = other is not None and (other.opener.__module__, other.opener.__qualname__) == own_name
        if not same and (other is not None or _BUILT_IN.get(name, opener.__module__) != opener.__module__):
            raise ValueError(f"dataset {name!r} is already registered; register {opener.__qualname__} by another name")
        _entries[name] = DatasetEntry(name, opener, description, splits, required_files)
        return opener

    return register


def dataset_names() -> tuple[str, ...]:
    """The registered dataset names, sorted.

    Examples:
        >>> from art.data import dataset_names
        >>> "finegym99" in dataset_names()
        True
    """
    return tuple(sorted({*_BUILT_IN, *_entries}))


def dataset_entry(name: str) -> DatasetEntry:
    """The registry entry of a dataset.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in _entries and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    if name not in _entries:
        raise ValueError(f"unknown dataset {name!r}{suggest(name, dataset_names())}")
    return _entries[name]


def dataset_splits(name: str, root: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits of a dataset: the published ones, or, for custom datasets, those found in ``root``.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: ``root`` is not a directory.

    Examples:
        >>> from art.data import dataset_splits
        >>> dataset_splits("folder", "data/mine")
        ('test', 'train')
    """
    entry = dataset_entry(name)
    check_root(Path(root))
    return (entry.splits(Path(root)) if callable(entry.splits) else entry.splits) or ()


def required_files(name: str, root: str | os.PathLike[str]) -> tuple[RequiredFile, ...]:
    """The annotation files that the reader of ``name`` looks for below ``root``, found or missing.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: ``root`` is not a directory.

    Examples:
        >>> from art.data import required_files
        >>> [file.path.name for file in required_files("diving48", "data")][:1]
        ['Diving48_V2_train.json']
    """
    entry = dataset_entry(name)
    check_root(Path(root))
    return entry.required_files(Path(root)) if entry.required_files else ()


def open_dataset(name: str, root: str | os.PathLike[str], split: str) -> ClipSet:
    """Read the list of clips of one split. No video is opened.

    Args:
        name: one of :func:`dataset_names`, including names registered with :func:`register_dataset`.
        root: directory of the dataset. For the dataset "shards" it may also be a string with a URL of
            :data:`art.data.files.REMOTE_SCHEMES`.
        split: one of :func:`dataset_splits`.

    Raises:
        ValueError: the name or split is unknown, the root is a URL, or an annotation is invalid; the message names file
            and line.
        FileNotFoundError: ``root`` or an annotation file does not exist.

    Examples:
        >>> from art.data import open_dataset
        >>> clips = open_dataset("folder", "data/mine", "train")
        >>> len(clips), clips.class_names
        (2, ('run', 'walk'))
    """
    entry = dataset_entry(name)
    if entry.splits and not callable(entry.splits) and split not in entry.splits:
        raise ValueError(f"dataset {name!r} has no split {split!r}; expected one of {', '.join(entry.splits)}")
    if is_url(root) and name != "shards":
        raise ValueError(f"root {root!s} is a URL, but dataset {name!r} must be local; only 'shards' can be remote")
    location = parse_location(root, "root", allow_remote=True)
    return entry.opener(location, split)  # type: ignore[arg-type]  # a string if the shards are remote


def suggest(word: str, known: Sequence[str]) -> str:
    """The end of an error message about an unknown word: the closest known word, or else the list of known words."""
    # Comparing two words takes time that is quadratic in their lengths.
    if len(known) <= _MAX_COMPARED and len(word) <= _MAX_LENGTH:
        close = difflib.get_close_matches(word, [name for name in known if len(name) <= _MAX_LENGTH], n=1)
        if close:
            return f"; did you mean {close[0]!r}?"
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    listed = (name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}..." for name in known[:_MAX_LISTED])
    return f"; expected one of {', '.join(listed)}{more}"


def check_root(root: Path) -> None:
    """Raise FileNotFoundError unless ``root`` is a directory."""
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} {'is not a directory' if root.exists() else 'does not exist'}")
