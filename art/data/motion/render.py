"""Rendering of motion clips: random camera, colors, speed and phase, and pybullet's software renderer.

Rendering requires neither a display nor a GPU. pybullet is imported when the first renderer is created, because its
import prints a line and is slow.
"""

from __future__ import annotations

import colorsys
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from art.data.decoding.frames import ONE_THREAD
from art.data.files import atomic_write
from art.data.motion.takes import CLASSES, HINGES, JOINTS, MotionClass, Take, load_take, resample
from art.data.prepare.reencode import CODEC

#: Joints located in each frame: the recorded joints and the wrists, which are not recorded.
TRACKED = (*JOINTS, "right_wrist", "left_wrist")

#: The splits, and the parity of the bins that each uses of a divided range.
SPLITS = {"train": 0, "test": 1}

#: Ranges divided between the splits: minimum, maximum (degrees; fraction of the color circle) and number of bins. The
#: camera yaws and hues of test clips are never seen in training. The number of yaw bins is odd, so that a mirrored clip
#: stays in the bins of its split.
YAW = (-70.0, 70.0, 11)
HUE = (0.0, 1.0, 12)

#: Ranges shared by the splits: degrees below horizontal, meters, factor of the recorded speed.
PITCH, DISTANCE, SPEED = (5.0, 25.0), (2.8, 3.6), (0.85, 1.2)

_BIN_MARGIN = 0.1  # fraction of each bin that is not used, at both ends
_FIELD_OF_VIEW = 48.0  # degrees
_SCALING = 0.25  # the URDF is four times life size
_NEAR, _FAR = 0.1, 30.0

_GOP = 12  # short, so that reading a few frames decodes few others
_QUALITY = {"crf": "18", "preset": "veryfast", "tune": "fastdecode"}  # read many times, written once
# By default x264 selects algorithms by CPU type, which changes the output. With AVX-512, unless rows are a multiple of
# 256 pixels, the output even differs from call to call.
_DETERMINISTIC = {"x264-params": "cpu-independent=1"}

Color = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """Camera (degrees, meters) and colors (RGB in 0..1) of a clip.

    With ``yaw`` 0 the camera faces the person; positive values move it to the person's left.
    """

    yaw: float
    pitch: float
    distance: float
    field_of_view: float
    body: Color
    floor: Color
    light: tuple[float, float, float]


@dataclass(frozen=True)
class ClipParams:
    """Random parameters of a clip."""

    view: View
    speed: float  # factor of the recorded speed
    times: Float[np.ndarray, " frames"]  # of each frame in the take, in seconds
    body_hue: float  # 0..1
    floor_hue: float


