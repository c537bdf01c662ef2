"""NTU RGB+D 60 and 120 (Shahroudy et al., CVPR 2016; Liu et al., TPAMI 2019; https://rose1.ntu.edu.sg/dataset/actionRecognition).

There is no annotation file: the file name of a video encodes its annotation. ``S001C002P003R002A013_rgb.avi`` is setup
1, camera 2, performer 3, replication 2, action 13. The videos are in ``nturgb+d_rgb`` (the name in their archives),
``rgb``, ``videos`` or the root; the suffix ``_rgb`` is optional. A directory with all of NTU RGB+D 120 also serves as
NTU RGB+D 60.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from art.data.datasets.annotations import VIDEO_SUFFIXES, first_directory
from art.data.datasets.base import Clip, ClipSet, check_root, register_dataset

SPLITS = ("train", "test")

_DIRECTORIES = ("nturgb+d_rgb", "rgb", "videos", "")
_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})(_rgb)?")

#: Training performers of X-Sub60. X-Sub120 adds performers of the later recordings.
XSUB60_TRAIN = frozenset([1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38])
XSUB120_TRAIN = XSUB60_TRAIN | frozenset(
    [45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89, *range(91, 96), 97, 98, 100, 103]
)

#: The published names of A001 to A120, without the final dot; A001 to A060 are those of NTU RGB+D 60.
CLASS_NAMES = (
    "drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup", "throw", "sitting down",
    "standing up (from sitting position)", "clapping",
    "reading", "writing", "tear up paper", "wear jacket", "take off jacket", "wear a shoe", "take off a shoe",
    "wear on glasses", "take off glasses", "put on a hat/cap",
    "take off a hat/cap", "cheer up", "hand waving", "kicking something",
    "put something inside pocket / take out something from pocket", "hopping (one foot jumping)", "jump up",
    "make a phone call/answer phone", "playing with phone/tablet", "typing on a keyboard",
    "pointing to something with finger", "taking a selfie", "check time (from watch)", "rub two hands together",
    "nod head/bow", "shake head", "wipe face", "salute", "put the palms together", "cross hands in front (say stop)",
    "sneeze/cough", "staggering", "falling", "touch head (headache)", "touch chest (stomachache/heart pain)",
    "touch back (backache)", "touch neck (neckache)", "nausea or vomiting condition",
    "use a fan (with hand or paper)/feeling warm", "punching/slapping other person",
    "kicking other person", "pushing other person", "pat on back of other person", "point finger at the other person",
    "hugging other person", "giving something to other person", "touch other person's pocket", "handshaking",
    "walking towards each other", "walking apart from each other",
    "put on headphone", "take off headphone", "shoot at the basket", "bounce ball", "tennis bat swing",
    "juggling table tennis balls", "hush (quite)", "flick hair", "thumb up", "thumb down",
    "make ok sign", "make victory sign", "staple book", "counting money", "cutting nails",
    "cutting paper (using scissors)", "snapping fingers", "open bottle", "sniff (smell)", "squat down",
    "toss a coin", "fold paper", "ball up paper", "play magic cube", "apply cream on face", "apply cream on hand back",
    "put on bag", "take off bag", "put something into a bag", "take something out of a bag",
    "open a box", "move heavy objects", "shake fist", "throw up cap/hat", "hands up (both hands)", "cross arms",
    "arm circles", "arm swings", "running on the spot", "butt kicks (kick backward)",
    "cross toe touch", "side kick", "yawn", "stretch oneself", "blow nose", "hit other person with something",
    "wield knife towards other person", "knock over other person (hit with body)", "grab other person's stuff",
    "shoot at other person with a gun",
    "step on foot", "high-five", "cheers and drink", "carry something with other person",
    "take a photo of other person", "follow other person", "whisper in other person's ear",
    "exchange things with other person", "support somebody with one's hand (someone is sick, help him to walk)",
    "finger-guessing game (playing rock-paper-scissors)",
)  # fmt: skip


class Recording(NamedTuple):
    """The fields of a video's file name."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int


class _Protocol(NamedTuple):
    """A dataset and the rule that selects its training split."""

    name: str
    classes: int
    setups: int
    performers: int
    in_training: Callable[[Recording], bool]
    description: str


_PROTOCOLS = (
    _Protocol("ntu60_xsub", 60, 17, 40, lambda r: r.performer in XSUB60_TRAIN, "tested on other performers"),
    _Protocol("ntu60_xview", 60, 17, 40, lambda r: r.camera in (2, 3), "tested on another camera"),
    _Protocol("ntu120_xsub", 120, 32, 106, lambda r: r.performer in XSUB120_TRAIN, "tested on other performers"),
    _Protocol("ntu120_xset", 120, 32, 106, lambda r: r.setup % 2 == 0, "tested on other setups"),
)


def class_prompt(class_name: str) -> str:
    """Remove parenthesized parts and trailing dots from a class name."""
    return re.sub(r"\s*\([^)]*\)", "", class_name).rstrip(" .")


def parse_name(name: str) -> Recording | None:
    """Parse the file name of a video, without its suffix; None if it is not an NTU RGB+D name."""
    match = _NAME.fullmatch(name)
    return None if match is None else Recording(*(int(match[i]) for i in range(1, 6)))


def _open(protocol: _Protocol, root: Path, split: str) -> ClipSet:
    """Open a split of NTU RGB+D: the videos found, sorted by name. A horizontal flip keeps the class: no class names a
    side."""
    clips = []
    for path, recording in _recordings(root):
        if protocol.classes == 60 and recording.setup > protocol.setups:
            continue  # a later recording, only in NTU RGB+D 120
        _check_range(path, recording, protocol)
        if protocol.in_training(recording) == (split == "train"):
            clips.append(Clip(path, recording.action - 1))
    names, mirror = CLASS_NAMES[: protocol.classes], tuple(range(protocol.classes))
    return ClipSet(protocol.name, split, root, tuple(clips), names, tuple(map(class_prompt, names)), mirror)


def _recordings(root: Path) -> list[tuple[Path, Recording]]:
    check_root(root)
    directory = first_directory(root, _DIRECTORIES)
    found: dict[Recording, Path] = {}
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix.lower()}" not in VIDEO_SUFFIXES:
            stem = name  # possibly a directory of frames
        recording = parse_name(stem)
        if recording is None:
            if stem != name:
                raise ValueError(
                    f"{directory / name}: not an NTU RGB+D file name; expected one such as S001C002P003R002A013_rgb.avi"
                )
            continue
        if recording in found:
            raise ValueError(f"{directory / name}: the same recording as {found[recording].name}; remove one")
        found[recording] = directory / name
    if not found:
        raise ValueError(
            f"{directory} contains no NTU RGB+D video; expected file names such as S001C002P003R002A013_rgb.avi"
        )
    return [(path, recording) for recording, path in found.items()]


def _check_range(path: Path, recording: Recording, protocol: _Protocol) -> None:
    limits = {"setup": protocol.setups, "camera": 3, "performer": protocol.performers, "replication": 2}
    for part, limit in {**limits, "action": protocol.classes}.items():
        value = getattr(recording, part)
        if not 1 <= value <= limit:
            raise ValueError(f"{path}: {part} is {value}; expected 1 to {limit} in {protocol.name}")


def _register(protocol: _Protocol) -> None:
    description = f"NTU RGB+D {protocol.classes}: {protocol.classes} actions, {protocol.description}"

    @register_dataset(protocol.name, description=description, splits=SPLITS)
    def opener(root: Path, split: str) -> ClipSet:
        return _open(protocol, root, split)


for _protocol in _PROTOCOLS:
    _register(_protocol)
