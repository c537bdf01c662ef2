"""The classes of the ``motion`` data set: an action, which a recorded take gives, and a local detail, which an edit of
that take gives. Neighbouring classes differ in one limb, in the side, or in the direction of time only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .takes import Take, held, mirrored, rotation_about

_LATERAL_OUT = 85.0  # degrees from hanging down to (almost) level


@dataclass(frozen=True)
class Action:
    """What is done: a take, how many seconds of it a clip shows at normal speed, and where in it a clip may start.

    ``anywhere`` is for movements that repeat: a clip then starts at any phase, else near the beginning.
    """

    take: str
    seconds: float
    anywhere: bool


@dataclass(frozen=True)
class MotionClass:
    """One class.

    Attributes:
        name: the class name, as it enters the prompts.
        action: the action, shared with the classes that differ from this one in the detail only.
        edit: turns the resampled take into this class.
        joint: the tracked joint that tells this class from its neighbours; None where the whole body does (a plain
            action, a direction of time).
    """

    name: str
    action: Action
    edit: Callable[[Take], Take]
    joint: str | None


def _plain(take: Take) -> Take:
    return take


def _reversed(take: Take) -> Take:
    """The same poses in the opposite order."""
    joints = {name: values[::-1] for name, values in take.joints.items()}
    return Take(take.name, take.times, take.root[::-1], take.rotation[::-1], joints, take.loops)


def _arm(side: str, degrees: float) -> Callable[[Take], Take]:
    """Hold one arm straight, ``degrees`` up from hanging, sideways (90 is level, 180 straight up)."""

    def edit(take: Take) -> Take:
        always = np.ones(len(take.times))
        outwards = -degrees if side == "right" else degrees
        take = held(take, f"{side}_shoulder", rotation_about((1, 0, 0), outwards), always)
        return held(take, f"{side}_elbow", np.zeros(1), always)

    return edit


WALK = Action("walk", 2.4, anywhere=True)
RUN = Action("run", 1.6, anywhere=True)
JUMP = Action("jump", 1.75, anywhere=False)
DANCE = Action("dance_b", 2.5, anywhere=True)
CARTWHEEL = Action("cartwheel", 2.6, anywhere=False)
KICK = Action("kick", 1.5, anywhere=False)
PUNCH = Action("punch", 2.1, anywhere=False)
BACKFLIP = Action("backflip", 1.75, anywhere=False)

CLASSES = (
    MotionClass("walk", WALK, _plain, None),
    MotionClass("walk with the right arm held out", WALK, _arm("right", _LATERAL_OUT), "right_elbow"),
    MotionClass("walk with the left arm held out", WALK, _arm("left", _LATERAL_OUT), "left_elbow"),
    MotionClass("run", RUN, _plain, None),
    MotionClass("run with the right arm raised", RUN, _arm("right", 165.0), "right_elbow"),
    MotionClass("run with the left arm raised", RUN, _arm("left", 165.0), "left_elbow"),
    MotionClass("jump", JUMP, _plain, None),
    MotionClass("jump with the right arm held out", JUMP, _arm("right", _LATERAL_OUT), "right_elbow"),
    MotionClass("jump with the left arm held out", JUMP, _arm("left", _LATERAL_OUT), "left_elbow"),
    MotionClass("dance", DANCE, _plain, None),
    MotionClass("dance with the right arm hanging", DANCE, _arm("right", 0.0), "right_elbow"),
    MotionClass("dance with the left arm hanging", DANCE, _arm("left", 0.0), "left_elbow"),
    MotionClass("cartwheel to the left", CARTWHEEL, _plain, None),
    MotionClass("cartwheel to the right", CARTWHEEL, mirrored, None),
    MotionClass("kick with the right leg", KICK, _plain, "right_ankle"),
    MotionClass("kick with the left leg", KICK, mirrored, "left_ankle"),
    MotionClass("punch with the left hand", PUNCH, _plain, "left_wrist"),
    MotionClass("punch with the right hand", PUNCH, mirrored, "right_wrist"),
    MotionClass("backflip", BACKFLIP, _plain, None),
    MotionClass("backflip, reversed", BACKFLIP, _reversed, None),
)