def sample_params(
    motion_class: MotionClass, split: str, *, seed: int, class_index: int, index: int, frames: int
) -> ClipParams:
    """Sample the parameters of clip ``index`` of a class and split. The random numbers depend only on seed, split,
    class and index."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = np.random.default_rng([seed, SPLITS[split], class_index, index])
    body_hue, floor_hue = sample_bins(rng, *HUE, split), sample_bins(rng, *HUE, split)
    view = View(
        yaw=sample_bins(rng, *YAW, split),
        pitch=rng.uniform(*PITCH),
        distance=rng.uniform(*DISTANCE),
        field_of_view=_FIELD_OF_VIEW,
        body=colorsys.hsv_to_rgb(body_hue, rng.uniform(0.6, 1), rng.uniform(0.35, 0.8)),
        floor=colorsys.hsv_to_rgb(floor_hue, rng.uniform(0.1, 0.5), rng.uniform(0.7, 1)),
        light=(rng.uniform(-1, 1.5), 2.0, rng.uniform(-1, 1)),
    )
    action = motion_class.action
    take = load_take(action.take)
    speed = rng.uniform(*SPEED)
    start = rng.uniform(0, take.duration) if action.periodic else rng.uniform(-0.1, 0.1) * action.seconds
    times = start + np.linspace(0, action.seconds * speed, frames)
    if not action.periodic:  # hold the first and last pose outside the recording
        times = np.clip(times, 0, take.duration * 0.9999)
    return ClipParams(view, speed, times, body_hue, floor_hue)


def sample_bins(rng: np.random.Generator, low: float, high: float, bins: int, split: str) -> float:
    """Sample uniformly from the bins of a split, of ``bins`` equal bins of low..high, without their edges."""
    width = (high - low) / bins
    first = SPLITS[split]
    chosen = rng.integers((bins + 1 - first) // 2) * 2 + first
    return float(low + width * (chosen + _BIN_MARGIN + (1 - 2 * _BIN_MARGIN) * rng.random()))


def clip_poses(motion_class: MotionClass, params: ClipParams) -> Take:
    """Return the pose of each frame of a clip."""
    return motion_class.edit(resample(load_take(motion_class.action.take), params.times))


class Renderer:
    """Renders a humanoid on a floor, in frames of ``size`` × ``size`` pixels. Call :meth:`close` after use, or use it
    in a ``with`` statement."""

    def __init__(self, size: int) -> None:
        with _suppress_output():
            import pybullet
            import pybullet_data

            self._bullet: Any = pybullet
            self._client = pybullet.connect(pybullet.DIRECT)
            pybullet.setAdditionalSearchPath(pybullet_data.getDataPath(), physicsClientId=self._client)
            upright = pybullet.getQuaternionFromEuler([-np.pi / 2, 0, 0])  # the plane is modeled with Z up
            self._floor = pybullet.loadURDF("plane.urdf", [0, 0, 0], upright, physicsClientId=self._client)
            self._body = pybullet.loadURDF(
                "humanoid/humanoid.urdf", globalScaling=_SCALING, useFixedBase=True, physicsClientId=self._client
            )
        self.size = size
        self._links = {
            pybullet.getJointInfo(self._body, i, physicsClientId=self._client)[12].decode(): i
            for i in range(pybullet.getNumJoints(self._body, physicsClientId=self._client))
        }

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the simulation."""
        self._bullet.disconnect(self._client)

    def render(
        self, poses: Take, view: View
    ) -> tuple[UInt8[np.ndarray, "t size size 3"], Float[np.ndarray, "t joints 2"]]:
        """Render each pose.

        Returns:
            the RGB frames, and for each frame the (x, y) position of each joint in :data:`TRACKED` as fractions of the
            image width and height, with (0, 0) at the top left; joints out of view are outside 0..1.
        """
        self._set_colors(view)
        projection = self._bullet.computeProjectionMatrixFOV(view.field_of_view, 1.0, _NEAR, _FAR)
        target = poses.root.copy()
        target[:, 1] = np.median(poses.root[:, 1])  # the camera follows horizontally, not vertically
        frames = np.empty((len(poses.times), self.size, self.size, 3), dtype=np.uint8)
        positions = np.empty((len(poses.times), len(TRACKED), 2))
        for i in range(len(poses.times)):
            self._set_pose(poses, i)
            camera = self._bullet.computeViewMatrix(_camera_position(target[i], view), target[i].tolist(), [0, 1, 0])
            frames[i] = self._render_frame(camera, projection, view)
            positions[i] = self._locate_joints(camera, projection)
        return frames, positions

    def _set_colors(self, view: View) -> None:
        bullet, client = self._bullet, self._client
        bullet.changeVisualShape(self._floor, -1, rgbaColor=[*view.floor, 1], physicsClientId=client)
        for link in range(-1, len(self._links)):
            bullet.changeVisualShape(self._body, link, rgbaColor=[*view.body, 1], physicsClientId=client)

    def _set_pose(self, poses: Take, i: int) -> None:
        bullet, client = self._bullet, self._client
        bullet.resetBasePositionAndOrientation(
            self._body, poses.root[i], _xyzw(poses.rotation[i]), physicsClientId=client
        )
        for name, values in poses.joints.items():
            if name in HINGES:
                bullet.resetJointState(self._body, self._links[name], values[i, 0], physicsClientId=client)
            else:
                bullet.resetJointStateMultiDof(self._body, self._links[name], _xyzw(values[i]), physicsClientId=client)

    def _render_frame(
        self, camera: list[float], projection: list[float], view: View
    ) -> UInt8[np.ndarray, "size size 3"]:
        renderer, flags = self._bullet.ER_TINY_RENDERER, self._bullet.ER_NO_SEGMENTATION_MASK
        options = {"lightDirection": view.light, "shadow": 0, "renderer": renderer, "flags": flags}
        _, _, pixels, _, _ = self._bullet.getCameraImage(
            self.size, self.size, camera, projection, **options, physicsClientId=self._client
        )
        return np.asarray(pixels, dtype=np.uint8).reshape(self.size, self.size, 4)[..., :3]

    def _locate_joints(self, camera: list[float], projection: list[float]) -> Float[np.ndarray, "joints 2"]:
        links = [self._links[name] for name in TRACKED]
        states = self._bullet.getLinkStates(
            self._body, links, computeForwardKinematics=True, physicsClientId=self._client
        )
        world = np.array([[*state[4], 1.0] for state in states])  # state[4]: position of the joint
        # pybullet's matrices are column-major.
        to_clip = (np.reshape(camera, (4, 4)) @ np.reshape(projection, (4, 4))).astype(np.float64)
        clip = world @ to_clip
        screen = clip[:, :2] / clip[:, 3:]
        return np.stack([0.5 + 0.5 * screen[:, 0], 0.5 - 0.5 * screen[:, 1]], axis=1)


