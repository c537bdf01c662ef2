"""RandAugment ("RandAugment: Practical automated data augmentation with a reduced search space", arXiv 1909.13719) for
clips: its fourteen operations in plain PyTorch, each the same in all frames of a clip.

Image statistics, such as the mean or the histogram, are computed over the clip, so that nothing flickers. Pixels are
floating point, 0 to 255. The strength of each operation at full magnitude is our choice: the paper only defines the
scale, 0 to 10. In its code, some operations have less effect at a greater magnitude (solarize, posterize) or change the
image at magnitude 0 (the four that blend); here, the effect of every operation increases from none at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_Clip = Float[Tensor, "t 3 h w"]
_FILL = 128.0  # value of pixels from outside the frame
_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R BT.601


class RandAugment:
    """Applies a sequence of random operations.

    Args:
        number: N, number of operations.
        magnitude: M, strength of all operations, 0 to 10. The direction, such as left or right for a rotation, is
            random.

    Attributes:
        num_draws: number of random numbers per clip.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import torch
        >>> from art.data import RandAugment
        >>> augment = RandAugment(number=2, magnitude=5)
        >>> augment(torch.rand(4, 3, 32, 32) * 255, torch.rand(augment.num_draws).tolist()).shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(self, number: int = 2, magnitude: float = 9.0) -> None:
        if number < 1:
            raise ValueError(f"number must be at least 1, got {number}")
        if not 0 <= magnitude <= 10:
            raise ValueError(f"magnitude must be in 0..10, got {magnitude}")
        self.number, self.magnitude, self.num_draws = number, magnitude, 2 * number

    def __call__(self, clip: _Clip, draws: Sequence[float]) -> _Clip:
        """Apply the operations to a clip.

        Args:
            clip: 0 to 255.
            draws: ``num_draws`` random numbers in [0, 1): the choice and the direction of each operation.
        """
        operations = tuple(OPERATIONS.values())
        for which, direction in zip(draws[::2], draws[1::2], strict=True):
            strength = self.magnitude / 10 if direction < 0.5 else -self.magnitude / 10
            clip = operations[int(which * len(operations))](clip, strength)
        return clip


def _auto_contrast(clip: _Clip, strength: float) -> _Clip:
    """Stretch each channel to 0..255."""
    low, high = clip.amin(dim=(0, 2, 3), keepdim=True), clip.amax(dim=(0, 2, 3), keepdim=True)
    return torch.where(high > low, (clip - low) * (255 / (high - low).clamp_min(1e-6)), clip)


def _equalize(clip: _Clip, strength: float) -> _Clip:
    """Equalize the histogram of each channel over the clip."""
    values = clip.round().long().transpose(0, 1).reshape(3, -1)
    counts = torch.zeros(3, 256, dtype=torch.int64, device=clip.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    cumulative = counts.cumsum(1)
    total = values.shape[1]
    darkest = cumulative.where(counts > 0, total).amin(1, keepdim=True)  # number of pixels with the lowest value
    table = torch.where(darkest < total, (cumulative - darkest) * 255 / (total - darkest).clamp_min(1), values[:, :1])
    t, c, h, w = clip.shape
    return table.to(clip.dtype).gather(1, values).view(c, t, h, w).transpose(0, 1)


def _rotate(clip: _Clip, strength: float) -> _Clip:
    angle = math.radians(30 * strength)
    return _warp(clip, (math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))


def _solarize(clip: _Clip, strength: float) -> _Clip:
    """Invert pixels above a threshold."""
    return torch.where(clip < 256 * (1 - abs(strength)), clip, 255 - clip)


def _posterize(clip: _Clip, strength: float) -> _Clip:
    """Clear up to four of eight bits."""
    step = 2 ** round(4 * abs(strength))
    return clip if step == 1 else (clip / step).floor_().mul_(step)


def _sharpness(clip: _Clip, strength: float) -> _Clip:
    """Blend with a 3 × 3 smoothing, which leaves the border unchanged."""
    if min(clip.shape[-2:]) < 3:
        return clip
    smooth = clip.clone()
    around = F.avg_pool2d(clip, 3, stride=1) * 9  # the kernel has weight 5 in the center and 1 elsewhere
    smooth[:, :, 1:-1, 1:-1] = (around + 4 * clip[:, :, 1:-1, 1:-1]) / 13
    return _blend(smooth, clip, strength)


#: The operations, in the order of the paper.
OPERATIONS: dict[str, Callable[[_Clip, float], _Clip]] = {
    "identity": lambda clip, strength: clip,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": lambda clip, strength: _blend(_gray(clip), clip, strength),
    "posterize": _posterize,
    "contrast": lambda clip, strength: _blend(_gray(clip).mean(), clip, strength),
    "brightness": lambda clip, strength: _blend(clip.new_zeros(()), clip, strength),
    "sharpness": _sharpness,
    "shear_x": lambda clip, strength: _warp(clip, (1.0, 0.3 * strength), (0.0, 1.0)),
    "shear_y": lambda clip, strength: _warp(clip, (1.0, 0.0), (0.3 * strength, 1.0)),
    "translate_x": lambda clip, strength: _warp(clip, (1.0, 0.0), (0.0, 1.0), (0.45 * strength, 0.0)),
    "translate_y": lambda clip, strength: _warp(clip, (1.0, 0.0), (0.0, 1.0), (0.0, 0.45 * strength)),
}


def _blend(base: Tensor, clip: _Clip, strength: float) -> _Clip:
    """Interpolate or extrapolate from ``base`` (factor 0) and the clip (1); full strength is a factor of 0.1 or 1.9."""
    return torch.lerp(base.expand_as(clip), clip, 1 + 0.9 * strength).clamp_(0, 255)


def _gray(clip: _Clip) -> Float[Tensor, "t 1 h w"]:
    red, green, blue = clip.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _warp(
    clip: _Clip, x_row: tuple[float, float], y_row: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)
) -> _Clip:
    """Affine warp: the pixel (x, y), relative to the center, is sampled at (x_row · (x, y), y_row · (x, y)) plus a
    shift in fractions of width and height."""
    t, c, h, w = clip.shape
    x = torch.arange(w, device=clip.device, dtype=clip.dtype)[None] - (w - 1) / 2
    y = torch.arange(h, device=clip.device, dtype=clip.dtype)[:, None] - (h - 1) / 2
    source_x = (x_row[0] * x + x_row[1] * y) * (2 / w) + 2 * shift[0]
    source_y = (y_row[0] * x + y_row[1] * y) * (2 / h) + 2 * shift[1]
    grid = torch.stack((source_x, source_y), dim=-1)[None]
    moved = F.grid_sample((clip - _FILL).reshape(1, t * c, h, w), grid, align_corners=False)
    return (moved + _FILL).view(t, c, h, w)
