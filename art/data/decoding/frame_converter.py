"""Decoded frames made into the tensor of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from art.data.decoding.interface import scaled_size
from art.data.decoding.packets import Unreadable

#: Converting one small frame in several threads takes longer than in one; before PyAV 17 there was only one.
ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


class Pictures:
    """Puts a clip together: each frame converted once, straight to its places.

    Args:
        keys: what each frame of the clip is known by.
        short_side: as :func:`~art.data.decoding.interface.scaled_size` takes it.

    Attributes:
        clip: [n, 3, h, w] uint8, RGB, upright: whole when each key's frame has been put.
    """

    def __init__(self, keys: Sequence[int], short_side: int | None) -> None:
        self._places: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            self._places.setdefault(key, []).append(place)
        self._count = len(keys)
        self._short_side = short_side
        self._reformatter = VideoReformatter()  # one for all frames: a new one would build its tables again
        self.clip = torch.empty(0, dtype=torch.uint8)

    def put(self, key: int, frame: VideoFrame) -> None:
        """Convert a frame, and write it wherever its key was asked for.

        Raises:
            Unreadable: it is of another size than those before.
        """
        picture = self.convert(frame)
        height, width = picture.shape[:2]
        if len(self.clip) == 0:
            self.clip = torch.empty(self._count, 3, height, width, dtype=torch.uint8)
        elif self.clip.shape[2:] != picture.shape[:2]:
            before = f"{self.clip.shape[3]}×{self.clip.shape[2]}"
            raise Unreadable(f"changes its picture size from {before} to {width}×{height}")
        first, *others = self._places[key]
        self.clip.numpy()[first] = picture.transpose(2, 0, 1)
        for other in others:
            self.clip[other] = self.clip[first]

    def convert(self, frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """One frame, converted and upright."""
        height, width = scaled_size(frame.height, frame.width, self._short_side)
        filtering = Interpolation.BILINEAR
        if (height, width) != (frame.height, frame.width):
            filtering = Interpolation.AREA if width < frame.width else Interpolation.BICUBIC
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=filtering, **ONE_THREAD)
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90))
