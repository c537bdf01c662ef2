"""Fine-grained sports: FineGym (gymnastics) and Diving48 (diving).

FineGym: Gym99 and Gym288 (Shao et al., CVPR 2020, https://sdolivia.github.io/FineGym). The published files are in the
root or in ``annotations``: the split lists ``gym99_train_element_v1.1.txt`` and ``gym99_val_element.txt`` (or those of
gym288), the classes ``gym99_categories.txt`` and ``set_categories.txt``, and, to cut clips out of longer videos,
``finegym_annotation_info_v1.1.json``. A sub-action is read from the first of these that exists:

- its own file, named by the full id: ``subactions/0LtLS9wROrk_E_002407_002435_A_0003_0005.mp4``;
- its event, cut at the annotated times: ``events/0LtLS9wROrk_E_002407_002435.mp4``;
- the full video, cut at the annotated times: ``videos/0LtLS9wROrk.mp4``.

Diving48 V2 (Li et al., ECCV 2018, http://www.svcl.ucsd.edu/projects/resound/dataset.html). The published files
``Diving48_V2_train.json``, ``Diving48_V2_test.json`` and ``Diving48_vocab.json`` are in the root or in
``annotations``; the videos, one per dive, in ``rgb`` (the name in their archive) or ``videos``:
``rgb/-mmq0PT-u8k_00155.mp4``. The frame numbers of an entry refer to the original broadcast, so each video is used
from beginning to end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from art.data.datasets.annotations import (
    AnnotationFile,
    class_index,
    find_videos,
    first_directory,
    labeled_clips,
    read_json,
    read_lines,
)
from art.data.datasets.base import Clip, ClipSet, register_dataset
from art.terminal import short_repr

_GYM_SPLITS = ("train", "val")
_GYM_SITE = "https://sdolivia.github.io/FineGym"
_SUBACTION_DIRS = ("subactions", "subaction", "clips")
_GYM_DIRS = (*_SUBACTION_DIRS, "events", "videos", "rawframes", "")
_GYM_ID = re.compile(r"(?P<video>.{11})_(?P<event>E_\d{6}_\d{6})_(?P<segment>A_\d{4}_\d{4})")
_CATEGORY = re.compile(r"Clabel:\s*(\d+);\s*set:\s*(\d+);\s*Glabel:\s*(\d+);\s*(\((VT|FX|BB|UB)\)\s*(.*\S))")
_SET = re.compile(r"set:\s*(\d+);\s*(.*\S)")
_APPARATUS = {"VT": "vault", "FX": "floor exercise", "BB": "balance beam", "UB": "uneven bars"}


def _gym_name(classes: int, version: str) -> str:
    return f"finegym{classes}" + ("" if version == "1.1" else f"_v{version}")


def _gym_files(classes: int, version: str) -> dict[str, AnnotationFile]:
    """The annotation files of one class list in one version. The times of events are not required for clips that have
    their own file."""
    files = {
        "train": (f"gym{classes}_train_element_v{version}.txt", ("train",)),
        "val": (f"gym{classes}_val_element.txt", ("val",)),
        "categories": (f"gym{classes}_categories.txt", _GYM_SPLITS),
        "sets": ("set_categories.txt", _GYM_SPLITS),
        "times": (f"finegym_annotation_info_v{version}.json", ()),
    }
    directories = ("", "annotations", "categories", "annotations/categories")
    return {
        key: AnnotationFile((name,), f"{_GYM_SITE}/resources/dataset/{name}", splits, directories)
        for key, (name, splits) in files.items()
    }


def open_finegym(root: Path, split: str, classes: int = 99, version: str = "1.1") -> ClipSet:
    """Open a split of Gym99 or Gym288. A horizontal flip keeps the class: no class depends on the turning direction.

    The prompt of a class consists of its description, its apparatus, and its set; the sets are the groups of the clip
    set. A clip without any file is expected in its own file.

    Args:
        root: directory of the annotation files and videos (see the module).
        split: "train" or "val".
        classes: 99 or 288.
        version: version of the training list, "1.1" or "1.0"; there is only one validation list.
    """
    files = _gym_files(classes, version)
    names, prompts, groups = _read_categories(files["categories"].path(root), files["sets"].path(root))
    elements = _read_elements(files[split].path(root), len(names))
    wanted = {name for element in elements for name in (element.id, element.event_id, element.video)}
    found = find_videos(root, _GYM_DIRS, wanted)
    times: _GymTimes | None = None
    clips = []
    for element in elements:
        if element.id in found or (element.event_id not in found and element.video not in found):
            path = found.get(element.id, first_directory(root, _SUBACTION_DIRS) / f"{element.id}.mp4")
            clips.append(Clip(path, element.label))
            continue
        times = times or _GymTimes(files["times"].path(root))
        start, end = times.segment(element)
        if element.event_id in found:
            clips.append(Clip(found[element.event_id], element.label, start, end))
        else:
            begin = times.event_start(element)
            clips.append(Clip(found[element.video], element.label, begin + start, begin + end))
    return ClipSet(
        _gym_name(classes, version), split, root, tuple(clips), names, prompts, tuple(range(len(names))), groups
    )


def subaction_ids(root: Path, split: str, classes: int = 99, version: str = "1.1") -> tuple[str, ...]:
    """The full id of each clip of :func:`open_finegym`, in the same order: the name of the clip's own file after it is
    cut out of a longer video."""
    files = _gym_files(classes, version)
    names, _, _ = _read_categories(files["categories"].path(root), files["sets"].path(root))
    return tuple(element.id for element in _read_elements(files[split].path(root), len(names)))


class _Element(NamedTuple):
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
        match = _GYM_ID.fullmatch(name.strip())
        if match is None:
            raise ValueError(
                f"{where}: got {short_repr(line)}; expected the id of a sub-action and its label, such as "
                "'A0xAXXysHUo_E_002184_002237_A_0035_0036 93'"
            )
        index = class_index(label, where, classes)
        element = _Element(match[0], match["video"], match["event"], match["segment"], index, where)
        if element.id in elements:
            raise ValueError(f"{where}: {element.id} is already listed in {elements[element.id].where}; remove one")
        elements[element.id] = element
    if not elements:
        raise ValueError(f"{path} is empty; expected one sub-action and its label per line")
    return list(elements.values())


class _GymTimes:
    """Times of events and segments in seconds, from ``finegym_annotation_info_*.json``."""

    def __init__(self, path: Path) -> None:
        self._path, self._videos = path, read_json(path, dict)

    def event_start(self, element: _Element) -> float:
        """Start of the event of ``element`` in its video."""
        return self._span(self._event(element), element.event_id)[0]

    def segment(self, element: _Element) -> tuple[float, float]:
        """Start and end of ``element`` in its event. A vault has three stages; its segment spans all of them."""
        segments = self._event(element).get("segments") or {}  # null if the event was not divided into segments
        if not isinstance(segments, Mapping) or element.segment not in segments:
            raise ValueError(
                f"{self._path}: {element.event_id} has no segment {element.segment}, listed in {element.where}"
            )
        return self._span(segments[element.segment], element.id)

    def _event(self, element: _Element) -> Mapping[str, Any]:
        event = (self._videos.get(element.video) or {}).get(element.event)
        if not isinstance(event, Mapping):
            raise ValueError(f"{self._path}: no event {element.event_id}, listed in {element.where}")
        return event

    def _span(self, entry: object, name: str) -> tuple[float, float]:
        stamps = entry.get("timestamps") if isinstance(entry, Mapping) else None
        try:
            start, end = float(stamps[0][0]), float(stamps[-1][1])  # type: ignore[index]
        except (TypeError, ValueError, IndexError, KeyError):
            raise ValueError(
                f"{self._path}: timestamps of {name} are {short_repr(stamps)}; expected pairs of seconds, such as "
                "[[3.45, 5.64]]"
            ) from None
        if not 0 <= start < end:
            raise ValueError(f"{self._path}: {name} is from {start} s to {end} s; expected 0 <= start < end")
        return start, end


def _read_categories(categories: Path, sets: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The name, prompt and set of each class."""
    set_names = {}
    for number, line in read_lines(sets):
        match = _SET.fullmatch(line)
        if match is None:
            raise ValueError(f"{sets}:{number}: got {short_repr(line)}; expected a set, such as 'set: 22; FX_turns'")
        set_names[int(match[1])] = match[2]
    found: dict[int, re.Match[str]] = {}
    for number, line in read_lines(categories):
        match = _CATEGORY.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{categories}:{number}: got {short_repr(line)}; expected a class, such as "
                "'Clabel:   0; set:  1; Glabel:   1; (VT) round-off, flic-flac on'"
            )
        if int(match[1]) in found:
            raise ValueError(f"{categories}:{number}: class {match[1]} is already listed; remove one")
        if int(match[2]) not in set_names:
            raise ValueError(f"{categories}:{number}: set {match[2]} is not in {sets}")
        found[int(match[1])] = match
    gap = next((label for label in range(len(found)) if label not in found), None)
    if gap is not None or not found:
        raise ValueError(f"{categories}: class {gap or 0} is missing; expected consecutive classes from 0")
    classes = [found[label] for label in range(len(found))]
    groups = tuple(set_names[int(match[2])] for match in classes)
    texts = [match[4] for match in classes]
    counts = Counter(texts)
    names = tuple(  # the same salto may be in two sets, as it may also be a dismount
        text if counts[text] == 1 else f"{text} [{group}]" for text, group in zip(texts, groups, strict=True)
    )
    return names, tuple(map(_gym_prompt, classes, groups)), groups


