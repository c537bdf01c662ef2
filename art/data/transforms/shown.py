"""What a classifier is shown of a clip when it is to answer: views of it, cropped to the size that it takes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from art.data.decoding.frames import StoredClip
from art.data.decoding.video import read_clip
from art.data.transforms.augment import CentreCrop, three_squares
from art.data.transforms.sampling import SPARSE, FrameSampling


@dataclass(frozen=True)
class ShownViews:
    """Reads a clip as it is shown at test.

    Attributes:
        num_frames: T, frames a view.
        crop: the crop of each frame, to the model's size.
        sampling: which frames of the clip are taken.
        views: so many times T frames, as :class:`.sampling.FrameSampling` chooses them.
        crops: 1, the middle of each frame, or 3, squares along its longer side.
        decoder: of video files, one of :data:`art.data.decoding.video.DECODERS`.

    Raises:
        ValueError: ``views`` is below 1, or ``crops`` is neither 1 nor 3.
    """

    num_frames: int
    crop: CentreCrop
    sampling: FrameSampling = SPARSE
    views: int = 1
    crops: int = 1
    decoder: str = "pyav"

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}")
        if self.crops not in (1, 3):
            raise ValueError(f"crops must be 1 or 3, got {self.crops}")

    def __call__(
        self, clip: str | os.PathLike[str] | StoredClip, start: float | None = None, end: float | None = None
    ) -> UInt8[Tensor, "v t 3 size size"]:
        """The views of one clip, V = views · crops.

        Args:
            clip: a video file, a folder of frames, or either in memory.
            start: seconds since the first frame of the file; None is its beginning.
            end: seconds since the first frame; None is its end.

        Raises:
            art.data.decoding.video.VideoError: it cannot be read.
        """
        frames = read_clip(
            clip,
            self.num_frames,
            start=start,
            end=end,
            sampling=self.sampling,
            views=self.views,
            decoder=self.decoder,
        )
        shown = torch.cat(three_squares(frames)) if self.crops == 3 else frames
        return self.crop(shown.unflatten(0, (-1, self.num_frames)))
