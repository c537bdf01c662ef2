"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): two clips become one, and so do their labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor


class PairMix:
    """Mixes the clips of a batch two by two: the first with the second, the third with the fourth, and so on.

    Of a pair, one clip keeps a share λ of itself and takes the rest from the other, which likewise keeps λ; λ comes
    from a Beta(α, α) distribution. Mixup adds the two up pixel by pixel. CutMix puts a box of the other in, the same in
    every frame; λ is then what is left of the clip. The literature mixes each clip with one drawn from the whole batch;
    that neighbours are mixed is our choice, so that a batch that several processes share is mixed as one process would.

    Args:
        num_classes: Y.
        mixup: α of mixup; 0 leaves it out.
        cutmix: α of CutMix; 0 leaves it out. With both, either has half of the pairs.
        probability: that a pair is mixed at all.

    Attributes:
        num_draws: random numbers that a clip takes; those of the first of a pair count.

    Raises:
        ValueError: a value is out of its range, or neither has an α.

    Examples:
        >>> import torch
        >>> from art.data import PairMix
        >>> mix = PairMix(num_classes=3, mixup=0.8)
        >>> draws = torch.rand(2, mix.num_draws)
        >>> clips, shares = mix(torch.rand(2, 4, 3, 16, 16), torch.tensor([0, 2]), draws)
        >>> shares.shape, torch.allclose(shares.sum(1), torch.ones(2))
        (torch.Size([2, 3]), True)
    """

    num_draws = 5

    def __init__(self, num_classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0) -> None:
        for name, alpha in {"mixup": mixup, "cutmix": cutmix}.items():
            if not 0 <= alpha < float("inf"):
                raise ValueError(f"{name} must be a finite number, 0 or more, got {alpha}")
        if not mixup and not cutmix:
            raise ValueError("mixup and cutmix are both 0, expected one of them above 0")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in 0..1, got {probability}")
        self.num_classes, self.probability = num_classes, probability
        self._mixup = symmetric_beta_quantiles(mixup) if mixup else None
        self._cutmix = symmetric_beta_quantiles(cutmix) if cutmix else None

    def __call__(
        self, video: Float[Tensor, "b t 3 h w"], labels: Int64[Tensor, " b"], draws: Float[Tensor, "b 5"]
    ) -> tuple[Float[Tensor, "b t 3 h w"], Float[Tensor, "b y"]]:
        """The mixed clips, and the share of each class in each of them. Of an odd number the last clip stays as it is.

        Args:
            video: clips of one size; they are overwritten.
            labels: the class of each.
            draws: numbers in [0, 1), on the CPU.
        """
        targets = F.one_hot(labels, self.num_classes).to(torch.float32)
        for i, own in zip(range(0, len(video) - 1, 2), draws[::2].tolist(), strict=False):
            if own[0] >= self.probability:
                continue
            share = self._mix(video[i], video[i + 1], own)
            targets[i : i + 2] = torch.lerp(targets[i : i + 2].flip(0), targets[i : i + 2], share)
        return video, targets

    def _mix(self, first: Float[Tensor, "t 3 h w"], second: Float[Tensor, "t 3 h w"], draws: Sequence[float]) -> float:
        """Mix two clips in place; gives λ."""
        if self._cutmix is None or (self._mixup is not None and draws[1] >= 0.5):
            share = _drawn(self._mixup, draws[2])
            before = first.clone()
            first.lerp_(second, 1 - share)
            second.lerp_(before, 1 - share)
            return share
        height, width = first.shape[-2:]
        side = (1 - _drawn(self._cutmix, draws[2])) ** 0.5
        (top, bottom), (left, right) = _extent(side, draws[3], height), _extent(side, draws[4], width)
        box = (..., slice(top, bottom), slice(left, right))
        before = first[box].clone()
        first[box] = second[box]
        second[box] = before
        return 1 - (bottom - top) * (right - left) / (height * width)


def symmetric_beta_quantiles(alpha: float, count: int = 2048) -> Float64[np.ndarray, " n"]:
    """Values that a Beta(α, α) variable is below with probability 0, 1/(2·count), …, 1/2: the lower half of them.

    The density x^(α−1) (1−x)^(α−1) has a pole at 0 for α < 1. In u = (2x)^α it has none: it is (1−x)^(α−1) there. It is
    integrated by the trapezoidal rule, from α = 1 on over x itself.
    """
    power = min(alpha, 1.0)
    u = np.linspace(0.0, 1.0, 8 * count + 1)
    x = u ** (1 / power) / 2
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0.0, below[-1], count + 1), below, u) ** (1 / power) / 2


def _drawn(quantiles: Float64[np.ndarray, " n"] | None, draw: float) -> float:
    """The variable for a uniform number."""
    assert quantiles is not None  # of the two kinds of mixing, one has an α
    lower = draw if draw < 0.5 else 1 - draw
    value = float(np.interp(2 * lower, np.linspace(0.0, 1.0, len(quantiles)), quantiles))
    return value if draw < 0.5 else 1 - value


def _extent(side: float, draw: float, length: int) -> tuple[int, int]:
    """Where a box of this share of the length lies, its centre anywhere; what reaches out of the frame is cut."""
    centre, half = draw * length, side * length / 2
    return max(0, round(centre - half)), min(length, round(centre + half))