def _gym_prompt(match: re.Match[str], group: str) -> str:
    apparatus = _APPARATUS[match[5]]
    family = re.sub(r"[\s_]+", " ", group.removeprefix(match[5])).strip().lower()
    return ", ".join([match[6], apparatus] + ([family] if family and family != apparatus else []))


def _register(classes: int, version: str) -> None:
    @register_dataset(
        _gym_name(classes, version),
        description=f"FineGym: {classes} classes of gymnastics, training list v{version}",
        splits=_GYM_SPLITS,
        required_files=lambda root: tuple(file.required(root) for file in _gym_files(classes, version).values()),
    )
    def opener(root: Path, split: str) -> ClipSet:
        return open_finegym(root, split, classes, version)


for _classes in (99, 288):
    for _version in ("1.1", "1.0"):
        _register(_classes, _version)


_DIVING_SPLITS = ("train", "test")
_DIVING_SITE = "http://www.svcl.ucsd.edu/projects/resound"
_DIVING_LISTS = {
    split: AnnotationFile((f"Diving48_V2_{split}.json",), f"{_DIVING_SITE}/Diving48_V2_{split}.json", (split,))
    for split in _DIVING_SPLITS
}
_VOCABULARY = AnnotationFile(("Diving48_vocab.json",), f"{_DIVING_SITE}/Diving48_vocab.json", _DIVING_SPLITS)
_TAKE_OFFS = {"Back": "back", "Forward": "forward", "Inward": "inward", "Reverse": "reverse"}
_POSITIONS = {"PIKE": "pike", "TUCK": "tuck", "FREE": "free", "STR": "straight"}


