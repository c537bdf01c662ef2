"""Which frames of a clip are looked at: one of each segment of the whole clip, or all of a window within it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

#: "sparse": T segments of the whole clip. "dense": a window of T · stride frames.
SAMPLINGS = ("sparse", "dense")


@dataclass(frozen=True)
class FrameSampling:
    """How T frames are chosen from a clip.

    Attributes:
        kind: one of :data:`SAMPLINGS`. Sparse is the paper's.
        stride: of "dense", how many frames each chosen one stands for; the middle one of them is chosen, so that a
            window as long as the clip holds the frames that "sparse" takes.

    Raises:
        ValueError: an unknown kind, a stride below 1, or one without "dense", where it would have no effect.

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
            raise ValueError(f"stride is {self.stride}, but sparse sampling has none; expected 1, or dense sampling")

    def indices(
        self, count: int, num_frames: int, *, views: int = 1, generator: torch.Generator | None = None
    ) -> Int64[Tensor, "views t"]:
        """Which of ``count`` frames are looked at.

        Args:
            count: how many frames the clip has.
            num_frames: T, how many a view has.
            views: how many views at test: sparse ones take other positions of the same segments, dense ones other
                windows; both lie evenly over the clip, and a single one in its middle.
            generator: draws one view at random (training); None takes fixed ones (test).

        Returns:
            for each view, ascending frame indices. A clip with fewer than T frames repeats some of them; one shorter
            than a window goes on with its last frame.

        Raises:
            ValueError: a number is below 1, or a generator is given with several views.
        """
        if views < 1:
            raise ValueError(f"views must be at least 1, got {views}")
        if generator is not None and views != 1:
            raise ValueError(f"views is {views} with a generator, expected 1: only fixed views come in several")
        if self.kind == "dense":
            return dense_indices(count, num_frames, self.stride, views=views, generator=generator)
        if generator is not None:
            return segment_indices(count, num_frames, generator)[None]
        # The centres of T · V segments, dealt out in turn: each view has one of each of T segments.
        return segment_indices(count, num_frames * views).view(num_frames, views).T


#: The paper's.
SPARSE = FrameSampling()


def segment_indices(count: int, num_frames: int, generator: torch.Generator | None = None) -> Int64[Tensor, " t"]:
    """Sparse uniform sampling: one frame of each of ``num_frames`` equal segments of a clip of ``count`` frames.

    Args:
        count: how many frames the clip has.
        num_frames: T, how many are wanted.
        generator: draws the position inside each segment (training); None takes its centre (test).

    Returns:
        ascending frame indices; a clip with fewer than T frames repeats some of them.

    Raises:
        ValueError: ``count`` or ``num_frames`` is below 1.
    """
    _check(count, num_frames)
    if generator is None:
        # (t + 1/2) · count / T in whole numbers: exact for every length.
        return (2 * torch.arange(num_frames) + 1) * count // (2 * num_frames)
    position = torch.rand(num_frames, generator=generator, dtype=torch.float64)
    indices = ((torch.arange(num_frames) + position) * (count / num_frames)).long()
    return indices.clamp_(max=count - 1)  # rounding may carry the last position to `count` itself


def dense_indices(
    count: int, num_frames: int, stride: int, *, views: int = 1, generator: torch.Generator | None = None
) -> Int64[Tensor, "views t"]:
    """Dense sampling: each ``stride``-th frame of a window of ``num_frames`` · ``stride`` frames.

    Args:
        count: how many frames the clip has.
        num_frames: T, how many are wanted.
        stride: frames from one to the next.
        views: windows at test, evenly over the clip; a single one lies in its middle.
        generator: draws the place of one window (training); None takes fixed places (test).

    Returns:
        for each window, ascending frame indices; beyond the end of a short clip, its last frame again.

    Raises:
        ValueError: ``count`` or ``num_frames`` is below 1.
    """
    _check(count, num_frames)
    places = max(count - num_frames * stride, 0) + 1
    starts = segment_indices(places, views) if generator is None else torch.randint(places, (1,), generator=generator)
    return (starts[:, None] + stride // 2 + stride * torch.arange(num_frames)).clamp_(max=count - 1)


def _check(count: int, num_frames: int) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}: a clip without frames cannot be sampled")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
