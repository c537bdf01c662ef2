"""Recorded human motion from the PyPI package ``pybullet``, and the action classes derived from it.

A take is a recording: a table of poses over time. A pose consists of a root position (meters, Y up), a root rotation
and twelve joint rotations. Rotations are quaternions ``(w, x, y, z)`` relative to the parent joint, except for knees
and elbows, which are hinges about the lateral axis (angles in radians).

A class combines an action, defined by a take, with a local detail, defined by an edit of that take. Similar classes
differ in one limb, during the whole clip or part of it, or in the side of the body.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

#: Joints in the order of the recorded columns, with the number of columns of each.
JOINT_WIDTHS = {
    "chest": 4, "neck": 4,
    "right_hip": 4, "right_knee": 1, "right_ankle": 4, "right_shoulder": 4, "right_elbow": 1,
    "left_hip": 4, "left_knee": 1, "left_ankle": 4, "left_shoulder": 4, "left_elbow": 1,
}  # fmt: skip
JOINTS = tuple(JOINT_WIDTHS)
HINGES = tuple(name for name, width in JOINT_WIDTHS.items() if width == 1)
FRAME_COLUMNS = 1 + 3 + 4 + sum(JOINT_WIDTHS.values())

Array = np.ndarray


@dataclass(frozen=True)
class Take:
    """A recording."""

    name: str  # as in its file name
    times: Float[Array, " n"]  # of each pose, in seconds, strictly increasing from 0
    root: Float[Array, "n 3"]
    rotation: Float[Array, "n 4"]  # of the root
    joints: dict[str, Array]  # [n, 4] (quaternion) or [n, 1] (hinge angle)
    loops: bool  # whether the recording can be repeated seamlessly

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.times[-1])


def recordings_directory() -> Path:
    """Return the directory of the recordings in the installed ``pybullet``, without importing it, which is slow."""
    spec = importlib.util.find_spec("pybullet_data")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The motion dataset is made from recordings in the package 'pybullet', which is not installed: "
            "pip install 'art-kernels[motion]'"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "motions"


@cache
def load_take(name: str) -> Take:
    """Load the take ``name`` (``"cartwheel"``, ``"walk"``, …)."""
    directory = recordings_directory()
    path = directory / f"humanoid3d_{name}.txt"
    if not path.is_file():
        known = sorted(p.stem.removeprefix("humanoid3d_") for p in directory.glob("humanoid3d_*.txt"))
        raise ValueError(f"take {name!r} does not exist; expected one of {', '.join(known)}")
    content = json.loads(path.read_text())
    table = np.asarray(content["Frames"], dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != FRAME_COLUMNS:
        raise ValueError(f"{path} has rows of {table.shape[1:]} numbers, expected {FRAME_COLUMNS}")
    return take_from_table(name, table, loops=content.get("Loop") == "wrap")


def take_from_table(name: str, table: Float[Array, "n columns"], *, loops: bool) -> Take:
    """Build a take from the columns of a recording: time step, root position, root rotation, joints."""
    # The time step of a row leads to the next row, so the last one is not used.
    times = np.concatenate([[0.0], np.cumsum(table[:-1, 0])])
    joints, column = {}, 8
    for joint, width in JOINT_WIDTHS.items():
        joints[joint] = table[:, column : column + width]
        column += width
    return Take(name, times, table[:, 1:4], table[:, 4:8], joints, loops)


def resample(take: Take, times: Float[Array, " m"]) -> Take:
    """Interpolate a take at the given times (seconds).

    Positions and angles are interpolated linearly, quaternions by normalized linear interpolation. Times outside the
    recording continue a looping take, with the distance covered per cycle and without a jump in heading. Other takes
    hold their first or last pose.
    """
    cycle = np.floor_divide(times, take.duration) if take.loops else np.zeros_like(times)
    local = np.clip(times - cycle * take.duration, 0.0, take.duration)
    right = np.clip(np.searchsorted(take.times, local, side="right"), 1, len(take.times) - 1)
    left = right - 1
    weight = ((local - take.times[left]) / (take.times[right] - take.times[left]))[:, None]
    root = _blend(take.root[left], take.root[right], weight)
    stride = take.root[-1] - take.root[0]
    root[:, [0, 2]] += cycle[:, None] * stride[[0, 2]]
    rotation = _blend(take.rotation[left], take.rotation[right], weight)
    joints = {name: _blend(values[left], values[right], weight) for name, values in take.joints.items()}
    return replace(take, times=times, root=root, rotation=rotation, joints=joints, loops=False)


def mirror(take: Take) -> Take:
    """Swap left and right (reflect in the plane of the up and forward axes)."""

    def reflect(values: Array) -> Array:
        return values * np.array([1.0, -1.0, -1.0, 1.0]) if values.shape[1] == 4 else values

    joints = {_other_side(name): reflect(values) for name, values in take.joints.items()}
    return replace(take, root=take.root * [1.0, 1.0, -1.0], rotation=reflect(take.rotation), joints=joints)


def _other_side(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"left": f"right_{rest}", "right": f"left_{rest}"}.get(side, name)


def hold_joint(take: Take, joint: str, target: Float[Array, " width"], strength: Float[Array, " n"]) -> Take:
    """Blend the rotation of ``joint`` with the fixed rotation ``target``, by weights ``strength`` in 0..1."""
    values = take.joints[joint]
    goal = np.broadcast_to(np.asarray(target, dtype=np.float64), values.shape)
    return replace(take, joints={**take.joints, joint: _blend(values, goal, strength[:, None])})


def _blend(first: Array, second: Array, weight: Float[Array, "n 1"]) -> Array:
    """Interpolate linearly; quaternions are normalized and take the shorter arc."""
    if first.shape[1] != 4:
        return first * (1 - weight) + second * weight
    sign = np.where((first * second).sum(1, keepdims=True) < 0, -1.0, 1.0)
    mixed = first * (1 - weight) + sign * second * weight
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def rotation_about(axis: tuple[float, float, float], degrees: float) -> Float[Array, "4"]:
    """Return the quaternion ``(w, x, y, z)`` of a rotation about a unit vector."""
    half = np.deg2rad(degrees) / 2
    return np.concatenate([[np.cos(half)], np.sin(half) * np.asarray(axis, dtype=np.float64)])


@dataclass(frozen=True)
class Action:
    """An action, recorded in one take."""

    take: str
    seconds: float  # length of a clip at normal speed
    periodic: bool  # whether clips may start at any phase, instead of near the beginning


@dataclass(frozen=True)
class MotionClass:
    """A class of the motion dataset."""

    name: str  # also used in prompts
    action: Action  # shared with the classes that differ only in the detail
    edit: Callable[[Take], Take]  # turns the resampled take into this class
    #: The tracked joint that distinguishes this class from similar ones; None if the whole body does (an action without
    #: a detail, or a direction).
    joint: str | None


def _unchanged(take: Take) -> Take:
    return take


def _midway(take: Take) -> Array:
    """Weights that rise from 0 at both ends to 1 in the middle of the clip."""
    position = np.linspace(0, 1, len(take.times))
    return np.clip((0.4 - np.abs(position - 0.5)) / 0.2, 0, 1)


def _always(take: Take) -> Array:
    return np.ones(len(take.times))


def _arm(side: str, degrees: float, weights: Callable[[Take], Array]) -> Callable[[Take], Take]:
    """Hold one arm straight and raise it sideways by ``degrees`` (90 is horizontal, 180 straight up)."""

    def edit(take: Take) -> Take:
        strength = weights(take)
        outwards = -degrees if side == "right" else degrees
        take = hold_joint(take, f"{side}_shoulder", rotation_about((1, 0, 0), outwards), strength)
        return hold_joint(take, f"{side}_elbow", np.zeros(1), strength)

    return edit


def _knee(side: str) -> Callable[[Take], Take]:
    """Lift one knee to the front in the middle of the clip."""

    def edit(take: Take) -> Take:
        strength = _midway(take)
        take = hold_joint(take, f"{side}_hip", rotation_about((0, 0, 1), 80.0), strength)
        return hold_joint(take, f"{side}_knee", np.full(1, np.deg2rad(-90.0)), strength)

    return edit


WALK = Action("walk", 2.4, periodic=True)
RUN = Action("run", 1.6, periodic=True)
JUMP = Action("jump", 1.75, periodic=False)
DANCE = Action("dance_b", 2.5, periodic=True)
CARTWHEEL = Action("cartwheel", 2.6, periodic=False)
KICK = Action("kick", 1.5, periodic=False)
PUNCH = Action("punch", 2.1, periodic=False)

CLASSES = (
    MotionClass("walk", WALK, _unchanged, None),
    MotionClass("walk and hold out the right arm", WALK, _arm("right", 85.0, _midway), "right_elbow"),
    MotionClass("walk and hold out the left arm", WALK, _arm("left", 85.0, _midway), "left_elbow"),
    MotionClass("walk and lift the right knee", WALK, _knee("right"), "right_knee"),
    MotionClass("walk and lift the left knee", WALK, _knee("left"), "left_knee"),
    MotionClass("run", RUN, _unchanged, None),
    MotionClass("run and raise the right arm", RUN, _arm("right", 165.0, _midway), "right_elbow"),
    MotionClass("run and raise the left arm", RUN, _arm("left", 165.0, _midway), "left_elbow"),
    MotionClass("jump", JUMP, _unchanged, None),
    MotionClass("jump and hold out the right arm", JUMP, _arm("right", 85.0, _midway), "right_elbow"),
    MotionClass("jump and hold out the left arm", JUMP, _arm("left", 85.0, _midway), "left_elbow"),
    MotionClass("dance", DANCE, _unchanged, None),
    MotionClass("dance with the right arm hanging", DANCE, _arm("right", 0.0, _always), "right_elbow"),
    MotionClass("dance with the left arm hanging", DANCE, _arm("left", 0.0, _always), "left_elbow"),
    MotionClass("cartwheel to the left", CARTWHEEL, _unchanged, None),
    MotionClass("cartwheel to the right", CARTWHEEL, mirror, None),
    MotionClass("kick with the right leg", KICK, _unchanged, "right_ankle"),
    MotionClass("kick with the left leg", KICK, mirror, "left_ankle"),
    MotionClass("punch with the left hand", PUNCH, _unchanged, "left_wrist"),
    MotionClass("punch with the right hand", PUNCH, mirror, "right_wrist"),
)
