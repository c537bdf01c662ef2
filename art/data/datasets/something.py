"""Something-Something V1 and V2 (Goyal et al., ICCV 2017, https://www.qualcomm.com/developer/software/something-something-v-2-dataset).

V1: ``something-something-v1-labels.csv``, ``-train.csv`` and ``-validation.csv``, and folders of frames as their
archive unpacks, ``20bn-something-something-v1/<id>/00001.jpg``.

V2: ``labels.json``, ``train.json``, ``validation.json`` (or with ``something-something-v2-`` in front), for the test
split ``test-answers.csv``, and videos, ``20bn-something-something-v2/<id>.webm``.

The annotation files lie in the root, ``labels`` or ``annotations``; clips may also lie in ``videos``, ``rawframes`` or
``frames``, as videos or as folders of frames, in both versions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from art.data.datasets.annotations import (
    AnnotationFile,
    class_index,
    find_videos,
    first_folder,
    read_json,
    read_lines,
    shown,
)
from art.data.datasets.clips import Clip, ClipSet, mirror_by_words
from art.data.datasets.registry import RequiredFile, nearest, register_dataset

_SITE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
_V1_SPLITS, _V2_SPLITS = ("train", "val"), ("train", "val", "test")
_log = logging.getLogger(__name__)


def _file(version: int, name: str, *splits: str) -> AnnotationFile:
    """An annotation file under its name of either kind: the archive of labels drops the front of those of V2."""
    names = (name, f"something-something-v2-{name}") if version == 2 else (f"something-something-v1-{name}",)
    return AnnotationFile(names, _SITE, splits, ("", "labels", "annotations"))


_V1_LABELS = _file(1, "labels.csv", *_V1_SPLITS)
_V1_LISTS = {"train": _file(1, "train.csv", "train"), "val": _file(1, "validation.csv", "val")}
_V2_LABELS = _file(2, "labels.json", *_V2_SPLITS)
_V2_LISTS = {
    "train": _file(2, "train.json", "train"),
    "val": _file(2, "validation.json", "val"),
    "test": _file(2, "test-answers.csv", "test"),
}


def _required_v1(root: Path) -> tuple[RequiredFile, ...]:
    return tuple(file.required(root) for file in (_V1_LABELS, *_V1_LISTS.values()))


def _required_v2(root: Path) -> tuple[RequiredFile, ...]:
    return tuple(file.required(root) for file in (_V2_LABELS, *_V2_LISTS.values()))


@register_dataset(
    "something_v1",
    description="Something-Something V1: 174 ways to handle something",
    splits=_V1_SPLITS,
    required_files=_required_v1,
)
def open_something_v1(root: Path, split: str) -> ClipSet:
    """A split of Something-Something V1. The label of a class is its line in the list of labels.

    Raises:
        FileNotFoundError: ``root`` or an annotation file is not there.
        ValueError: an annotation that does not fit; the message gives file and line.
    """
    names = _read_names(_V1_LABELS.path(root))
    labels = _read_answers(_V1_LISTS[split].path(root), names)
    return _clip_set("something_v1", split, root, labels, names, "20bn-something-something-v1", "")


@register_dataset(
    "something_v2",
    description="Something-Something V2: 174 ways to handle something",
    splits=_V2_SPLITS,
    required_files=_required_v2,
)
def open_something_v2(root: Path, split: str) -> ClipSet:
    """A split of Something-Something V2. Names and prompts are the templates without their brackets: never an entry's
    own label, which names the objects.

    Raises:
        FileNotFoundError: ``root`` or an annotation file is not there.
        ValueError: an annotation that does not fit; the message gives file and entry or line.
    """
    names = _read_indices(_V2_LABELS.path(root))
    path = _V2_LISTS[split].path(root)
    labels = _read_answers(path, names) if split == "test" else _read_templates(path, names)
    return _clip_set("something_v2", split, root, labels, names, "20bn-something-something-v2", ".webm")


def without_brackets(template: str) -> str:
    """ "Moving [part] of [something]" is "Moving part of something"."""
    return " ".join(re.sub(r"[\[\]]", "", template).split())


def mirror_of(class_names: tuple[str, ...]) -> tuple[int, ...] | None:
    """What each class shows in a mirror: "from left to right" becomes "from right to left", the camera turns to the
    other side, and a class that names no side stays what it is. None, so that clips cannot be flipped, where the list
    has one side of a class without the other (the published lists have both of all).
    """
    try:
        return mirror_by_words(class_names)
    except ValueError as error:
        _log.warning("clips cannot be flipped: %s", error)
        return None


def _clip_set(
    name: str, split: str, root: Path, labels: Mapping[str, int], names: tuple[str, ...], archive: str, suffix: str
) -> ClipSet:
    folders = (archive, f"videos/{archive}", "videos", "rawframes", "frames")
    found = find_videos(root, (*folders, ""), labels)
    expected = first_folder(root, folders)
    clips = tuple(Clip(found.get(id, expected / f"{id}{suffix}"), label) for id, label in labels.items())
    return ClipSet(name, split, root, clips, names, mirror=mirror_of(names))


def _read_names(path: Path) -> tuple[str, ...]:
    names: dict[str, int] = {}
    for number, line in read_lines(path):
        if line in names:
            raise ValueError(f"{path}:{number}: class {line!r} is there already, in line {names[line]}; remove one")
        names[line] = number
    if not names:
        raise ValueError(f"{path} is empty; expected a class a line")
    return tuple(names)


def _read_indices(path: Path) -> tuple[str, ...]:
    """The templates of ``labels.json``, which maps each to its index, a string."""
    indices = read_json(path, dict)
    names: dict[int, str] = {}
    for template, value in indices.items():
        label = class_index(value, f"{path}: {template!r}", len(indices))
        if label in names:
            raise ValueError(f"{path}: {template!r} has index {label}, as {names[label]!r} has; expected one each")
        names[label] = without_brackets(template)
    if not names:
        raise ValueError(f'{path} is empty; expected templates and their indices, such as "Closing something": "5"')
    return tuple(names[label] for label in range(len(names)))


def _read_answers(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Lines ``id;label``, the label being the name of a class."""
    index = {name: label for label, name in enumerate(names)}
    labels: dict[str, int] = {}
    for number, line in read_lines(path):
        id, _, text = (part.strip() for part in line.partition(";"))
        if not id.isdecimal() or not text:
            raise ValueError(
                f"{path}:{number}: is {shown(line)}; expected an id and its class, such as '41775;Closing something'"
            )
        _add(labels, id, without_brackets(text), index, f"{path}:{number}")
    return labels


def _read_templates(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    index = {name: label for label, name in enumerate(names)}
    labels: dict[str, int] = {}
    for number, entry in enumerate(read_json(path, list)):
        where = f"{path}: entry {number}"
        id, template = (entry.get("id"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not str(id).isdecimal() or not isinstance(template, str):
            raise ValueError(
                f"{where} is {shown(entry)}; expected an id and a template, such as "
                '{"id": "41775", "template": "Moving part of [something]"}'
            )
        _add(labels, str(id), without_brackets(template), index, where)
    return labels


def _add(labels: dict[str, int], id: str, name: str, index: Mapping[str, int], where: str) -> None:
    if name not in index:
        raise ValueError(f"{where}: {name!r} is no class{nearest(name, tuple(index))}")
    if id in labels:
        raise ValueError(f"{where}: clip {id} is there already; remove one")
    labels[id] = index[name]
