"""Pictures of a moving humanoid, with the true image position of each joint, by pybullet's software renderer.

No display and no GPU are needed. pybullet is imported when the first stage is built, because its import prints a line
and takes a while.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from art.data.motion.takes import HINGES, JOINTS, Take

#: What is located in each frame: the recorded joints, and the wrists, which the recordings do not turn.
TRACKED = (*JOINTS, "right_wrist", "left_wrist")

_SCALING = 0.25  # the URDF is four times life size
_NEAR, _FAR = 0.1, 30.0

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """How a clip looks: the camera (degrees, metres) and the colours (RGB in 0..1).

    ``yaw`` 0 looks the person in the face; positive goes to the person's left.
    """

    yaw: float
    pitch: float
    distance: float
    field_of_view: float
    body: Colour
    floor: Colour
    light: tuple[float, float, float]


class Stage:
    """A humanoid on a floor in a world of its own. Close it, or use it in a ``with`` block."""

    def __init__(self, size: int) -> None:
        with _silenced():
            import pybullet
            import pybullet_data

            self._bullet: Any = pybullet
            self._client = pybullet.connect(pybullet.DIRECT)
            folder = pybullet_data.getDataPath()
            pybullet.setAdditionalSearchPath(folder, physicsClientId=self._client)
            upright = pybullet.getQuaternionFromEuler([-np.pi / 2, 0, 0])  # the plane is made for Z up
            self._floor = pybullet.loadURDF("plane.urdf", [0, 0, 0], upright, physicsClientId=self._client)
            self._body = pybullet.loadURDF(
                "humanoid/humanoid.urdf", globalScaling=_SCALING, useFixedBase=True, physicsClientId=self._client
            )
        self.size = size
        self._links = {
            pybullet.getJointInfo(self._body, i, physicsClientId=self._client)[12].decode(): i
            for i in range(pybullet.getNumJoints(self._body, physicsClientId=self._client))
        }

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the world back."""
        self._bullet.disconnect(self._client)

    def film(
        self, poses: Take, view: View
    ) -> tuple[UInt8[np.ndarray, "t size size 3"], Float[np.ndarray, "t joints 2"]]:
        """Render each pose of ``poses``.

        Returns:
            the frames, and for each frame the (x, y) position of each joint of :data:`TRACKED` as a share of the
            image's width and height, (0, 0) at the top left; a joint out of view lies outside 0..1.
        """
        self._paint(view)
        projection = self._bullet.computeProjectionMatrixFOV(view.field_of_view, 1.0, _NEAR, _FAR)
        target = poses.root.copy()
        target[:, 1] = np.median(poses.root[:, 1])  # follow over the floor, not up and down
        frames = np.empty((len(poses.times), self.size, self.size, 3), dtype=np.uint8)
        positions = np.empty((len(poses.times), len(TRACKED), 2))
        for i in range(len(poses.times)):
            self._pose(poses, i)
            camera = self._bullet.computeViewMatrix(_eye(target[i], view), target[i].tolist(), [0, 1, 0])
            frames[i] = self._picture(camera, projection, view)
            positions[i] = self._locate(camera, projection)
        return frames, positions

    def _paint(self, view: View) -> None:
        bullet, client = self._bullet, self._client
        bullet.changeVisualShape(self._floor, -1, rgbaColor=[*view.floor, 1], physicsClientId=client)
        for link in range(-1, len(self._links)):
            bullet.changeVisualShape(self._body, link, rgbaColor=[*view.body, 1], physicsClientId=client)

    def _pose(self, poses: Take, i: int) -> None:
        bullet, client = self._bullet, self._client
        bullet.resetBasePositionAndOrientation(
            self._body, poses.root[i], _xyzw(poses.rotation[i]), physicsClientId=client
        )
        for name, values in poses.joints.items():
            if name in HINGES:
                bullet.resetJointState(self._body, self._links[name], values[i, 0], physicsClientId=client)
            else:
                bullet.resetJointStateMultiDof(self._body, self._links[name], _xyzw(values[i]), physicsClientId=client)

    def _picture(self, camera: list[float], projection: list[float], view: View) -> UInt8[np.ndarray, "size size 3"]:
        bullet = self._bullet
        _, _, pixels, _, _ = bullet.getCameraImage(
            self.size,
            self.size,
            camera,
            projection,
            lightDirection=view.light,
            shadow=0,
            renderer=bullet.ER_TINY_RENDERER,
            flags=bullet.ER_NO_SEGMENTATION_MASK,
            physicsClientId=self._client,
        )
        return np.asarray(pixels, dtype=np.uint8).reshape(self.size, self.size, 4)[..., :3]

    def _locate(self, camera: list[float], projection: list[float]) -> Float[np.ndarray, "joints 2"]:
        links = [self._links[name] for name in TRACKED]
        states = self._bullet.getLinkStates(
            self._body, links, computeForwardKinematics=True, physicsClientId=self._client
        )
        world = np.array([[*state[4], 1.0] for state in states])  # state[4]: the joint's own frame
        # pybullet's matrices are column-major.
        to_clip = (np.reshape(camera, (4, 4)) @ np.reshape(projection, (4, 4))).astype(np.float64)
        clip = world @ to_clip
        screen = clip[:, :2] / clip[:, 3:]
        return np.stack([0.5 + 0.5 * screen[:, 0], 0.5 - 0.5 * screen[:, 1]], axis=1)


def _eye(target: Float[np.ndarray, "3"], view: View) -> list[float]:
    yaw, pitch = np.deg2rad([view.yaw, view.pitch])
    # The recorded person looks along +X, with +Z to the right.
    direction = np.array([np.cos(pitch) * np.cos(yaw), np.sin(pitch), -np.cos(pitch) * np.sin(yaw)])
    return (target + view.distance * direction).tolist()


def _xyzw(wxyz: Float[np.ndarray, "4"]) -> list[float]:
    return [wxyz[1], wxyz[2], wxyz[3], wxyz[0]]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Send what native code prints (pybullet greets and warns about the URDF) to nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        try:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
