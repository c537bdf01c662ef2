"""Recorded human motion: the takes that the PyPI package ``pybullet`` ships, read, resampled, mirrored and edited.

A take is a table of poses over time. A pose is a root position (metres, Y up), a root rotation and twelve joint
rotations; rotations are quaternions ``(w, x, y, z)`` relative to the parent, except knees and elbows, which are hinges
about the lateral axis (radians).
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

#: Joints in the order of the recorded columns, with the number of columns each one takes.
JOINT_WIDTHS = {
    "chest": 4,
    "neck": 4,
    "right_hip": 4,
    "right_knee": 1,
    "right_ankle": 4,
    "right_shoulder": 4,
    "right_elbow": 1,
    "left_hip": 4,
    "left_knee": 1,
    "left_ankle": 4,
    "left_shoulder": 4,
    "left_elbow": 1,
}
JOINTS = tuple(JOINT_WIDTHS)
HINGES = tuple(name for name, width in JOINT_WIDTHS.items() if width == 1)
FRAME_COLUMNS = 1 + 3 + 4 + sum(JOINT_WIDTHS.values())

Array = np.ndarray


@dataclass(frozen=True)
class Take:
    """One recording: poses at the given times (seconds, starting at 0).

    Attributes:
        name: the take's name, as in its file name.
        times: ``[n]``, strictly increasing.
        root: ``[n, 3]``, the root's position.
        rotation: ``[n, 4]``, the root's rotation.
        joints: joint name to ``[n, 4]`` (quaternion) or ``[n, 1]`` (hinge angle).
        loops: whether the recording continues from its end to its start.
    """

    name: str
    times: Float[Array, " n"]
    root: Float[Array, "n 3"]
    rotation: Float[Array, "n 4"]
    joints: dict[str, Array]
    loops: bool

    @property
    def duration(self) -> float:
        """Length of the recording in seconds."""
        return float(self.times[-1])


def motions_folder() -> Path:
    """Where the installed ``pybullet`` keeps its motions (the package itself is not imported: that is slow)."""
    spec = importlib.util.find_spec("pybullet_data")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The motion data set is made from recordings inside the package 'pybullet', which is not installed: "
            "pip install 'art-kernels[motion]'"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "motions"


@cache
def load_take(name: str) -> Take:
    """Read take ``name`` (``"cartwheel"``, ``"walk"``, …) from the installed recordings.

    Raises:
        ValueError: there is no such take, or its table has another number of columns; the message says which.
    """
    folder = motions_folder()
    path = folder / f"humanoid3d_{name}.txt"
    if not path.is_file():
        known = sorted(p.stem.removeprefix("humanoid3d_") for p in folder.glob("humanoid3d_*.txt"))
        raise ValueError(f"take {name!r} is not among the recorded ones; expected one of {', '.join(known)}")
    content = json.loads(path.read_text())
    table = np.asarray(content["Frames"], dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != FRAME_COLUMNS:
        raise ValueError(f"{path} has rows of {table.shape[1:]} numbers, expected {FRAME_COLUMNS}")
    return take_from_table(name, table, loops=content.get("Loop") == "wrap")


def take_from_table(name: str, table: Float[Array, "n columns"], *, loops: bool) -> Take:
    """Split a recorded table (``dt``, root position, root rotation, joints) into a :class:`Take`."""
    # The first column is the time until the next frame; the last row's is not needed.
    times = np.concatenate([[0.0], np.cumsum(table[:-1, 0])])
    joints, column = {}, 8
    for joint, width in JOINT_WIDTHS.items():
        joints[joint] = table[:, column : column + width]
        column += width
    return Take(name, times, table[:, 1:4], table[:, 4:8], joints, loops)


def sample(take: Take, times: Float[Array, " m"]) -> Take:
    """The take's pose at each of ``times`` (seconds): linear between recorded frames, quaternions by normalised
    interpolation along the shorter arc. Times past either end continue a looping take (with the distance that a cycle
    covers and without a jump in heading) and hold the last pose of one that does not loop."""
    cycle = np.floor_divide(times, take.duration) if take.loops else np.zeros_like(times)
    local = np.clip(times - cycle * take.duration, 0.0, take.duration)
    right = np.clip(np.searchsorted(take.times, local, side="right"), 1, len(take.times) - 1)
    left = right - 1
    weight = ((local - take.times[left]) / (take.times[right] - take.times[left]))[:, None]

    def blend(values: Array) -> Array:
        first, second = values[left], values[right]
        if values.shape[1] == 4:
            return blend_rotations(first, second, weight)
        return first * (1 - weight) + second * weight

    root = blend(take.root)
    stride = take.root[-1] - take.root[0]
    root[:, [0, 2]] += cycle[:, None] * stride[[0, 2]]
    joints = {name: blend(values) for name, values in take.joints.items()}
    return replace(take, times=times, root=root, rotation=blend(take.rotation), joints=joints, loops=False)


def mirrored(take: Take) -> Take:
    """The take reflected left to right (in the plane spanned by up and the recorded forward axis)."""

    def reflect(values: Array) -> Array:
        return values * np.array([1.0, -1.0, -1.0, 1.0]) if values.shape[1] == 4 else values

    joints = {other_side(name): reflect(values) for name, values in take.joints.items()}
    return replace(take, root=take.root * [1.0, 1.0, -1.0], rotation=reflect(take.rotation), joints=joints)


def other_side(name: str) -> str:
    """``right_knee`` for ``left_knee`` and the reverse; any other name unchanged."""
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    if name.startswith("right_"):
        return "left_" + name.removeprefix("right_")
    return name


def held(take: Take, joint: str, target: Float[Array, " width"], strength: Float[Array, " n"]) -> Take:
    """The take with ``joint`` drawn towards the fixed rotation ``target``: not at all where ``strength`` is 0, wholly
    where it is 1."""
    values = take.joints[joint]
    goal = np.broadcast_to(np.asarray(target, dtype=np.float64), values.shape)
    weight = strength[:, None]
    quaternion = values.shape[1] == 4
    mixed = blend_rotations(values, goal, weight) if quaternion else values * (1 - weight) + goal * weight
    return replace(take, joints={**take.joints, joint: mixed})


def blend_rotations(first: Float[Array, "n 4"], second: Float[Array, "n 4"], weight: Float[Array, "n 1"]) -> Array:
    """Normalised linear interpolation of unit quaternions along the shorter arc."""
    sign = np.where((first * second).sum(1, keepdims=True) < 0, -1.0, 1.0)
    mixed = first * (1 - weight) + sign * second * weight
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def rotation_about(axis: tuple[float, float, float], degrees: float) -> Float[Array, "4"]:
    """The quaternion ``(w, x, y, z)`` of a turn by ``degrees`` about the unit vector ``axis``."""
    half = np.deg2rad(degrees) / 2
    return np.concatenate([[np.cos(half)], np.sin(half) * np.asarray(axis, dtype=np.float64)])
