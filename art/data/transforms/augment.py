"""What happens to decoded clips before the model sees them: in plain PyTorch, on the device that they are on.

Everything random is drawn once a clip and holds for all of its frames: what moves in a clip must be the action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from art.data.transforms.rand_augment import RandAugment

_PERMUTATIONS = tuple(permutations(range(3)))
_MAX_SHRINK = 1.5  # by how much bilinear sampling may shrink a picture before thin things begin to flicker
_OWN_DRAWS = 11  # numbers a clip, besides those of RandAugment


class TrainAugment:
    """Random scaling and crop, horizontal flip and colour for training.

    The paper names scaling, crop and flip; how strong they are is our reading, and so is any change of colour, of the
    aspect ratio and RandAugment, which are off unless asked for.

    What becomes of a clip depends on the clip and on its own random numbers alone, bit for bit, and not on the batch
    that it is in.

    Args:
        size: height and width of the result in pixels.
        scale: least and greatest area of the crop, as a share of the largest square in the frame. Its place is uniform.
        aspect: least and greatest width of the crop as a multiple of its height, uniform in its logarithm; what would
            reach out of the frame is cut. (1, 1) crops squares.
        flip: probability of a horizontal flip. Only used with ``mirror``.
        mirror: for each class, the class of its flipped clips (``ClipSet.mirror``); labels change accordingly. None:
            a flip might turn a clip into something without a label, so nothing is flipped.
        brightness: greatest relative change of brightness: factors are uniform in 1 ± brightness.
        contrast: likewise for the distance of each pixel from the clip's mean.
        saturation: likewise for the distance of each colour from its grey.
        hue: greatest turn of the colour circle in degrees; 180 reaches every hue.
        permute_channels: probability that red, green and blue change places at random.
        rand_augment: comes last, where given.
        dtype: of the result: ``torch.float32`` (0..1) or ``torch.uint8``.

    Attributes:
        num_draws: random numbers that a clip takes.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> import torch
        >>> from art.data import TrainAugment
        >>> augment = TrainAugment(32, flip=1.0, mirror=(1, 0))  # classes 0 and 1 are each other's mirror image
        >>> video = torch.zeros(2, 4, 3, 48, 64, dtype=torch.uint8)
        >>> clips, labels = augment(video, torch.tensor([0, 1]), torch.rand(2, augment.num_draws))
        >>> clips.shape, labels.tolist()
        (torch.Size([2, 4, 3, 32, 32]), [1, 0])
    """

    def __init__(
        self,
        size: int,
        *,
        scale: Sequence[float] = (0.6, 1.0),
        aspect: Sequence[float] = (1.0, 1.0),
        flip: float = 0.5,
        mirror: Sequence[int] | None = None,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        permute_channels: float = 0.0,
        rand_augment: RandAugment | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _check_size(size)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be a least and a greatest share, 0 < least <= greatest <= 1, got {scale}")
        if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect must be a least and a greatest ratio, 0 < least <= greatest, got {aspect}")
        shares = {"flip": flip, "permute_channels": permute_channels, "brightness": brightness}
        for name, value in {**shares, "contrast": contrast, "saturation": saturation}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        if not 0 <= hue <= 180:
            raise ValueError(f"hue must lie in 0..180 degrees, got {hue}")
        if dtype not in (torch.float32, torch.uint8):
            raise ValueError(f"dtype must be torch.float32 or torch.uint8, got {dtype}")
        self.size, self.scale, self.flip = size, (float(scale[0]), float(scale[1])), flip
        self.aspect = (float(aspect[0]), float(aspect[1]))
        self.mirror = None if mirror is None else torch.tensor(mirror, dtype=torch.int64)
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.permute_channels, self.rand_augment, self.dtype = permute_channels, rand_augment, dtype
        self.num_draws = _OWN_DRAWS + (rand_augment.num_draws if rand_augment is not None else 0)

    def __call__(
        self,
        video: Shaped[Tensor, "b t 3 h w"],
        labels: Int64[Tensor, " b"],
        draws: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Shaped[Tensor, "b t 3 size size"], Int64[Tensor, " b"]]:
        """Augment a batch, on the device that it is on.

        Args:
            video: uint8, or floating point in 0..1.
            labels: the class of each clip.
            draws: for each clip ``num_draws`` numbers in [0, 1) that decide what becomes of it, on the CPU: decisions
                are taken there, and nothing waits for a GPU. None draws them from PyTorch's global generator.

        Raises:
            TypeError, ValueError: the video is no batch of RGB clips, or the draws do not fit it.
        """
        _check_video(video)
        if draws is None:
            draws = torch.rand(len(video), self.num_draws)
        if draws.shape != (len(video), self.num_draws):
            raise ValueError(f"draws has shape {list(draws.shape)}, expected [{len(video)}, {self.num_draws}]")
        if self.mirror is not None:
            flipped = (draws[:, 0] < self.flip).to(labels.device, non_blocking=True)
            labels = torch.where(flipped, self.mirror.to(labels.device, non_blocking=True)[labels], labels)
        own = draws.tolist()
        pixels = video.float() if video.dtype == torch.uint8 else video.float() * 255.0
        pixels = self._crop(pixels, own)
        if any((self.brightness, self.contrast, self.saturation, self.hue, self.permute_channels)):
            pixels = self._colour(pixels, own)
        if self.rand_augment is not None:
            for clip, numbers in zip(pixels, own, strict=True):
                clip.copy_(self.rand_augment(clip, numbers[_OWN_DRAWS:]))
        return (pixels.mul_(1 / 255) if self.dtype == torch.float32 else pixels.round_().to(torch.uint8)), labels

    def _crop(
        self, pixels: Float[Tensor, "b t 3 h w"], draws: Sequence[Sequence[float]]
    ) -> Float[Tensor, "b t 3 size size"]:
        """One bilinear sampling for crop, scaling and flip of the whole batch: a clip's frames are its channels."""
        pixels = _shrunk(pixels, round(self.size * _MAX_SHRINK))
        b, t, c, h, w = pixels.shape
        boxes = torch.tensor([self._box(own, h, w) for own in draws]).view(b, 4).to(pixels.device, non_blocking=True)
        left, width, top, height = boxes.unsqueeze(-1).unbind(1)
        centres = torch.arange(self.size, device=pixels.device, dtype=torch.float32).add_(0.5) / self.size
        x, y = left + width * centres, top + height * centres  # [b, size]: where the columns and rows come from
        grid = torch.stack(torch.broadcast_tensors((2 * x / w - 1)[:, None, :], (2 * y / h - 1)[:, :, None]), dim=-1)
        sampled = F.grid_sample(pixels.view(b, t * c, h, w), grid, padding_mode="border", align_corners=False)
        return sampled.view(b, t, c, self.size, self.size)

    def _box(self, draws: Sequence[float], h: int, w: int) -> tuple[float, float, float, float]:
        """Left, width, top and height of a clip's crop in pixels. A flipped one begins at the right and goes back."""
        least, greatest = self.scale
        side = math.sqrt(least + (greatest - least) * draws[1]) * min(h, w)
        stretch = math.sqrt(self.aspect[0] * (self.aspect[1] / self.aspect[0]) ** draws[4])
        width, height = min(side * stretch, w), min(side / stretch, h)
        left, top = (w - width) * draws[2], (h - height) * draws[3]
        flipped = self.mirror is not None and draws[0] < self.flip
        return (left + width, -width, top, height) if flipped else (left, width, top, height)

    def _colour(
        self, pixels: Float[Tensor, "b t 3 s s"], draws: Sequence[Sequence[float]]
    ) -> Float[Tensor, "b t 3 s s"]:
        """All changes of colour are one linear map a clip."""
        maps = [self._colour_map(own[5:_OWN_DRAWS]) for own in draws]
        b, t, c, h, w = pixels.shape
        matrices = torch.from_numpy(np.array([matrix for matrix, _ in maps], dtype=np.float32).reshape(b, 3, 3))
        matrices = matrices.to(pixels.device, non_blocking=True)
        mapped = torch.empty_like(pixels)
        # Clip by clip: sums over a batch may be rounded differently in batches of another size.
        for clip, matrix, (_, share), result in zip(pixels, matrices, maps, mapped, strict=True):
            flat, offset = clip.view(t, c, h * w), (clip.mean() * share).expand(t, c, 1)
            torch.baddbmm(offset, matrix.expand(t, 3, 3), flat, out=result.view(t, c, h * w))
        return mapped.clamp_(0, 255)

    def _colour_map(self, draws: Sequence[float]) -> tuple[Float64[np.ndarray, "3 3"], float]:
        """A matrix, and a multiple of the clip's mean to be added."""
        brightness, contrast, saturation = (
            1 + strength * (2 * draw - 1)
            for strength, draw in zip((self.brightness, self.contrast, self.saturation), draws, strict=False)
        )
        grey = np.full((3, 3), 1 / 3)
        matrix = grey + saturation * (_turned_hue(math.radians(self.hue * (2 * draws[3] - 1))) - grey)
        if draws[4] < self.permute_channels:
            matrix = matrix[:, _PERMUTATIONS[min(int(draws[5] * 6), 5)]]
        # None of the above changes the mean grey, so that contrast can be taken about the mean of what came in.
        return matrix * brightness * contrast, (1 - contrast) * brightness


