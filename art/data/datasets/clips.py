"""What a data set is to the rest of the code: a list of labelled clips."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """One labelled clip: a video, or the part of it from ``start`` (included) to ``end`` (excluded).

    Attributes:
        path: the video file, or a folder that holds its frames as numbered pictures (``00001.jpg``, …). It need not be
            there: what is missing is reported when the clips are read.
        label: index into the class names.
        start: seconds since the first frame of the video; None is its beginning.
        end: seconds since the first frame of the video; None is its end.

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
    """One split of a data set.

    Attributes:
        name: the data set's name.
        split: ``"train"``, ``"test"``, …
        root: the folder that holds it.
        clips: the clips, in a fixed order.
        class_names: the name of each class; the position is the label.
        prompts: the text that describes each class to a text encoder; the class names where none are given.
        mirror: for each class, the class that its clips show after a horizontal flip (itself, or its left/right
            counterpart). None: nothing is known of that, so clips must not be flipped.
        groups: for each class, the name of the group of classes that it is counted in when results are given group by
            group (FineGym's sets, such as ``"FX_turns"``). Empty: the data set has no groups.

    Raises:
        ValueError: no clip or no class; a class name that is blank or there twice; ``prompts``, ``mirror`` or
            ``groups`` of another length than the classes; a blank group; a mirror that, applied twice, does not lead
            back; a label outside the classes; an empty time span; a clip that is listed twice.

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
        """The path of clip ``index`` below the root with forward slashes; the whole path where it lies elsewhere."""
        path = self.clips[index].path
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def _check_classes(self) -> None:
        where, names = f"{self.name}/{self.split}", self.class_names
        if not names:
            raise ValueError(f"{where}: class_names is empty; expected at least one class")
        blank = [i for i, name in enumerate(names) if not name.strip()]
        if blank:
            raise ValueError(f"{where}: class {blank[0]} has a blank name; expected a name for each class")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{where}: class names must differ, but {_quoted(twice)} appear more than once")
        if len(self.prompts) != len(names):
            raise ValueError(
                f"{where}: prompts has {len(self.prompts)} texts, expected one for each of {len(names)} classes"
            )
        if self.groups and len(self.groups) != len(names):
            raise ValueError(
                f"{where}: groups has {len(self.groups)} names, expected one for each of {len(names)} classes, or none"
            )
        ungrouped = [name for name, group in zip(names, self.groups, strict=False) if not group.strip()]
        if ungrouped:
            raise ValueError(f"{where}: the group of {_quoted(ungrouped)} is blank; expected a name for each class")
        if self.mirror is None:
            return
        if len(self.mirror) != len(names) or not all(0 <= other < len(names) for other in self.mirror):
            raise ValueError(
                f"{where}: mirror must hold a class index for each of {len(names)} classes, got {self.mirror}"
            )
        astray = [names[i] for i, other in enumerate(self.mirror) if self.mirror[other] != i]
        if astray:
            raise ValueError(
                f"{where}: flipping twice must lead back to the same class, but does not for {_quoted(astray)}"
            )

    def _check_clips(self) -> None:
        where = f"{self.name}/{self.split}"
        if not self.clips:
            raise ValueError(f"{where}: there is no clip below {self.root}; expected at least one")
        count = len(self.class_names)
        for index, clip in enumerate(self.clips):
            if not 0 <= clip.label < count:
                raise ValueError(
                    f"{where}: clip {index} ({clip}) has label {clip.label}, expected 0 to {count - 1}: there are "
                    f"{count} classes"
                )
            if (clip.start or 0.0) < 0 or (clip.end is not None and clip.end <= (clip.start or 0.0)):
                raise ValueError(f"{where}: clip {index} ({clip}) has no duration; expected 0 <= start < end")
        # A path makes its text once and keeps it; it is hashed faster, and needed to open the file anyway.
        keys = [(str(clip.path), clip.start, clip.end) for clip in self.clips]
        if len(set(keys)) == len(keys):
            return
        seen = set()
        for index, key in enumerate(keys):
            if key in seen:
                clip = self.clips[index]
                raise ValueError(f"{where}: clip {clip} is listed twice (the second time as clip {index}); remove one")
            seen.add(key)


def mirror_by_words(
    class_names: Sequence[str], pairs: Sequence[tuple[str, str]] = (("left", "right"),)
) -> tuple[int, ...]:
    """What each class becomes in a mirror, read off its name: the words of each pair change places.

    Args:
        class_names: the name of each class.
        pairs: words that a mirror swaps. A name with none of them is its own mirror image.

    Returns:
        class index to class index, as :class:`ClipSet` takes it.

    Raises:
        ValueError: a swapped name is no class.
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
