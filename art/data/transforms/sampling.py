"""Frame sampling: one frame from each segment of the clip (sparse), or a window of consecutive frames (dense)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

#: "sparse": T segments that cover the clip. "dense": a window of T · stride frames.
SAMPLINGS = ("sparse", "dense")


@dataclass(frozen=True)
class FrameSampling:
    """How T frames are sampled from a clip.

    Attributes:
        kind: one of :data:`SAMPLINGS`. The paper uses "sparse".
        stride: of "dense", the distance between sampled frames. The middle frame of each group of ``stride`` frames is
            used, so that a window as long as the clip samples the same frames as "sparse".

    Raises:
        ValueError: the kind is unknown, or the stride is below 1, or not 1 with "sparse", where it has no effect.

    Examples:
        >>> from art.data import FrameSampling
        >>> FrameSampling().indices(count=100, num_frames=4).tolist()
        [[12, 37, 62, 87]]
        >>> FrameSampling("dense", stride=2).indices(count=100, num_frames=4).tolist()
        [[47, 49, 51, 53]]
    """

    kind: str = "sparse"
    stride: int = 1

    def __post_init__(self) -> None:
        if self.kind not in SAMPLINGS:
            raise ValueError(f"sampling is {self.kind!r}, expected {' or '.join(map(repr, SAMPLINGS))}")
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        if self.kind == "sparse" and self.stride != 1:
            raise ValueError(f"stride is {self.stride}, but only dense sampling has a stride; expected 1")

    def indices(
        self, count: int, num_frames: int, *, views: int = 1, generator: torch.Generator | None = None
    ) -> Int64[Tensor, "views t"]:
        """Sample frame indices of a clip.

        Args:
            count: number of frames in the clip.
            num_frames: T, frames per view.
            views: number of test views, spread evenly over the clip; a single one is in its middle. Sparse views use
                different positions in the same segments, dense views different windows.
            generator: samples one random view (training). None uses fixed positions (test).

        Returns:
            ascending frame indices of each view. A clip with fewer than T frames repeats some of them; a clip shorter
            than a window repeats its last frame.

        Raises:
            ValueError: an argument is below 1, or both a generator and several views are given.
        """
        if views < 1:
            raise ValueError(f"views must be at least 1, got {views}")
        if generator is not None and views != 1:
            raise ValueError(f"views is {views} with a generator, expected 1: only fixed views can be more than one")
        if self.kind == "dense":
            return dense_indices(count, num_frames, self.stride, views=views, generator=generator)
        if generator is not None:
            return segment_indices(count, num_frames, generator)[None]
        # The centers of T · V segments, assigned round-robin: each view has one in each of T segments.
        return segment_indices(count, num_frames * views).view(num_frames, views).T


#: The sampling of the paper.
SPARSE = FrameSampling()


def segment_indices(count: int, num_frames: int, generator: torch.Generator | None = None) -> Int64[Tensor, " t"]:
    """Sparse uniform sampling: one frame from each of ``num_frames`` equal segments of a clip of ``count`` frames, at a
    random position in the segment, or in its center without a generator; see :meth:`FrameSampling.indices`."""
    _check_counts(count, num_frames)
    if generator is None:
        # (t + 1/2) · count / T in integers: exact for every length.
        return (2 * torch.arange(num_frames) + 1) * count // (2 * num_frames)
    position = torch.rand(num_frames, generator=generator, dtype=torch.float64)
    indices = ((torch.arange(num_frames) + position) * (count / num_frames)).long()
    return indices.clamp_(max=count - 1)  # rounding may move the last position to `count`


def dense_indices(
    count: int, num_frames: int, stride: int, *, views: int = 1, generator: torch.Generator | None = None
) -> Int64[Tensor, "views t"]:
    """Dense sampling: every ``stride``-th frame of a window of ``num_frames`` · ``stride`` frames; see
    :meth:`FrameSampling.indices`."""
    _check_counts(count, num_frames)
    positions = max(count - num_frames * stride, 0) + 1
    fixed = generator is None
    starts = segment_indices(positions, views) if fixed else torch.randint(positions, (1,), generator=generator)
    return (starts[:, None] + stride // 2 + stride * torch.arange(num_frames)).clamp_(max=count - 1)


def _check_counts(count: int, num_frames: int) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}: a clip without frames cannot be sampled")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
