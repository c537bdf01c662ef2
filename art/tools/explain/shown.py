"""The frames of a clip that a model is shown: T of the whole clip, and T of each of its beginnings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from art.data.decoding.frame_converter import Pictures
from art.data.decoding.video import VideoError, frame_times, iterate_frames
from art.model.pretrained import VideoClassifier


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch works in one thread: for one frame at a time, waking others takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class ShownFrames:
    """What a model sees of one video file.

    Attributes:
        size: height and width of an upright frame of the file, in pixels.
        times: ``[F]``, when each frame of the file is shown, seconds since the first.
        sampled: ``[T]``, the positions of the frames that the model is shown of the whole clip.
        beginnings: ``[M]``, of how many frames each beginning of the clip consists; the last is the whole clip.
        positions: ``[M, T]``, the positions of the frames that the model is shown of each beginning.
        crops: by position, ``[3, S, S]`` uint8: the frame as the model wants it.
    """

    size: tuple[int, int]
    times: Float64[np.ndarray, " f"]
    sampled: Int64[np.ndarray, " t"]
    beginnings: Int64[np.ndarray, " m"]
    positions: Int64[np.ndarray, "m t"]
    crops: dict[int, UInt8[Tensor, "3 s s"]]

    @property
    def video(self) -> UInt8[Tensor, "1 t 3 s s"]:
        """What the model is shown of the whole clip: what :meth:`art.VideoClassifier.predict` shows it."""
        return torch.stack([self.crops[int(position)] for position in self.sampled])[None]

    def beginning(self, number: int) -> UInt8[Tensor, "t 3 s s"]:
        """What it is shown of one of the beginnings."""
        return torch.stack([self.crops[int(position)] for position in self.positions[number]])


def read_shown(clip: Path, model: VideoClassifier, moments: int) -> ShownFrames:
    """Read the frames in one pass; no other frame is converted, and only crops of the model's size are kept.

    Args:
        clip: a video file.
        moments: M, how many beginnings of the clip, in equal steps; fewer where it has fewer frames; 0 is none.

    Raises:
        VideoError: the file cannot be read, or changes its picture size.
    """
    if clip.is_dir():
        raise VideoError(clip, "is a folder, expected a video file: frames alone do not say when they are shown")
    times = np.array(frame_times(clip))
    count = len(times)
    sampled = model.sampling.indices(count, model.num_frames)[0].numpy()
    parts = min(moments, count)
    beginnings = np.array([math.ceil((number + 1) * count / parts) for number in range(parts)], dtype=np.int64)
    chosen = [model.sampling.indices(int(length), model.num_frames)[0].numpy() for length in beginnings]
    positions = np.stack(chosen) if chosen else np.empty((0, model.num_frames), dtype=np.int64)
    wanted = set(sampled.tolist()) | set(positions.flatten().tolist())
    crops: dict[int, Tensor] = {}
    size: tuple[int, int] | None = None
    with one_thread():
        for position, picture in _pictures(clip, wanted):
            if size is not None and picture.shape[:2] != size:
                raise VideoError(clip, "changes its picture size; write it again in one size")
            size = (picture.shape[0], picture.shape[1])
            frame = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
            crops[position] = model.centre_crop(frame[None, None])[0, 0].clone()
    if size is None or len(crops) < len(wanted):
        raise VideoError(clip, f"gives {len(crops)} of the {len(wanted)} frames that are wanted")
    return ShownFrames(size, times, sampled, beginnings, positions, crops)


def _pictures(clip: Path, wanted: set[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    convert = Pictures([0], None).convert
    for position, shown in enumerate(iterate_frames(clip)):
        if position in wanted:
            yield position, convert(shown.frame)
