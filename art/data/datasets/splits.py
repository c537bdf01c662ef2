"""Splits of custom datasets: their names, the split generated for class directories, and checks across splits."""

from __future__ import annotations

import bisect
import csv
import hashlib
import io
import itertools
import math
import os
import posixpath
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from art.data.datasets.annotations import composed, read_table
from art.data.datasets.base import Clip, ClipSet
from art.data.files import write_text
from art.terminal import list_names, short_repr

#: Table of a generated split, with the columns ``split,path``: in the root of the clips, or in a run directory.
SPLITS = "splits.csv"
#: Names of the splits that are generated for class directories.
GENERATED_SPLITS = ("test", "train")
_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
#: Words that may be added to the name of a split's directory: "train_set", "Test-Videos", "trainingdata".
_FILLERS = (
    "set", "sets", "data", "dataset", "split", "video", "videos", "clip", "clips", "frame", "frames", "image",
    "images", "file", "files", "my",
)  # fmt: skip
_SAMPLE_BYTES = 2**16  # compared at the start, in the middle and at the end of files of equal size
_MAX_NAMES = 3  # clips and classes listed in a message


# Names


def split_name(name: str) -> str | None:
    """ "train", "val" or "test" for one of its usual spellings, such as "Validation"; None for another name."""
    return _NAMES.get(name.lower())


def directory_split(name: str) -> str | None:
    """The split that a directory is named after: one of its usual spellings, perhaps after a number and with words such
    as "set" or "videos" ("01_train", "TestSet", "training-data"); None for another name."""
    if split_name(name) is not None:
        return split_name(name)
    splits, others = _split_words(name)
    return splits[0] if len(splits) == 1 and not others else None


def mentioned_splits(name: str) -> list[str]:
    """The splits whose names are among the words of a name: "train" for "fold1_train_v2"."""
    return _split_words(name)[0]


def _split_words(name: str) -> tuple[list[str], list[str]]:
    """The splits among the words of a name, and the words that do not belong to the name of a split."""
    splits, others = [], []
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    for i, word in enumerate(re.findall(r"[^\W\d_]+|\d+", spaced)):
        stems = (word, *(word.removesuffix(filler) for filler in _FILLERS))
        split = next((_NAMES[stem] for stem in stems if stem in _NAMES), None)
        if split is not None:
            splits.append(split)
        elif word not in _FILLERS and not (i == 0 and word.isdecimal()):
            others.append(word)
    return list(dict.fromkeys(splits)), others


