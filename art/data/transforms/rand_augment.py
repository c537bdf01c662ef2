"""RandAugment ("RandAugment: Practical automated data augmentation with a reduced search space", arXiv 1909.13719) for
clips: its fourteen operations in plain PyTorch, each the same in all frames of a clip.

What an operation takes from a picture, such as its mean or its histogram, is taken from the clip as a whole, so that
nothing flickers. Pixels are floating point, 0 to 255. How far each operation goes at full magnitude is our reading: the
paper gives the scale, 0 to 10, and takes the ranges over; where those of its code leave a picture less changed at a
greater magnitude (solarize, posterize), or change it at 0 (the four that blend), ours grow from nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_Clip = Float[Tensor, "t 3 h w"]
_OUTSIDE = 128.0  # what comes into view from outside of the frame
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


class RandAugment:
    """A few operations one after the other, each drawn from all of them.

    Args:
        number: N, how many.
        magnitude: M, how strong they are, 0 to 10; one for all. Whether a rotation goes to the left or the right, or a
            colour becomes stronger or weaker, is drawn.

    Attributes:
        num_draws: random numbers that a clip takes.

    Raises:
        ValueError: a value is out of its range.

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
            raise ValueError(f"magnitude must lie in 0..10, got {magnitude}")
        self.number, self.magnitude, self.num_draws = number, magnitude, 2 * number

    def __call__(self, clip: _Clip, draws: Sequence[float]) -> _Clip:
        """The clip after its operations.

        Args:
            clip: 0 to 255.
            draws: ``num_draws`` numbers in [0, 1): for each operation which one, and its direction.
        """
        operations = tuple(OPERATIONS.values())
        for which, direction in zip(draws[::2], draws[1::2], strict=True):
            strength = self.magnitude / 10 if direction < 0.5 else -self.magnitude / 10
            clip = operations[int(which * len(operations))](clip, strength)
        return clip


def _identity(clip: _Clip, strength: float) -> _Clip:
    return clip


def _auto_contrast(clip: _Clip, strength: float) -> _Clip:
    """The darkest and the brightest of each colour become 0 and 255."""
    low, high = clip.amin(dim=(0, 2, 3), keepdim=True), clip.amax(dim=(0, 2, 3), keepdim=True)
    return torch.where(high > low, (clip - low) * (255 / (high - low).clamp_min(1e-6)), clip)


def _equalize(clip: _Clip, strength: float) -> _Clip:
    """Each colour's histogram over the clip becomes as flat as it can be."""
    values = clip.round().long().transpose(0, 1).reshape(3, -1)
    counts = torch.zeros(3, 256, dtype=torch.int64, device=clip.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    upto = counts.cumsum(1)
    total = values.shape[1]
    darkest = upto.where(counts > 0, total).amin(1, keepdim=True)  # how many pixels have the darkest value
    table = torch.where(darkest < total, (upto - darkest) * 255 / (total - darkest).clamp_min(1), values[:, :1])
    t, c, h, w = clip.shape
    return table.to(clip.dtype).gather(1, values).view(c, t, h, w).transpose(0, 1)


def _rotate(clip: _Clip, strength: float) -> _Clip:
    angle = math.radians(30 * strength)
    return _warped(clip, (math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))


def _solarize(clip: _Clip, strength: float) -> _Clip:
    """What is brighter than a threshold is inverted."""
    return torch.where(clip < 256 * (1 - abs(strength)), clip, 255 - clip)


def _color(clip: _Clip, strength: float) -> _Clip:
    return _blend(_grey(clip), clip, strength)


def _posterize(clip: _Clip, strength: float) -> _Clip:
    """Up to four of eight bits are left out."""
    step = 2 ** round(4 * abs(strength))
    return clip if step == 1 else (clip / step).floor_().mul_(step)


def _contrast(clip: _Clip, strength: float) -> _Clip:
    return _blend(_grey(clip).mean(), clip, strength)


def _brightness(clip: _Clip, strength: float) -> _Clip:
    return _blend(clip.new_zeros(()), clip, strength)


def _sharpness(clip: _Clip, strength: float) -> _Clip:
    """Away from, or towards, each pixel's mean with its neighbours; at the border there is none."""
    if min(clip.shape[-2:]) < 3:
        return clip
    smooth = clip.clone()
    around = F.avg_pool2d(clip, 3, stride=1) * 9  # of nine pixels the one in the middle counts five times
    smooth[:, :, 1:-1, 1:-1] = (around + 4 * clip[:, :, 1:-1, 1:-1]) / 13
    return _blend(smooth, clip, strength)


def _shear_x(clip: _Clip, strength: float) -> _Clip:
    return _warped(clip, (1.0, 0.3 * strength), (0.0, 1.0))


def _shear_y(clip: _Clip, strength: float) -> _Clip:
    return _warped(clip, (1.0, 0.0), (0.3 * strength, 1.0))


def _translate_x(clip: _Clip, strength: float) -> _Clip:
    return _warped(clip, (1.0, 0.0), (0.0, 1.0), shift=(0.45 * strength, 0.0))


def _translate_y(clip: _Clip, strength: float) -> _Clip:
    return _warped(clip, (1.0, 0.0), (0.0, 1.0), shift=(0.0, 0.45 * strength))


#: In the paper's order.
OPERATIONS: dict[str, Callable[[_Clip, float], _Clip]] = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


def _blend(base: Tensor, clip: _Clip, strength: float) -> _Clip:
    """From ``base`` (a factor of 0) over the clip itself (1) beyond: at full strength a factor of 0.1 or 1.9."""
    return torch.lerp(base.expand_as(clip), clip, 1 + 0.9 * strength).clamp_(0, 255)


def _grey(clip: _Clip) -> Float[Tensor, "t 1 h w"]:
    red, green, blue = clip.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _warped(
    clip: _Clip, x_row: tuple[float, float], y_row: tuple[float, float], shift: tuple[float, float] = (0.0, 0.0)
) -> _Clip:
    """Each pixel (x, y), counted from the centre, comes from (x_row · (x, y), y_row · (x, y)), moved by a share of
    width and height."""
    t, c, h, w = clip.shape
    x = torch.arange(w, device=clip.device, dtype=clip.dtype)[None] - (w - 1) / 2
    y = torch.arange(h, device=clip.device, dtype=clip.dtype)[:, None] - (h - 1) / 2
    source_x = (x_row[0] * x + x_row[1] * y) * (2 / w) + 2 * shift[0]
    source_y = (y_row[0] * x + y_row[1] * y) * (2 / h) + 2 * shift[1]
    grid = torch.stack((source_x, source_y), dim=-1)[None]
    moved = F.grid_sample((clip - _OUTSIDE).reshape(1, t * c, h, w), grid, align_corners=False)
    return (moved + _OUTSIDE).view(t, c, h, w)
