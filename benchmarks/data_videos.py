"""The videos that are decoded: a textured scene that the camera pans over, and an actor that moves in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAMES, RATE = 300, 30


@dataclass(frozen=True)
class VideoCase:
    """One file, and what is asked of it.

    Attributes:
        name: of it.
        height: of the file, pixels.
        width: likewise.
        keyframe_every: frames from one keyframe to the next.
        short_side: to which the frames are scaled; None: not at all.
    """

    name: str
    height: int
    width: int
    keyframe_every: int
    short_side: int | None = None

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of the frames that come out."""
        if self.short_side is None:
            return self.height, self.width
        factor = self.short_side / min(self.height, self.width)
        return round(self.height * factor), round(self.width * factor)

    def described(self) -> str:
        """The file and what is asked of it, as text."""
        scaled = "" if self.short_side is None else f", scaled to {self.result[1]}×{self.result[0]}"
        return f"{self.width}×{self.height}, keyframe every {self.keyframe_every}{scaled}"


#: 250 is what x264 does when nothing is said.
CASES = {
    case.name: case
    for case in (
        VideoCase("320p-12", 320, 568, 12),
        VideoCase("320p-250", 320, 568, 250),
        VideoCase("720p-250", 720, 1280, 250),
        VideoCase("720p-250-to-224", 720, 1280, 250, 224),
    )
}


def write_video(path: Path, case: VideoCase, frames: int = FRAMES, codec: str = "libx264") -> Path:
    """Write the scene as H.264 with the settings of x264's "medium" and crf 23, or with another codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = case.width, case.height, "yuv420p"
        stream.codec_context.gop_size = case.keyframe_every
        stream.options = {"crf": "23", "preset": "medium"} if codec == "libx264" else {}
        for i, picture in enumerate(scene(case.height, case.width, frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def scene(height: int, width: int, frames: int) -> Iterator[np.ndarray]:
    """Pictures [height, width, 3] uint8, the same each time."""
    rng = np.random.default_rng(0)
    tall, wide = int(height * 1.6), int(width * 1.6)
    background = _texture(rng, tall, wide, {64: 40, 16: 25, 4: 15})
    actor = _texture(rng, height // 2, width // 4, {16: 50, 4: 25})
    grain = rng.integers(-3, 4, (8, height, width, 1), dtype=np.int16)
    for t in range(frames):
        top, left = _swing(tall - height, t / 70), _swing(wide - width, t / 50)
        picture = background[top : top + height, left : left + width].copy()
        top, left = _swing(height - len(actor), t / 9), _swing(width - actor.shape[1], t / 13)
        picture[top : top + len(actor), left : left + actor.shape[1]] = actor
        yield np.clip(picture + grain[t % len(grain)], 0, 255).astype(np.uint8)


def _swing(room: int, angle: float) -> int:
    return int(room / 2 * (1 + np.sin(angle)))


def _texture(rng: np.random.Generator, height: int, width: int, amplitudes: dict[int, int]) -> np.ndarray:
    """Smooth noise of several sizes (in pixels), each with its amplitude."""
    total = np.full((height, width, 3), 120.0)
    for size, amplitude in amplitudes.items():
        coarse = rng.standard_normal((height // size + 3, width // size + 3, 3))
        fine = np.kron(coarse, np.ones((size, size, 1)))
        for axis in (0, 1):
            sums = np.cumsum(fine, axis=axis)
            later = np.take(sums, np.arange(size, sums.shape[axis]), axis)
            fine = (later - np.take(sums, np.arange(sums.shape[axis] - size), axis)) / size
        total += amplitude * fine[:height, :width]
    return np.clip(total, 0, 255).astype(np.uint8)
