"""Something-Something V1 and V2 (Goyal et al., ICCV 2017, https://www.qualcomm.com/developer/software/something-something-v-2-dataset).

V1: ``something-something-v1-labels.csv``, ``-train.csv`` and ``-validation.csv``, and directories of frames as in the
published archive, ``20bn-something-something-v1/<id>/00001.jpg``.

V2: ``labels.json``, ``train.json``, ``validation.json`` (or prefixed with ``something-something-v2-``),
``test-answers.csv`` for the test split, and videos, ``20bn-something-something-v2/<id>.webm``.

The annotation files are in the root, ``labels`` or ``annotations``. In both versions, clips may also be in ``videos``,
``rawframes`` or ``frames``, as videos or as directories of frames.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from art.data.datasets.annotations import AnnotationFile, class_index, labeled_clips, read_json, read_lines
from art.data.datasets.base import ClipSet, mirror_by_words, register_dataset, suggest
from art.terminal import short_repr

_SITE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
_V1_SPLITS, _V2_SPLITS = ("train", "val"), ("train", "val", "test")
_log = logging.getLogger(__name__)


def _annotation_file(version: int, name: str, *splits: str) -> AnnotationFile:
    """An annotation file; files of V2 also exist without the prefix, as in the published archive of labels."""
    names = (name, f"something-something-v2-{name}") if version == 2 else (f"something-something-v1-{name}",)
    return AnnotationFile(names, _SITE, splits, ("", "labels", "annotations"))


_V1_LABELS = _annotation_file(1, "labels.csv", *_V1_SPLITS)
_V1_LISTS = {"train": _annotation_file(1, "train.csv", "train"), "val": _annotation_file(1, "validation.csv", "val")}
_V2_LABELS = _annotation_file(2, "labels.json", *_V2_SPLITS)
_V2_LISTS = {
    "train": _annotation_file(2, "train.json", "train"),
    "val": _annotation_file(2, "validation.json", "val"),
    "test": _annotation_file(2, "test-answers.csv", "test"),
}


@register_dataset(
    "something_v1",
    description="Something-Something V1: 174 ways to handle something",
    splits=_V1_SPLITS,
    required_files=lambda root: tuple(file.required(root) for file in (_V1_LABELS, *_V1_LISTS.values())),
)
def open_something_v1(root: Path, split: str) -> ClipSet:
    """Open a split of Something-Something V1. The index of a class is its line in the list of labels."""
    names = _read_names(_V1_LABELS.path(root))
    labels = _read_labels(_V1_LISTS[split].path(root), names)
    return _clip_set("something_v1", split, root, labels, names, "20bn-something-something-v1", "")


@register_dataset(
    "something_v2",
    description="Something-Something V2: 174 ways to handle something",
    splits=_V2_SPLITS,
    required_files=lambda root: tuple(file.required(root) for file in (_V2_LABELS, *_V2_LISTS.values())),
)
def open_something_v2(root: Path, split: str) -> ClipSet:
    """Open a split of Something-Something V2. Names and prompts are the templates without brackets, never the label of
    an entry, which names the objects."""
    names = _read_indices(_V2_LABELS.path(root))
    labels = _read_labels(_V2_LISTS[split].path(root), names)
    return _clip_set("something_v2", split, root, labels, names, "20bn-something-something-v2", ".webm")


def strip_brackets(template: str) -> str:
    """Turn "Moving [part] of [something]" into "Moving part of something"."""
    return " ".join(re.sub(r"[\[\]]", "", template).split())


def mirror_classes(class_names: tuple[str, ...]) -> tuple[int, ...] | None:
    """The class of the flipped clips of each class: "left" and "right" are swapped, other classes are unchanged. None,
    which disables flips, if a class has no counterpart (in the published lists, all have one)."""
    try:
        return mirror_by_words(class_names)
    except ValueError as error:
        _log.warning("clips cannot be flipped: %s", error)
        return None


def _clip_set(
    name: str, split: str, root: Path, labels: Mapping[str, int], names: tuple[str, ...], archive: str, suffix: str
) -> ClipSet:
    directories = (archive, f"videos/{archive}", "videos", "rawframes", "frames")
    clips = labeled_clips(root, directories, labels, suffix)
    return ClipSet(name, split, root, clips, names, mirror=mirror_classes(names))


def _read_names(path: Path) -> tuple[str, ...]:
    names: dict[str, int] = {}
    for number, line in read_lines(path):
        if line in names:
            raise ValueError(f"{path}:{number}: class {line!r} is already listed in line {names[line]}; remove one")
        names[line] = number
    if not names:
        raise ValueError(f"{path} is empty; expected one class per line")
    return tuple(names)


def _read_indices(path: Path) -> tuple[str, ...]:
    """The class names in ``labels.json``, which maps each template to its index (a string)."""
    indices = read_json(path, dict)
    names: dict[int, str] = {}
    for template, value in indices.items():
        label = class_index(value, f"{path}: {template!r}", len(indices))
        if label in names:
            raise ValueError(f"{path}: {template!r} has the index {label} of {names[label]!r}; expected different ones")
        names[label] = strip_brackets(template)
    if not names:
        raise ValueError(f'{path} is empty; expected templates and their indices, such as "Closing something": "5"')
    return tuple(names[label] for label in range(len(names)))


def _read_labels(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    """The label of each clip."""
    index = {name: label for label, name in enumerate(names)}
    labels: dict[str, int] = {}
    for where, id, template in _read_list(path):
        name = strip_brackets(template)
        if name not in index:
            raise ValueError(f"{where}: unknown class {name!r}{suggest(name, names)}")
        if id in labels:
            raise ValueError(f"{where}: clip {id} is already listed; remove one")
        labels[id] = index[name]
    return labels


def _read_list(path: Path) -> Iterator[tuple[str, str, str]]:
    """Place, id and class of each clip, from a JSON list of ids and templates, or from lines ``id;class name``."""
    if path.suffix == ".json":
        for number, entry in enumerate(read_json(path, list)):
            id, template = (entry.get("id"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            if not re.fullmatch("[0-9]+", str(id)) or not isinstance(template, str):
                raise ValueError(
                    f"{path}: entry {number} is {short_repr(entry)}; expected an id and a template, such as "
                    '{"id": "41775", "template": "Moving part of [something]"}'
                )
            yield f"{path}: entry {number}", str(id), template
        return
    for number, line in read_lines(path):
        id, _, text = (part.strip() for part in line.partition(";"))
        if not re.fullmatch("[0-9]+", id) or not text:
            raise ValueError(
                f"{path}:{number}: got {short_repr(line)}; expected an id and a class, such as '5;Closing something'"
            )
        yield f"{path}:{number}", id, text