@register_dataset(
    "diving48",
    description="Diving48 V2: 48 dives",
    splits=_DIVING_SPLITS,
    required_files=lambda root: tuple(file.required(root) for file in (*_DIVING_LISTS.values(), _VOCABULARY)),
)
def open_diving48(root: Path, split: str) -> ClipSet:
    """Open a split of Diving48 V2. A horizontal flip keeps the class: the direction of a twist is not labeled.

    The name of a class is its four tokens; its prompt spells them out (:func:`dive_prompt`).
    """
    names, prompts = _read_vocabulary(_VOCABULARY.path(root))
    labels = _read_dives(_DIVING_LISTS[split].path(root), len(names))
    clips = labeled_clips(root, ("rgb", "videos", "rawframes"), labels, ".mp4")
    return ClipSet("diving48", split, root, clips, names, prompts, tuple(range(len(names))))


def dive_prompt(tokens: tuple[str, str, str, str]) -> str:
    """Spell out the four tokens of a class: ``("Back", "15som", "05Twis", "FREE")`` becomes "back dive, 1.5
    somersaults, 0.5 twist, free position". Tokens for no somersaults ("Dive") and no twists ("NoTwis") are omitted.
    Raises ValueError if a token is not in the vocabulary."""
    take_off, somersaults, twists, position = tokens
    if take_off not in _TAKE_OFFS:
        raise ValueError(f"take-off is {take_off!r}; expected one of {', '.join(_TAKE_OFFS)}")
    if position not in _POSITIONS:
        raise ValueError(f"position is {position!r}; expected one of {', '.join(_POSITIONS)}")
    turns = [_turns(somersaults, "som", "Dive", "somersault"), _turns(twists, "Twis", "NoTwis", "twist")]
    return ", ".join([f"{_TAKE_OFFS[take_off]} dive", *filter(None, turns), f"{_POSITIONS[position]} position"])


def _turns(token: str, suffix: str, none: str, word: str) -> str:
    """``15som`` is "1.5 somersaults": two digits count half turns, one digit counts full turns."""
    if token == none:
        return ""
    match = re.fullmatch(rf"(\d)(5?){suffix}", token)
    if match is None:
        raise ValueError(f"{word}s are {token!r}; expected {none} or a number of turns, such as 15{suffix} for 1.5")
    turns = f"{match[1]}.5" if match[2] else match[1]
    return f"{turns} {word}" + ("s" if float(turns) > 1 else "")


def _read_vocabulary(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The name and the prompt of each class."""
    names, prompts = [], []
    for label, tokens in enumerate(read_json(path, list)):
        where = f"{path}: class {label}"
        if not isinstance(tokens, list) or len(tokens) != 4 or not all(isinstance(token, str) for token in tokens):
            raise ValueError(
                f'{where} is {short_repr(tokens)}; expected four tokens, such as ["Back", "15som", "05Twis", "FREE"]'
            )
        try:
            prompts.append(dive_prompt((tokens[0], tokens[1], tokens[2], tokens[3])))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        names.append(" ".join(tokens))
    return tuple(names), tuple(prompts)


def _read_dives(path: Path, classes: int) -> dict[str, int]:
    """The label of each video."""
    labels: dict[str, int] = {}
    for number, entry in enumerate(read_json(path, list)):
        where = f"{path}: entry {number}"
        name = entry.get("vid_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or re.fullmatch(r".{11}_\d{5}", name) is None:
            raise ValueError(
                f"{where} is {short_repr(entry)}; expected a video and its label, such as "
                '{"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}'
            )
        if name in labels:
            raise ValueError(f"{where}: {name} is already listed; remove one")
        labels[name] = class_index(entry.get("label"), f"{where} ({name})", classes)
    return labels
