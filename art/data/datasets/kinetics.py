"""Kinetics-400 and Kinetics-600 (Kay et al., 2017; Carreira et al., 2018; https://github.com/cvdfoundation/kinetics-dataset).

The published tables ``train.csv``, ``val.csv`` and ``test.csv`` (or ``.txt``, as in some copies of Kinetics-600) are in
the root or in ``annotations``. Videos are named ``<id>_<start>_<end>.mp4``, with six-digit times, and are in a
directory of their split, flat or in class directories (whose names are ignored):
``train/_dbcJuKJQNs_000040_000050.mp4``, ``videos_train/air_drumming/_dbcJuKJQNs_000040_000050.mp4``.
"""

from __future__ import annotations

import re
from pathlib import Path

from art.data.datasets.annotations import AnnotationFile, find_videos, first_directory, read_table
from art.data.datasets.base import Clip, ClipSet, register_dataset, suggest

SPLITS = ("train", "val", "test")

_COLUMNS = ("youtube_id", "time_start", "time_end")
_SPLIT_WORDS = {"train": "train", "val": "validate", "test": "test"}  # in the published file and directory names


def _table(classes: int, split: str, *needed_by: str) -> AnnotationFile:
    prefixes = ("", f"kinetics{classes}_", f"kinetics_{classes}_", f"kinetics-{classes}_", "kinetics_")
    words = tuple(dict.fromkeys((split, _SPLIT_WORDS[split])))
    names = tuple(f"{prefix}{word}{suffix}" for suffix in (".csv", ".txt") for word in words for prefix in prefixes)
    source = f"https://s3.amazonaws.com/kinetics/{classes}/annotations/{split}.csv"
    return AnnotationFile(names, source, needed_by)


def _tables(classes: int) -> dict[str, AnnotationFile]:
    """The table of each split. The training table defines the classes of all splits."""
    return {"train": _table(classes, "train", *SPLITS)} | {s: _table(classes, s, s) for s in ("val", "test")}


def _directories(classes: int, split: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys((split, _SPLIT_WORDS[split], "validation" if split == "val" else split)))
    versions = (f"kinetics{classes}_", f"kinetics_{classes}_", f"kinetics-{classes}_")
    prefixes = ("", "videos_", "videos/", *versions, "rawframes_")
    return (*(f"{prefix}{name}" for prefix in prefixes for name in names), "videos")


def open_kinetics(root: Path, split: str, classes: int = 400) -> ClipSet:
    """Open a split of Kinetics-400 or Kinetics-600. A horizontal flip keeps the class, as in published training code.

    The classes of every split are the sorted labels of the training table. The test table is published without labels;
    the test split requires a copy that includes them."""
    tables = _tables(classes)
    train = _read(tables["train"].path(root))
    names = tuple(sorted({label for _, label in train.values()}))
    rows = train if split == "train" else _read(tables[split].path(root))
    index = {name: i for i, name in enumerate(names)}
    for where, label in rows.values():
        if label not in index:
            raise ValueError(
                f"{where}: label {label!r} is not a class in {tables['train'].path(root)}{suggest(label, names)}"
            )
    directories = _directories(classes, split)
    found = find_videos(root, directories, rows, depth=2)
    directory = first_directory(root, directories)
    # A missing video is expected in the directory of its class, if there is one.
    expected = {name: first_directory(directory, (name, name.replace(" ", "_"), "")) for name in names}
    clips = tuple(
        Clip(found[name] if name in found else expected[label] / f"{name}.mp4", index[label])
        for name, (_, label) in rows.items()
    )
    return ClipSet(f"kinetics{classes}", split, root, clips, names, mirror=tuple(range(len(names))))


def _read(path: Path) -> dict[str, tuple[str, str]]:
    """For each video name, the line that lists it and its label."""
    rows: dict[str, tuple[str, str]] = {}
    for number, values in read_table(path, _COLUMNS):
        where = f"{path}:{number}"
        label = values.get("label")
        if label is None:
            raise ValueError(
                f"{path} has no column 'label', which training and evaluation require; use another split, such as val"
            )
        if not label:
            raise ValueError(f"{where}: label is empty; expected a class name")
        name = _video_name(values, where)
        if name in rows:
            raise ValueError(f"{where}: {name} is already listed in {rows[name][0]}; remove one")
        rows[name] = (where, label)
    if not rows:
        raise ValueError(f"{path} lists no clips; expected rows below the header")
    return rows


def _video_name(values: dict[str, str], where: str) -> str:
    id = values["youtube_id"]
    if re.fullmatch(r"[\w-]{11}", id) is None:
        raise ValueError(f"{where}: youtube_id is {id!r}; expected 11 letters, digits, '-' and '_'")
    seconds = []
    for column in ("time_start", "time_end"):
        match = re.fullmatch(r"(\d{1,6})(\.0*)?", values[column])
        if match is None:
            raise ValueError(f"{where}: {column} is {values[column]!r}; expected whole seconds, such as 40")
        seconds.append(int(match[1]))
    if seconds[0] >= seconds[1]:
        raise ValueError(f"{where}: the clip from {seconds[0]} s to {seconds[1]} s has no duration")
    return f"{id}_{seconds[0]:06d}_{seconds[1]:06d}"


def _register(classes: int) -> None:
    @register_dataset(
        f"kinetics{classes}",
        description=f"Kinetics-{classes}: {classes} human actions in clips of 10 seconds",
        splits=SPLITS,
        required_files=lambda root: tuple(table.required(root) for table in _tables(classes).values()),
    )
    def opener(root: Path, split: str) -> ClipSet:
        return open_kinetics(root, split, classes)


for _classes in (400, 600):
    _register(_classes)