def find_split(split: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` of a split: the same name, or another spelling of it ("train" for "Training"). A dataset
    without a test split is tested on "val". None if there is no such split."""
    by_name: dict[str | None, str] = {}
    for name in known:
        if name == split:
            return name
        by_name.setdefault(split_name(name), name)
    wanted = split_name(split)
    if wanted is None:
        return None
    return by_name.get(wanted) or (by_name.get("val") if wanted == "test" else None)


# The split of clips that have none


def split_clips(
    names: Sequence[str], labels: Sequence[int], groups: Sequence[str | None], *, seed: int, test_fraction: float
) -> list[str]:
    """Assign each clip to "train" or "test".

    About ``test_fraction`` of the clips of each class are for the test, at least one. Clips of a group, such as those
    of a person, are in the same split. If no class has clips of two groups, groups are ignored. A class keeps at least
    one training clip; one with a single clip or group has no test clips.

    Args:
        names: a distinct name for each clip. The assignment depends on the names, not on their order.
        labels: the class of each clip.
        groups: the group of each clip; None if it has none.
        seed: selects another assignment.
        test_fraction: fraction of the clips for the test, above 0 and below 1.

    Raises:
        ValueError: ``test_fraction`` is out of range.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be above 0 and below 1, got {test_fraction}")
    members = units_of_clips(names, labels, groups)
    total = Counter(labels)
    target = {c: min(n - 1, max(1, round(test_fraction * n))) for c, n in total.items()}
    sizes = {unit: Counter(labels[i] for i in indices) for unit, indices in members.items()}
    # Hashes order the clips regardless of the platform. Groups come first, then single clips fill the rest.
    order = sorted(members, key=lambda unit: (len(members[unit]) == 1, _hash(seed, unit)))
    taken: Counter[int] = Counter()
    test: set[Hashable] = set()

    def add_if(unit: Hashable, closer_only: bool) -> bool:
        """Add the unit to the test if each of its classes keeps a training clip, and the fractions get closer."""
        gain = 0.0
        for c, n in sizes[unit].items():
            if taken[c] + n >= total[c]:
                return False
            gain += (abs(taken[c] - target[c]) - abs(taken[c] + n - target[c])) / total[c]
        if closer_only and gain <= 0:
            return False
        test.add(unit)
        taken.update(sizes[unit])
        return True

    for unit in order:
        add_if(unit, closer_only=True)
    units_of: dict[int, list[Hashable]] = defaultdict(list)
    for unit in sorted(order, key=lambda unit: len(members[unit])):
        for c in sizes[unit]:
            units_of[c].append(unit)
    for c, units in units_of.items():  # large groups only: the smallest one is better than no test clips
        if taken[c] == 0:
            any(add_if(unit, closer_only=False) for unit in units)
    assigned = ["train"] * len(names)
    for unit in test:
        for i in members[unit]:
            assigned[i] = "test"
    return assigned


def units_of_clips(
    names: Sequence[str], labels: Sequence[int], groups: Sequence[str | None]
) -> dict[Hashable, list[int]]:
    """The clips that stay together: those of a group, or a single one."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        members[("clip", name) if group is None else ("group", group)].append(i)
    first: dict[int, Hashable] = {}
    for unit, indices in members.items():
        if any(first.setdefault(labels[i], unit) != unit for i in indices):
            return members
    return {("clip", name): [i] for i, name in enumerate(names)}


def _hash(seed: int, unit: object) -> bytes:
    return hashlib.sha256(f"{seed} {unit}".encode("utf-8", "surrogatepass")).digest()


def read_splits(path: Path) -> dict[str, str]:
    """The split of each relative path (in composed form) in a table ``split,path``.

    Raises:
        ValueError: a row is invalid, or a path is listed twice.
    """
    splits: dict[str, str] = {}
    for line, values in read_table(path, ("split", "path")):
        split, name = split_name(values["split"]), composed(posixpath.normpath(values["path"]))
        if "/" not in name:  # written on Windows; elsewhere a backslash is part of a name
            name = posixpath.normpath(name.replace("\\", "/"))
        if split not in GENERATED_SPLITS:
            raise ValueError(f"{path}:{line}: split is {short_repr(values['split'])}; expected train or test")
        if not values["path"]:
            raise ValueError(f"{path}:{line}: path is empty")
        if name in splits:
            raise ValueError(f"{path}:{line}: {short_repr(name)} is already listed; remove one")
        splits[name] = split
    if not splits:
        raise ValueError(f"{path} lists no clips; expected rows 'split,path' below the header")
    return splits


def write_splits(path: Path, splits: Mapping[str, str]) -> None:
    """Write the table that :func:`read_splits` reads."""
    text = io.StringIO()
    # "./" keeps a space at the beginning of a path, which is stripped from values.
    rows = sorted((split, name if name == name.strip() else f"./{name}") for name, split in splits.items())
    csv.writer(text, lineterminator="\n").writerows([("split", "path"), *rows])
    write_text(path, text.getvalue())


# Checks across splits


def check_splits(train: ClipSet, other: ClipSet) -> list[str]:
    """Problems of a split that is evaluated by a model trained on ``train``, each as a sentence: clips in both, and
    classes without training clips. Files are compared by size and samples of their content."""
    return [*_check_leaks(train, other), *_check_classes(train, other)]


def _check_leaks(train: ClipSet, other: ClipSet) -> list[str]:
    spans = defaultdict(list)
    for clip in train:
        spans[os.path.normpath(clip.path)].append(_span(clip))
    starts, ends = {}, {}  # of the spans of each file, by start; the end is the largest so far
    for file, file_spans in spans.items():
        file_spans.sort()
        starts[file] = [start for start, _ in file_spans]
        ends[file] = list(itertools.accumulate((end for _, end in file_spans), max))
    in_both = []
    for index, clip in enumerate(other):
        path = os.path.normpath(clip.path)
        if path in spans:
            start, end = _span(clip)
            earlier = bisect.bisect_left(starts[path], end)  # spans that start before this one ends
            if earlier and ends[path][earlier - 1] > start:
                in_both.append(index)
    problems = []
    effect = f"accuracy on {other.split!r} is too high; remove them from one of the splits"
    if in_both:
        problems.append(
            f"{len(in_both)} of {len(other)} clips are in both {train.split!r} and {other.split!r}, such as "
            f"{', '.join(map(other.relative_path, in_both[:_MAX_NAMES]))}: {effect}"
        )
    copies = _same_files({str(clip.path) for clip in train}, {str(clip.path) for clip in other})
    if copies:
        listed = ", ".join(f"{a} and {b}" for a, b in copies[:_MAX_NAMES])
        problems.append(
            f"{len(copies)} files are in both {train.split!r} and {other.split!r} with the same content, such as "
            f"{listed}: {effect}"
        )
    return problems


def _span(clip: Clip) -> tuple[float, float]:
    return clip.start or 0.0, math.inf if clip.end is None else clip.end


def _same_files(train: set[str], other: set[str]) -> list[tuple[str, str]]:
    """Files with different paths and the same content, one of each split."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in sorted(train - other, reverse=True):
        by_size[_file_size(path)].append(path)
    by_size.pop(0, None)
    hashes: dict[int, dict[bytes, str]] = {}
    same = []
    for path in sorted(other - train):
        size = _file_size(path)
        if size in by_size:
            if size not in hashes:
                hashes[size] = {_sample_hash(first, size): first for first in by_size[size]}
            found = hashes[size].get(_sample_hash(path, size))
            if found is not None:
                same.append((found, path))
    return same


def _file_size(path: str) -> int:
    """The size of a regular file; 0 for a directory of frames and a missing file."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path is slow to create for each of many clips)
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _sample_hash(path: str, size: int) -> bytes:
    content = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            for position in sorted({0, max(0, size // 2), max(0, size - _SAMPLE_BYTES)}):
                file.seek(position)
                content.update(file.read(_SAMPLE_BYTES))
    except OSError:
        return os.urandom(16)  # equals no other file
    return content.digest()


def _check_classes(train: ClipSet, other: ClipSet) -> list[str]:
    names = train.class_names
    trained, tested = Counter(train.labels), Counter(other.labels if other.class_names == names else ())
    empty = [label for label in range(len(names)) if label not in trained]
    if not empty:
        return []
    numbered = names == tuple(map(str, range(len(names))))
    if empty == [0] and numbered and 0 not in tested:
        return [
            f"labels start at 1: class '0' has no clips in {train.split!r} and {other.split!r}; expected labels from 0 "
            "(the model has an unused class). Subtract 1 from each label, or write the names of the classes as labels"
        ]
    listed = [f"{names[label]!r} ({tested[label]} in {other.split!r})" for label in empty]
    verb = "classes has" if len(empty) == 1 else "classes have"
    alike = {name.strip().lower(): name for label, name in enumerate(names) if label in trained}
    similar = next((alike[key] for label in empty if (key := names[label].strip().lower()) in alike), None)
    hint = "" if similar is None else f"; {train.split!r} has {similar!r}, which differs in capitals or spaces"
    return [f"{len(empty)} of {len(names)} {verb} no training clips: {list_names(listed, _MAX_NAMES)}{hint}"]


def describe_split(train: ClipSet, test: ClipSet, groups: Sequence[Sequence[str | None]]) -> list[str]:
    """What a user should know about a generated split: its size, groups in both parts, and classes without test
    clips. ``groups`` are those of the clips of both parts."""
    both = {group for group in groups[0] if group is not None} & set(groups[1])
    count = len({group for part in groups for group in part if group is not None})
    kept = f", clips of {count} subdirectories kept together" if count and not both else ""
    lines = [
        f"no split directories: the clips were split into {len(train)} for training and {len(test)} for the test{kept}"
    ]
    if both:
        lines.append(
            f"each class has clips of one subdirectory only, so {len(both)} subdirectories, such as {min(both)!r}, are "
            "in both train and test; if they are persons or sessions, accuracy on 'test' is too high"
        )
    tested = set(test.labels)
    untested = [name for label, name in enumerate(train.class_names) if label not in tested]
    if untested:
        listed = ", ".join(map(repr, untested[:_MAX_NAMES]))
        lines.append(
            f"{len(untested)} of {len(train.class_names)} classes have no test clips, such as {listed}: expected at "
            "least two clips, of two subdirectories if there are any"
        )
    return lines