class CentreCrop:
    """The middle of each frame, scaled to the model's size, for testing.

    Args:
        size: height and width of the result in pixels.
        share: side of the square that is kept, as a share of the frame's shorter side.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> import torch
        >>> from art.data import CentreCrop
        >>> CentreCrop(32)(torch.zeros(1, 4, 3, 48, 64, dtype=torch.uint8)).shape
        torch.Size([1, 4, 3, 32, 32])
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


def three_squares(frames: Shaped[Tensor, "n 3 h w"]) -> tuple[Shaped[Tensor, "n 3 s s"], ...]:
    """The squares at the beginning, in the middle and at the end of the longer side, as large as the shorter one."""
    height, width = frames.shape[2:]
    size, spare = min(height, width), abs(height - width)
    axis = 2 if height > width else 3
    return tuple(frames.narrow(axis, start, size) for start in (0, spare // 2, spare))


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


def _turned_hue(angle: float) -> Float64[np.ndarray, "3 3"]:
    """Rotation of RGB space about its grey diagonal by radians (Rodrigues' formula)."""
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) / 3


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")


def _check_video(video: Tensor) -> None:
    if video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(f"video must have the shape [batch, frames, 3, height, width], got {list(video.shape)}")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise TypeError(f"video must be uint8 or floating point in 0..1, got {video.dtype}")