def _camera_position(target: Float[np.ndarray, "3"], view: View) -> list[float]:
    yaw, pitch = np.deg2rad([view.yaw, view.pitch])
    # The recorded person faces +X, with +Z to the right.
    direction = np.array([np.cos(pitch) * np.cos(yaw), np.sin(pitch), -np.cos(pitch) * np.sin(yaw)])
    return (target + view.distance * direction).tolist()


def _xyzw(wxyz: Float[np.ndarray, "4"]) -> list[float]:
    return [wxyz[1], wxyz[2], wxyz[3], wxyz[0]]


@contextlib.contextmanager
def _suppress_output() -> Iterator[None]:
    """Discard the output of native code (pybullet prints a banner and warnings about the URDF)."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with Path(os.devnull).open("wb") as null:
        try:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
            yield
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])


def write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: int) -> None:
    """Write RGB frames as H.264 in MP4, with the index at the start. The output does not depend on the CPU type."""
    reformatter = VideoReformatter()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(CODEC, rate=fps, options={**_QUALITY, **_DETERMINISTIC})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.gop_size = _GOP
        stream.codec_context.thread_count = 1  # there is one process per core
        for i, rgb in enumerate(frames):
            frame = reformatter.reformat(av.VideoFrame.from_ndarray(rgb, "rgb24"), format="yuv420p", **ONE_THREAD)
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@dataclass(frozen=True)
class ClipJob:
    """A clip to render: clip ``index`` of a class in a split of the dataset in ``root``."""

    root: Path
    split: str
    class_index: int
    index: int
    seed: int
    size: int
    frames: int
    fps: int

    @property
    def path(self) -> str:
        """Path of the clip relative to the root, as in the tables and joints.json."""
        return f"clips/{self.split}/{self.class_index:02d}_{self.index:03d}.mp4"

    @property
    def joints_file(self) -> Path:
        """File with the joint positions of the clip until joints.json is written."""
        return (self.root / "joints" / self.split / Path(self.path).name).with_suffix(".npy")

    @property
    def params(self) -> ClipParams:
        """Random parameters of the clip."""
        place = {"class_index": self.class_index, "index": self.index}
        return sample_params(CLASSES[self.class_index], self.split, seed=self.seed, frames=self.frames, **place)


_renderer: Renderer | None = None  # reused by all clips of a process


def render_clip(job: ClipJob) -> None:
    """Render a clip. Its joints are written first, so that an existing video means that the clip is finished."""
    global _renderer
    if _renderer is None or _renderer.size != job.size:
        if _renderer is not None:
            _renderer.close()
        _renderer = Renderer(job.size)
    params = job.params
    frames, joints = _renderer.render(clip_poses(CLASSES[job.class_index], params), params.view)
    atomic_write(job.joints_file, lambda path: _write_array(path, joints))
    atomic_write(job.root / job.path, lambda path: write_video(path, frames, job.fps))


def _write_array(path: Path, values: Float[np.ndarray, "..."]) -> None:
    with path.open("wb") as file:  # np.save would append a suffix to a path
        np.save(file, values)
