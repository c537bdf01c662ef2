"""NTU RGB+D 60 and 120 (Shahroudy et al., CVPR 2016; Liu et al., TPAMI 2019; https://rose1.ntu.edu.sg/dataset/actionRecognition).

There is no annotation file: the name of a video says everything. ``S001C002P003R002A013_rgb.avi`` is setup 1, camera 2,
performer 3, replication 2, action 13. The videos lie in ``nturgb+d_rgb`` (as their archives unpack), ``rgb``,
``videos`` or the root; ``_rgb`` may be left out of a name. A folder that holds all of NTU RGB+D 120 serves for 60 too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from art.data.datasets.annotations import VIDEO_SUFFIXES
from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import Opener, check_root, register_dataset

SPLITS = ("train", "test")

_FOLDERS = ("nturgb+d_rgb", "rgb", "videos", "")
_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})(_rgb)?")

#: Training performers of X-Sub60; those of X-Sub120 are these and some of the later recordings.
XSUB60_TRAIN = frozenset([1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38])
XSUB120_TRAIN = XSUB60_TRAIN | frozenset(
    [45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89, *range(91, 96), 97, 98, 100, 103]
)

#: The published names of A001 to A120, without the dot at their ends; A001 to A060 are those of NTU RGB+D 60.
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


@dataclass(frozen=True)
class Recording:
    """What the name of a video says."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int


@dataclass(frozen=True)
class _Protocol:
    """A data set and the half of it that is trained on."""

    name: str
    classes: int
    setups: int
    performers: int
    trained_on: Callable[[Recording], bool]
    description: str


_PROTOCOLS = (
    _Protocol("ntu60_xsub", 60, 17, 40, lambda r: r.performer in XSUB60_TRAIN, "other performers are tested"),
    _Protocol("ntu60_xview", 60, 17, 40, lambda r: r.camera in (2, 3), "another camera is tested"),
    _Protocol("ntu120_xsub", 120, 32, 106, lambda r: r.performer in XSUB120_TRAIN, "other performers are tested"),
    _Protocol("ntu120_xset", 120, 32, 106, lambda r: r.setup % 2 == 0, "other setups are tested"),
)


def prompt_of(class_name: str) -> str:
    """A class name without what it has in parentheses and without dots at its end."""
    return re.sub(r"\s*\([^)]*\)", "", class_name).rstrip(" .")


def parse_name(name: str) -> Recording | None:
    """What the name of a video without its suffix says; None where it is no name of NTU RGB+D."""
    match = _NAME.fullmatch(name)
    return None if match is None else Recording(*(int(match[i]) for i in range(1, 6)))


def _open(protocol: _Protocol, root: Path, split: str) -> ClipSet:
    """A split of NTU RGB+D: the videos that are there, in the order of their names. A horizontal flip keeps every
    class: none names a side.

    Raises:
        FileNotFoundError: ``root`` is not there.
        ValueError: a video whose name is of another form, or no video.
    """
    clips = []
    for path, recording in _recordings(root):
        if protocol.classes == 60 and recording.setup > protocol.setups:
            continue  # of the later recordings, which are those of 120 alone
        _check(path, recording, protocol)
        if protocol.trained_on(recording) == (split == "train"):
            clips.append(Clip(path, recording.action - 1))
    names = CLASS_NAMES[: protocol.classes]
    prompts = tuple(map(prompt_of, names))
    return ClipSet(protocol.name, split, root, tuple(clips), names, prompts, tuple(range(len(names))))


def _recordings(root: Path) -> list[tuple[Path, Recording]]:
    check_root(root)
    folder = next(folder for folder in (root / name for name in _FOLDERS) if folder.is_dir())
    found: dict[Recording, Path] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix.lower()}" not in VIDEO_SUFFIXES:
            stem = name  # of a folder of frames, if it fits
        recording = parse_name(stem)
        if recording is None:
            if stem != name:
                raise ValueError(
                    f"{folder / name}: is no name of NTU RGB+D; expected such as S001C002P003R002A013_rgb.avi"
                )
            continue
        if recording in found:
            raise ValueError(f"{folder / name}: is there already, as {found[recording].name}; remove one")
        found[recording] = folder / name
    if not found:
        raise ValueError(f"{folder} holds no video of NTU RGB+D; expected such as S001C002P003R002A013_rgb.avi")
    return [(path, recording) for recording, path in found.items()]


def _check(path: Path, recording: Recording, protocol: _Protocol) -> None:
    limits = {"setup": protocol.setups, "camera": 3, "performer": protocol.performers, "replication": 2}
    for part, limit in {**limits, "action": protocol.classes}.items():
        value = getattr(recording, part)
        if not 1 <= value <= limit:
            raise ValueError(f"{path}: {part} is {value}; expected 1 to {limit} in {protocol.name}")


def _opener(protocol: _Protocol) -> Opener:
    def opener(root: Path, split: str) -> ClipSet:
        return _open(protocol, root, split)

    return opener


for _protocol in _PROTOCOLS:
    register_dataset(
        _protocol.name,
        description=f"NTU RGB+D {_protocol.classes}: {_protocol.classes} actions, {_protocol.description}",
        splits=SPLITS,
    )(_opener(_protocol))
