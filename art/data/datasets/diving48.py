"""Diving48 V2: competitive diving (Li et al., ECCV 2018, http://www.svcl.ucsd.edu/projects/resound/dataset.html).

The published files lie in the root or in ``annotations``: ``Diving48_V2_train.json``, ``Diving48_V2_test.json`` and
``Diving48_vocab.json``; the videos, one a dive, in ``rgb`` (as their archive unpacks) or ``videos``:
``rgb/-mmq0PT-u8k_00155.mp4``. The frame numbers of an entry belong to the broadcast that the video was cut out of, so
that every video is used whole.
"""

from __future__ import annotations

import re
from pathlib import Path

from art.data.datasets.annotations import AnnotationFile, class_index, find_videos, first_folder, read_json, shown
from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import RequiredFile, register_dataset

SPLITS = ("train", "test")

_SITE = "http://www.svcl.ucsd.edu/projects/resound"
_FOLDERS = ("rgb", "videos", "rawframes", "")
_LISTS = {
    split: AnnotationFile((f"Diving48_V2_{split}.json",), f"{_SITE}/Diving48_V2_{split}.json", (split,))
    for split in SPLITS
}
_VOCABULARY = AnnotationFile(("Diving48_vocab.json",), f"{_SITE}/Diving48_vocab.json", SPLITS)

_TAKE_OFFS = {"Back": "back", "Forward": "forward", "Inward": "inward", "Reverse": "reverse"}
_POSITIONS = {"PIKE": "pike", "TUCK": "tuck", "FREE": "free", "STR": "straight"}


def required_files(root: Path) -> tuple[RequiredFile, ...]:
    """The annotation files of both splits."""
    return tuple(file.required(root) for file in (*_LISTS.values(), _VOCABULARY))


@register_dataset("diving48", description="Diving48 V2: 48 dives", splits=SPLITS, required_files=required_files)
def open_diving48(root: Path, split: str) -> ClipSet:
    """A split of Diving48 V2. A horizontal flip keeps every class: the side that a diver twists to is not labelled.

    The name of a class is its four tokens; its prompt spells them out (:func:`spelled_out`).

    Raises:
        FileNotFoundError: ``root`` or an annotation file is not there.
        ValueError: an annotation that does not fit; the message gives file and entry.
    """
    names, prompts = _read_vocabulary(_VOCABULARY.path(root))
    labels = _read_list(_LISTS[split].path(root), len(names))
    found = find_videos(root, _FOLDERS, labels)
    expected = first_folder(root, _FOLDERS[:-1])
    clips = tuple(Clip(found.get(name, expected / f"{name}.mp4"), label) for name, label in labels.items())
    return ClipSet("diving48", split, root, clips, names, prompts, tuple(range(len(names))))


def spelled_out(tokens: tuple[str, str, str, str]) -> str:
    """The four tokens of a class in words: ``("Back", "15som", "05Twis", "FREE")`` is "back dive, 1.5 somersaults,
    0.5 twist, free position". A dive without somersaults ("Dive") or twists ("NoTwis") has none in words either.

    Raises:
        ValueError: a token that is none of the vocabulary's.
    """
    take_off, somersaults, twists, position = tokens
    if take_off not in _TAKE_OFFS:
        raise ValueError(f"take-off is {take_off!r}; expected one of {', '.join(_TAKE_OFFS)}")
    if position not in _POSITIONS:
        raise ValueError(f"position is {position!r}; expected one of {', '.join(_POSITIONS)}")
    turns = [_turns(somersaults, "som", "Dive", "somersault"), _turns(twists, "Twis", "NoTwis", "twist")]
    return ", ".join([f"{_TAKE_OFFS[take_off]} dive", *filter(None, turns), f"{_POSITIONS[position]} position"])


def _turns(token: str, end: str, none: str, word: str) -> str:
    """``15som`` is "1.5 somersaults": two digits are a number of half turns, one is a number of whole ones."""
    if token == none:
        return ""
    match = re.fullmatch(rf"(\d)(5?){end}", token)
    if match is None:
        raise ValueError(f"{word}s are {token!r}; expected {none} or a number of turns, such as 15{end} for 1.5")
    turns = f"{match[1]}.5" if match[2] else match[1]
    return f"{turns} {word}" + ("s" if float(turns) > 1 else "")


def _read_vocabulary(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The name and the prompt of each class."""
    names, prompts = [], []
    for label, tokens in enumerate(read_json(path, list)):
        where = f"{path}: class {label}"
        if not isinstance(tokens, list) or len(tokens) != 4 or not all(isinstance(token, str) for token in tokens):
            raise ValueError(
                f'{where} is {shown(tokens)}; expected four tokens, such as ["Back", "15som", "05Twis", "FREE"]'
            )
        try:
            prompts.append(spelled_out((tokens[0], tokens[1], tokens[2], tokens[3])))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        names.append(" ".join(tokens))
    return tuple(names), tuple(prompts)


def _read_list(path: Path, classes: int) -> dict[str, int]:
    """The label of each video."""
    labels: dict[str, int] = {}
    for number, entry in enumerate(read_json(path, list)):
        where = f"{path}: entry {number}"
        name = entry.get("vid_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or re.fullmatch(r".{11}_\d{5}", name) is None:
            raise ValueError(
                f"{where} is {shown(entry)}; expected a video and its label, such as "
                '{"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48}'
            )
        if name in labels:
            raise ValueError(f"{where}: {name} is there already; remove one")
        labels[name] = class_index(entry.get("label"), f"{where} ({name})", classes)
    return labels
