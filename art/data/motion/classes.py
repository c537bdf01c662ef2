"""The classes of the ``motion`` data set: an action, which a recorded take gives, and a local detail, which an edit of
that take gives. Neighbouring classes differ in one limb, for all of a clip or for a moment of it, or in the side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from art.data.motion.takes import Take, held, mirrored, rotation_about

Array = np.ndarray


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


def _midway(take: Take) -> Array:
    """How far a passing detail is reached at each pose: wholly in the middle third, not at all at either end."""
    share = np.linspace(0, 1, len(take.times))
    return np.clip((0.4 - np.abs(share - 0.5)) / 0.2, 0, 1)


def _always(take: Take) -> Array:
    return np.ones(len(take.times))


def _arm(side: str, degrees: float, when: Callable[[Take], Array]) -> Callable[[Take], Take]:
    """Hold one arm straight, ``degrees`` up from hanging, sideways (90 is level, 180 straight up)."""

    def edit(take: Take) -> Take:
        strength = when(take)
        outwards = -degrees if side == "right" else degrees
        take = held(take, f"{side}_shoulder", rotation_about((1, 0, 0), outwards), strength)
        return held(take, f"{side}_elbow", np.zeros(1), strength)

    return edit


def _knee(side: str) -> Callable[[Take], Take]:
    """Lift one knee to the front, midway."""

    def edit(take: Take) -> Take:
        strength = _midway(take)
        take = held(take, f"{side}_hip", rotation_about((0, 0, 1), 80.0), strength)
        return held(take, f"{side}_knee", np.full(1, np.deg2rad(-90.0)), strength)

    return edit


WALK = Action("walk", 2.4, anywhere=True)
RUN = Action("run", 1.6, anywhere=True)
JUMP = Action("jump", 1.75, anywhere=False)
DANCE = Action("dance_b", 2.5, anywhere=True)
CARTWHEEL = Action("cartwheel", 2.6, anywhere=False)
KICK = Action("kick", 1.5, anywhere=False)
PUNCH = Action("punch", 2.1, anywhere=False)

CLASSES = (
    MotionClass("walk", WALK, _plain, None),
    MotionClass("walk and hold out the right arm", WALK, _arm("right", 85.0, _midway), "right_elbow"),
    MotionClass("walk and hold out the left arm", WALK, _arm("left", 85.0, _midway), "left_elbow"),
    MotionClass("walk and lift the right knee", WALK, _knee("right"), "right_knee"),
    MotionClass("walk and lift the left knee", WALK, _knee("left"), "left_knee"),
    MotionClass("run", RUN, _plain, None),
    MotionClass("run and raise the right arm", RUN, _arm("right", 165.0, _midway), "right_elbow"),
    MotionClass("run and raise the left arm", RUN, _arm("left", 165.0, _midway), "left_elbow"),
    MotionClass("jump", JUMP, _plain, None),
    MotionClass("jump and hold out the right arm", JUMP, _arm("right", 85.0, _midway), "right_elbow"),
    MotionClass("jump and hold out the left arm", JUMP, _arm("left", 85.0, _midway), "left_elbow"),
    MotionClass("dance", DANCE, _plain, None),
    MotionClass("dance with the right arm hanging", DANCE, _arm("right", 0.0, _always), "right_elbow"),
    MotionClass("dance with the left arm hanging", DANCE, _arm("left", 0.0, _always), "left_elbow"),
    MotionClass("cartwheel to the left", CARTWHEEL, _plain, None),
    MotionClass("cartwheel to the right", CARTWHEEL, mirrored, None),
    MotionClass("kick with the right leg", KICK, _plain, "right_ankle"),
    MotionClass("kick with the left leg", KICK, mirrored, "left_ankle"),
    MotionClass("punch with the left hand", PUNCH, _plain, "left_wrist"),
    MotionClass("punch with the right hand", PUNCH, mirrored, "right_wrist"),
)
