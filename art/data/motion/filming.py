"""Rendering one clip and writing it down, so that it is there as a whole or not at all."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from art.data.decoding.frames import ONE_THREAD
from art.data.files import atomic_write
from art.data.motion.classes import CLASSES
from art.data.motion.render import Stage
from art.data.motion.views import Shot, draw_shot, poses_of
from art.data.prepare.reencode import CODEC

_GOP = 12  # short, so that reading a few frames of a clip decodes few others
_QUALITY = {"crf": "18", "preset": "veryfast", "tune": "fastdecode"}  # read many times, written once
# Left to itself x264 takes for some sums what the CPU does fastest: other bits on other CPUs, and with AVX-512, where a
# row is no whole number of 256 pixels, other bits from call to call on one.
_SAME_BITS = {"x264-params": "cpu-independent=1"}


@dataclass(frozen=True)
class Job:
    """Clip ``index`` of a class in a split; ``path`` is where it lies below the root."""

    split: str
    class_index: int
    index: int

    @property
    def path(self) -> str:
        """As the annotation tables and joints.json name the clip."""
        return f"clips/{self.split}/{self.class_index:02d}_{self.index:03d}.mp4"

    def joints_file(self, root: Path) -> Path:
        """Where the positions of its joints wait until all clips are there."""
        return (root / "joints" / self.split / Path(self.path).name).with_suffix(".npy")

    def shot(self, seed: int, frames: int) -> Shot:
        """How it is filmed."""
        return draw_shot(
            CLASSES[self.class_index],
            self.split,
            seed=seed,
            class_index=self.class_index,
            index=self.index,
            frames=frames,
        )


@dataclass(frozen=True)
class Filming:
    """What all clips of a data set share."""

    root: Path
    seed: int
    size: int
    frames: int
    fps: int

    def film(self, stage: Stage, job: Job) -> None:
        """Render a clip; its joints are written first, so that a video file stands for a finished clip."""
        shot = job.shot(self.seed, self.frames)
        pictures, joints = stage.film(poses_of(CLASSES[job.class_index], shot), shot.view)
        atomic_write(job.joints_file(self.root), lambda path: _write_array(path, joints))
        atomic_write(self.root / job.path, lambda path: write_video(path, pictures, self.fps))


def write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: int) -> None:
    """Write RGB frames as H.264 in MP4, with the index in front; the same bytes for the same frames, on every CPU."""
    reformatter = VideoReformatter()
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(CODEC, rate=fps, options={**_QUALITY, **_SAME_BITS})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.gop_size = _GOP
        stream.codec_context.thread_count = 1  # there is a process for each core
        for i, frame in enumerate(frames):
            picture = reformatter.reformat(av.VideoFrame.from_ndarray(frame, "rgb24"), format="yuv420p", **ONE_THREAD)
            picture.pts, picture.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _write_array(path: Path, values: Float[np.ndarray, "..."]) -> None:
    with path.open("wb") as file:  # given a name, numpy would append its suffix to it
        np.save(file, values)


_worker: tuple[Stage, Filming] | None = None


def start_worker(filming: Filming) -> None:
    """Set up a rendering process: one stage serves all of its clips."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a clip that is begun is finished; the main process stops the rest
    _worker = Stage(filming.size), filming


def film_in_worker(job: Job) -> None:
    """Render a clip in a process that :func:`start_worker` has set up."""
    assert _worker is not None
    stage, filming = _worker
    filming.film(stage, job)
