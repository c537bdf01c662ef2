"""What happens to decoded clips before the model sees them: whole batches at once, in plain PyTorch, on any device.

Everything random is drawn once a clip and holds for all of its frames: what moves in a clip must be the action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

_PERMUTATIONS = tuple(permutations(range(3)))
_MAX_SHRINK = 1.5  # by how much bilinear sampling may shrink a picture before thin things begin to flicker


class TrainAugment:
    """Random scaling and crop, horizontal flip and colour for training.

    The paper names scaling, crop and flip; how strong they are is our reading, and so is any change of colour, which is
    off unless asked for.

    Args:
        size: height and width of the result in pixels.
        scale: least and greatest area of the square crop, as a share of the largest square in the frame. Its place is
            uniform.
        flip: probability of a horizontal flip. Only used with ``mirror``.
        mirror: for each class, the class of its flipped clips (``ClipSet.mirror``); labels change accordingly. None:
            a flip might turn a clip into something without a label, so nothing is flipped.
        brightness: greatest relative change of brightness: factors are uniform in 1 ± brightness.
        contrast: likewise for the distance of each pixel from the clip's mean.
        saturation: likewise for the distance of each colour from its grey.
        hue: greatest turn of the colour circle in degrees; 180 reaches every hue.
        permute_channels: probability that red, green and blue change places at random.
        dtype: of the result: ``torch.float32`` (0..1) or ``torch.uint8``.
        generator: where all random numbers come from; None is PyTorch's global one.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: Sequence[float] = (0.6, 1.0),
        flip: float = 0.5,
        mirror: Sequence[int] | None = None,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        permute_channels: float = 0.0,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        _check_size(size)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be a least and a greatest share, 0 < least <= greatest <= 1, got {scale}")
        shares = {"flip": flip, "permute_channels": permute_channels, "brightness": brightness}
        for name, value in {**shares, "contrast": contrast, "saturation": saturation}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        if not 0 <= hue <= 180:
            raise ValueError(f"hue must lie in 0..180 degrees, got {hue}")
        if dtype not in (torch.float32, torch.uint8):
            raise ValueError(f"dtype must be torch.float32 or torch.uint8, got {dtype}")
        self.size, self.scale, self.flip = size, (float(scale[0]), float(scale[1])), flip
        self.mirror = None if mirror is None else torch.tensor(mirror, dtype=torch.int64)
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.permute_channels, self.dtype, self.generator = permute_channels, dtype, generator

    def __call__(
        self, video: Shaped[Tensor, "b t 3 h w"], labels: Int64[Tensor, " b"]
    ) -> tuple[Shaped[Tensor, "b t 3 size size"], Int64[Tensor, " b"]]:
        """Augment a batch.

        Args:
            video: uint8, or floating point in 0..1.
            labels: the class of each clip.

        Raises:
            TypeError, ValueError: the video is no batch of RGB clips.
        """
        _check_video(video)
        device = None if self.generator is None else self.generator.device
        draws = torch.rand(len(video), 10, generator=self.generator, device=device).to(video.device)
        flipped = self._flips(draws[:, 0])
        if flipped is not None and self.mirror is not None:
            labels = torch.where(flipped.to(labels.device), self.mirror.to(labels.device)[labels], labels)
        pixels = video.float() if video.dtype == torch.uint8 else video.float() * 255.0
        pixels = self._crop(pixels, draws[:, 1:4], flipped)
        pixels = self._colour(pixels, draws[:, 4:10])
        return (pixels if self.dtype == torch.float32 else pixels.round_().to(torch.uint8)), labels

    def _flips(self, draws: Float[Tensor, " b"]) -> Bool[Tensor, " b"] | None:
        return None if self.mirror is None or self.flip == 0 else draws < self.flip

    def _crop(
        self, pixels: Float[Tensor, "b t 3 h w"], draws: Float[Tensor, "b 3"], flipped: Bool[Tensor, " b"] | None
    ) -> Float[Tensor, "b t 3 size size"]:
        """One bilinear sampling for crop, scaling and flip of the whole batch: a clip's frames are its channels."""
        pixels = _shrunk(pixels, round(self.size * _MAX_SHRINK))
        b, t, c, h, w = pixels.shape
        least, greatest = self.scale
        side = (least + (greatest - least) * draws[:, 0]).sqrt() * min(h, w)
        centres = torch.arange(self.size, device=pixels.device, dtype=torch.float32).add_(0.5) / self.size
        x, y = (
            ((length - side) * draws[:, i])[:, None] + side[:, None] * centres for i, length in ((1, w), (2, h))
        )  # [b, size] each: where the columns and rows come from, in pixels from the left and the top
        if flipped is not None:
            x = torch.where(flipped[:, None], x.flip(1), x)
        grid = torch.stack(torch.broadcast_tensors((2 * x / w - 1)[:, None, :], (2 * y / h - 1)[:, :, None]), dim=-1)
        sampled = F.grid_sample(pixels.reshape(b, t * c, h, w), grid, padding_mode="border", align_corners=False)
        return sampled.view(b, t, c, self.size, self.size)

    def _colour(self, pixels: Float[Tensor, "b t 3 s s"], draws: Float[Tensor, "b 6"]) -> Float[Tensor, "b t 3 s s"]:
        """All changes of colour are one linear map a clip, which also brings 0..255 to 0..1 where that is wanted."""
        unit = 1.0 if self.dtype == torch.uint8 else 1 / 255
        if not any((self.brightness, self.contrast, self.saturation, self.hue, self.permute_channels)):
            return pixels.mul_(unit)
        brightness, contrast, saturation = (
            1 + strength * (2 * draws[:, i] - 1)
            for i, strength in enumerate((self.brightness, self.contrast, self.saturation))
        )
        matrix = _turned_hue(torch.deg2rad(self.hue * (2 * draws[:, 3] - 1)))
        grey = matrix.new_full((3, 3), 1 / 3)
        matrix = grey + saturation[:, None, None] * (matrix - grey)
        permutation = torch.eye(3, device=matrix.device)[torch.tensor(_PERMUTATIONS, device=matrix.device)]
        chosen = torch.where(draws[:, 4] < self.permute_channels, (draws[:, 5] * 6).long().clamp_(max=5), 0)
        matrix = matrix @ permutation[chosen]
        # None of the above changes the mean grey, so that contrast can be taken about the mean of what came in.
        offset = (1 - contrast) * pixels.mean(dim=(1, 2, 3, 4)) * brightness * unit
        matrix = matrix * (brightness * contrast * unit)[:, None, None]
        b, t, c, h, w = pixels.shape
        mapped = torch.baddbmm(
            offset.repeat_interleave(t)[:, None, None].expand(b * t, c, 1),
            matrix.repeat_interleave(t, dim=0),
            pixels.view(b * t, c, h * w),
        )
        return mapped.clamp_(0, 255 * unit).view(b, t, c, h, w)


