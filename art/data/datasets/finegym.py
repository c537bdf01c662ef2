"""FineGym: Gym99 and Gym288, sub-actions of gymnastics (Shao et al., CVPR 2020, https://sdolivia.github.io/FineGym).

The published files lie in the root or in ``annotations``: the split lists ``gym99_train_element_v1.1.txt`` and
``gym99_val_element.txt`` (or those of gym288), the classes ``gym99_categories.txt`` and ``set_categories.txt``, and,
where clips are cut out of longer videos, ``finegym_annotation_info_v1.1.json``.

A sub-action is read from the first of these that is there (in the folders of ``_PLACES``):

- a file of its own, named by its full id: ``subactions/0LtLS9wROrk_E_002407_002435_A_0003_0005.mp4``;
- its event: ``events/0LtLS9wROrk_E_002407_002435.mp4``, cut at the seconds that the annotation gives;
- the whole video: ``videos/0LtLS9wROrk.mp4``, cut likewise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art.data.datasets.annotations import (
    AnnotationFile,
    class_index,
    find_videos,
    first_folder,
    read_json,
    read_lines,
    shown,
)
from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import Opener, RequiredFile, register_dataset

SPLITS = ("train", "val")

_SITE = "https://sdolivia.github.io/FineGym"
_SUBACTIONS = ("subactions", "subaction", "clips")
_PLACES = (*_SUBACTIONS, "events", "videos", "rawframes", "")
_ID = re.compile(r"(?P<video>.{11})_(?P<event>E_\d{6}_\d{6})_(?P<segment>A_\d{4}_\d{4})")
_CATEGORY = re.compile(r"Clabel:\s*(\d+);\s*set:\s*(\d+);\s*Glabel:\s*(\d+);\s*(\((VT|FX|BB|UB)\)\s*(.*\S))")
_SET = re.compile(r"set:\s*(\d+);\s*(.*\S)")
_APPARATUS = {"VT": "vault", "FX": "floor exercise", "BB": "balance beam", "UB": "uneven bars"}


@dataclass(frozen=True)
class _Release:
    """The files of one list of classes in one version."""

    classes: int
    version: str

    @property
    def name(self) -> str:
        return f"finegym{self.classes}" + ("" if self.version == "1.1" else f"_v{self.version}")

    @property
    def lists(self) -> dict[str, AnnotationFile]:
        return {
            "train": self._file(f"gym{self.classes}_train_element_v{self.version}.txt", "train"),
            "val": self._file(f"gym{self.classes}_val_element.txt", "val"),
        }

    @property
    def categories(self) -> AnnotationFile:
        return self._file(f"gym{self.classes}_categories.txt", *SPLITS)

    @property
    def sets(self) -> AnnotationFile:
        return self._file("set_categories.txt", *SPLITS)

    @property
    def times(self) -> AnnotationFile:
        """When each event and segment is; clips that have a file of their own do without."""
        return self._file(f"finegym_annotation_info_v{self.version}.json")

    def _file(self, name: str, *splits: str) -> AnnotationFile:
        return AnnotationFile(
            (name,),
            f"{_SITE}/resources/dataset/{name}",
            splits,
            ("", "annotations", "categories", "annotations/categories"),
        )

    def required(self, root: Path) -> tuple[RequiredFile, ...]:
        files = (*self.lists.values(), self.categories, self.sets, self.times)
        return tuple(file.required(root) for file in files)


def open_finegym(root: Path, split: str, classes: int = 99, version: str = "1.1") -> ClipSet:
    """A split of Gym99 or Gym288. A horizontal flip keeps every class: the direction of a turn is none of their marks.

    The prompt of a class is its description, the apparatus and the set of classes that it belongs to; the sets are
    the groups of the clip set. A clip without any file is expected in a file of its own.

    Args:
        root: the folder that holds the annotation files and videos (see the module).
        split: "train" or "val".
        classes: 99 or 288.
        version: of the training list, "1.1" or "1.0"; there is one validation list.

    Raises:
        FileNotFoundError: ``root`` or an annotation file is not there.
        ValueError: an annotation that does not fit; the message gives file and line or entry.
    """
    release = _Release(classes, version)
    names, prompts, groups = _read_classes(release.categories.path(root), release.sets.path(root))
    elements = _read_elements(release.lists[split].path(root), len(names))
    wanted = {part for element in elements for part in (element.id, element.event_id, element.video)}
    found = find_videos(root, _PLACES, wanted)
    cut = [e for e in elements if e.id not in found and (e.event_id in found or e.video in found)]
    times = _Times(release.times.path(root)) if cut else None
    clips = []
    for element in elements:
        if element.id in found or (element.event_id not in found and element.video not in found):
            path = found.get(element.id, first_folder(root, _SUBACTIONS) / f"{element.id}.mp4")
            clips.append(Clip(path, element.label))
            continue
        assert times is not None
        start, end = times.segment(element)
        if element.event_id in found:
            clips.append(Clip(found[element.event_id], element.label, start, end))
        else:
            begin = times.event(element)
            clips.append(Clip(found[element.video], element.label, begin + start, begin + end))
    mirror = tuple(range(len(names)))
    return ClipSet(release.name, split, root, tuple(clips), names, prompts, mirror, groups)


def subaction_ids(root: Path, split: str, classes: int = 99, version: str = "1.1") -> tuple[str, ...]:
    """The full id of each clip of :func:`open_finegym`, in its order: what the clip's own file is called when it is cut
    out of a longer video.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_finegym`.
    """
    release = _Release(classes, version)
    names, _, _ = _read_classes(release.categories.path(root), release.sets.path(root))
    return tuple(element.id for element in _read_elements(release.lists[split].path(root), len(names)))


@dataclass(frozen=True)
class _Element:
    """One line of a split list."""

    id: str
    video: str
    event: str
    segment: str
    label: int
    where: str

    @property
    def event_id(self) -> str:
        return f"{self.video}_{self.event}"


def _read_elements(path: Path, classes: int) -> list[_Element]:
    elements: dict[str, _Element] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        name, _, label = line.rpartition(" ")
        match = _ID.fullmatch(name.strip())
        if match is None:
            raise ValueError(
                f"{where}: is {shown(line)}; expected the id of a sub-action and its label, such as "
                "'A0xAXXysHUo_E_002184_002237_A_0035_0036 93'"
            )
        index = class_index(label, where, classes)
        element = _Element(match[0], match["video"], match["event"], match["segment"], index, where)
        if element.id in elements:
            raise ValueError(f"{where}: {element.id} is there already, in {elements[element.id].where}; remove one")
        elements[element.id] = element
    if not elements:
        raise ValueError(f"{path} is empty; expected a sub-action and its label a line")
    return list(elements.values())


class _Times:
    """When events and segments are, in seconds, from ``finegym_annotation_info_*.json``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._videos = read_json(path, dict)

    def event(self, element: _Element) -> float:
        """When the event of ``element`` begins in its video."""
        return self._span(self._event(element), element.event_id)[0]

    def segment(self, element: _Element) -> tuple[float, float]:
        """Where ``element`` begins and ends in its event: a vault has three stages, and spans them all."""
        segments = self._event(element).get("segments") or {}  # null where an event was not divided
        if not isinstance(segments, Mapping) or element.segment not in segments:
            raise ValueError(
                f"{self._path}: {element.event_id} has no segment {element.segment}, which {element.where} lists"
            )
        return self._span(segments[element.segment], element.id)

    def _event(self, element: _Element) -> Mapping[str, Any]:
        event = (self._videos.get(element.video) or {}).get(element.event)
        if not isinstance(event, Mapping):
            raise ValueError(f"{self._path}: has no event {element.event_id}, which {element.where} lists")
        return event

    def _span(self, entry: object, name: str) -> tuple[float, float]:
        stamps = entry.get("timestamps") if isinstance(entry, Mapping) else None
        try:
            start, end = float(stamps[0][0]), float(stamps[-1][1])  # type: ignore[index]
        except (TypeError, ValueError, IndexError, KeyError):
            raise ValueError(
                f"{self._path}: timestamps of {name} are {shown(stamps)}; expected pairs of "
                "seconds, such as [[3.45, 5.64]]"
            ) from None
        if not 0 <= start < end:
            raise ValueError(f"{self._path}: {name} lasts from {start} s to {end} s; expected 0 <= start < end")
        return start, end


def _read_classes(categories: Path, sets: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The name, prompt and set of each class."""
    set_names = _read_sets(sets)
    found: dict[int, re.Match[str]] = {}
    for number, line in read_lines(categories):
        match = _CATEGORY.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{categories}:{number}: is {shown(line)}; expected a class, such as "
                "'Clabel:   0; set:  1; Glabel:   1; (VT) round-off, flic-flac on'"
            )
        if int(match[1]) in found:
            raise ValueError(f"{categories}:{number}: class {match[1]} is there already; remove one")
        if int(match[2]) not in set_names:
            raise ValueError(f"{categories}:{number}: set {match[2]} is not in {sets}")
        found[int(match[1])] = match
    gap = next((label for label in range(len(found)) if label not in found), None)
    if gap is not None or not found:
        raise ValueError(f"{categories}: class {gap or 0} is missing; expected classes from 0 on without a gap")
    classes = [found[label] for label in range(len(found))]
    groups = tuple(set_names[int(match[2])] for match in classes)
    return _names(classes, groups), tuple(map(_prompt, classes, groups)), groups


def _names(classes: list[re.Match[str]], groups: tuple[str, ...]) -> tuple[str, ...]:
    """The published description; with its set where several sets have the same, as a salto may also be a dismount."""
    texts = [match[4] for match in classes]
    return tuple(
        text if texts.count(text) == 1 else f"{text} [{group}]" for text, group in zip(texts, groups, strict=True)
    )


def _prompt(match: re.Match[str], group: str) -> str:
    apparatus = _APPARATUS[match[5]]
    family = re.sub(r"[\s_]+", " ", group.removeprefix(match[5])).strip().lower()
    return ", ".join([match[6], apparatus] + ([family] if family and family != apparatus else []))


def _read_sets(path: Path) -> dict[int, str]:
    names = {}
    for number, line in read_lines(path):
        match = _SET.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}:{number}: is {shown(line)}; expected a set, such as 'set: 22; FX_turns'")
        names[int(match[1])] = match[2]
    return names


def _opener(release: _Release) -> Opener:
    def opener(root: Path, split: str) -> ClipSet:
        return open_finegym(root, split, release.classes, release.version)

    return opener


for _release in (_Release(classes, version) for classes in (99, 288) for version in ("1.1", "1.0")):
    register_dataset(
        _release.name,
        description=f"FineGym: {_release.classes} classes of gymnastics, training list v{_release.version}",
        splits=SPLITS,
        required_files=_release.required,
    )(_opener(_release))