class CentreCrop:
    """The middle of each frame, scaled to the model's size, for testing.

    Args:
        size: height and width of the result in pixels.
        share: side of the square that is kept, as a share of the frame's shorter side.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(self, size: int, *, share: float = 1.0) -> None:
        _check_size(size)
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in 0..1, above 0, got {share}")
        self.size, self.share = size, share

    def __call__(self, video: Shaped[Tensor, "b t 3 h w"]) -> Shaped[Tensor, "b t 3 size size"]:
        """Crop a batch, uint8 or floating point in 0..1; the result has the same dtype.

        Raises:
            TypeError, ValueError: the video is no batch of RGB clips.
        """
        _check_video(video)
        top, left, side = self._square(*video.shape[-2:])
        square = video[..., top : top + side, left : left + side]
        if side == self.size:
            return square
        # Clip by clip: a whole batch of large frames in floating point could fill the memory.
        resized = torch.stack([_resized(clip, (self.size, self.size)) for clip in square.float()])
        return (
            resized.round_().clamp_(0, 255).to(torch.uint8) if video.dtype == torch.uint8 else resized.to(video.dtype)
        )

    def locate(self, points: Shaped[Tensor, "*any 2"], height: int, width: int) -> Shaped[Tensor, "*any 2"]:
        """Where points of a frame are in its crop: (x, y) as shares of width and height, before and after.

        What the crop leaves out lies outside 0..1.
        """
        top, left, side = self._square(height, width)
        return (points * points.new_tensor([width, height]) - points.new_tensor([left, top])) / side

    def _square(self, height: int, width: int) -> tuple[int, int, int]:
        """Top, left and side in pixels."""
        side = max(1, round(min(height, width) * self.share))
        return (height - side) // 2, (width - side) // 2, side


def _resized(frames: Float[Tensor, "t 3 h w"], size: tuple[int, int]) -> Float[Tensor, "t 3 size_h size_w"]:
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)


def _shrunk(pixels: Float[Tensor, "b t 3 h w"], short_side: int) -> Float[Tensor, "b t 3 h2 w2"]:
    """The same frames with a shorter side of at most ``short_side`` pixels."""
    h, w = pixels.shape[-2:]
    factor = short_side / min(h, w)
    if factor >= 1:
        return pixels
    size = (max(short_side, round(h * factor)), max(short_side, round(w * factor)))
    return torch.stack([_resized(clip, size) for clip in pixels])


def _turned_hue(angle: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """Rotation of RGB space about its grey diagonal (Rodrigues' formula)."""
    axis = 1 / math.sqrt(3)
    cross = axis * torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=angle.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3, device=angle.device) + sin * cross + (1 - cos) / 3


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")


def _check_video(video: Tensor) -> None:
    if video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(f"video must have the shape [batch, frames, 3, height, width], got {list(video.shape)}")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise TypeError(f"video must be uint8 or floating point in 0..1, got {video.dtype}")
