"""Transforms of decoded clips, in plain PyTorch, on the device of the clips.

Random parameters are sampled once per clip and applied to all of its frames, so that only the action moves.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped, UInt8
from torch import Tensor

from art._deprecated import renamed_attribute
from art.data.decoding.frames import StoredClip
from art.data.decoding.video import read_clip
from art.data.transforms.rand_augment import RandAugment
from art.data.transforms.sampling import SPARSE, FrameSampling

_PERMUTATIONS = tuple(permutations(range(3)))
_MAX_SHRINK = 1.5  # factor by which bilinear sampling can shrink an image before thin structures flicker
_OWN_DRAWS = 11  # random numbers per clip, not including those of RandAugment


class TrainAugment:
    """Random scale, crop, horizontal flip and color for training.

    The paper names scaling, crop and flip. Their strength is our choice, and so are color changes, aspect ratios and
    RandAugment, which are off by default.

    The result for a clip depends only on the clip and its own random numbers, bit for bit, not on its batch.

    Args:
        size: height and width of the result in pixels.
        scale: minimum and maximum area of the crop, as a fraction of the largest square in the frame. Its position is
            uniform.
        aspect: minimum and maximum ratio of the crop's width to its height, log-uniform; the crop is limited to the
            frame. (1, 1) crops squares.
        flip: probability of a horizontal flip. Only used with ``mirror``.
        mirror: for each class, the class of its flipped clips (``ClipSet.mirror``), which becomes the label. None
            disables flips, as the label of a flipped clip is unknown.
        brightness: maximum relative change of brightness: factors are uniform in 1 ± brightness.
        contrast: the same for the distance of each pixel from the clip's mean.
        saturation: the same for the distance of each color from its gray.
        hue: maximum rotation of the hue in degrees; 180 reaches every hue.
        permute_channels: probability of a random permutation of red, green and blue.
        rand_augment: applied last, if given.
        dtype: dtype of the result: ``torch.float32`` (0..1) or ``torch.uint8``.

    Attributes:
        num_draws: number of random numbers per clip.

    Raises:
        ValueError: an argument is out of range.

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
            raise ValueError(f"scale must be (minimum, maximum) with 0 < minimum <= maximum <= 1, got {scale}")
        if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect must be (minimum, maximum) with 0 < minimum <= maximum, got {aspect}")
        fractions = {"flip": flip, "permute_channels": permute_channels, "brightness": brightness}
        for name, value in {**fractions, "contrast": contrast, "saturation": saturation}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1, got {value}")
        if not 0 <= hue <= 180:
            raise ValueError(f"hue must be in 0..180 degrees, got {hue}")
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
        """Augment a batch, on its device.

        Args:
            video: uint8, or floating point in 0..1.
            labels: the class of each clip.
            draws: for each clip, ``num_draws`` random numbers in [0, 1). They must be on the CPU, so that no step waits
                for the GPU. None draws them from PyTorch's global generator.

        Raises:
            TypeError, ValueError: the video is not a batch of RGB clips, or ``draws`` has the wrong shape.
        """
        _check_video(video)
        draws = torch.rand(len(video), self.num_draws) if draws is None else draws
        if draws.shape != (len(video), self.num_draws):
            raise ValueError(f"draws has shape {list(draws.shape)}, expected [{len(video)}, {self.num_draws}]")
        if self.mirror is not None:
            flipped = (draws[:, 0] < self.flip).to(labels.device, non_blocking=True)
            labels = torch.where(flipped, self.mirror.to(labels.device, non_blocking=True)[labels], labels)
        own = draws.tolist()
        pixels = video.float() if video.dtype == torch.uint8 else video.float() * 255.0
        pixels = self._crop(pixels, own)
        if any((self.brightness, self.contrast, self.saturation, self.hue, self.permute_channels)):
            pixels = self._change_color(pixels, own)
        if self.rand_augment is not None:
            for clip, numbers in zip(pixels, own, strict=True):
                clip.copy_(self.rand_augment(clip, numbers[_OWN_DRAWS:]))
        return (pixels.mul_(1 / 255) if self.dtype == torch.float32 else pixels.round_().to(torch.uint8)), labels

    def _crop(
        self, pixels: Float[Tensor, "b t 3 h w"], draws: Sequence[Sequence[float]]
    ) -> Float[Tensor, "b t 3 size size"]:
        """Crop, scale and flip the batch by one bilinear sampling, with the frames of a clip as its channels."""
        pixels = _shrink(pixels, round(self.size * _MAX_SHRINK))
        b, t, c, h, w = pixels.shape
        boxes = torch.tensor([self._box(own, h, w) for own in draws]).view(b, 4).to(pixels.device, non_blocking=True)
        left, width, top, height = boxes.unsqueeze(-1).unbind(1)
        centers = torch.arange(self.size, device=pixels.device, dtype=torch.float32).add_(0.5) / self.size
        x, y = left + width * centers, top + height * centers  # [b, size]: source of the columns and rows
        grid = torch.stack(torch.broadcast_tensors((2 * x / w - 1)[:, None, :], (2 * y / h - 1)[:, :, None]), dim=-1)
        sampled = F.grid_sample(pixels.view(b, t * c, h, w), grid, padding_mode="border", align_corners=False)
        return sampled.view(b, t, c, self.size, self.size)

    def _box(self, draws: Sequence[float], h: int, w: int) -> tuple[float, float, float, float]:
        """Left, width, top and height of a crop in pixels. A flipped one starts at its right, with a negative width."""
        low, high = self.scale
        side = math.sqrt(low + (high - low) * draws[1]) * min(h, w)
        stretch = math.sqrt(self.aspect[0] * (self.aspect[1] / self.aspect[0]) ** draws[4])
        width, height = min(side * stretch, w), min(side / stretch, h)
        left, top = (w - width) * draws[2], (h - height) * draws[3]
        flipped = self.mirror is not None and draws[0] < self.flip
        return (left + width, -width, top, height) if flipped else (left, width, top, height)

    def _change_color(
        self, pixels: Float[Tensor, "b t 3 s s"], draws: Sequence[Sequence[float]]
    ) -> Float[Tensor, "b t 3 s s"]:
        """Apply all color changes as one linear map per clip."""
        maps = [self._color_matrix(own[5:_OWN_DRAWS]) for own in draws]
        b, t, c, h, w = pixels.shape
        matrices = torch.from_numpy(np.array([matrix for matrix, _ in maps], dtype=np.float32).reshape(b, 3, 3))
        matrices = matrices.to(pixels.device, non_blocking=True)
        mapped = torch.empty_like(pixels)
        # Per clip: sums over a batch may round differently for other batch sizes.
        for clip, matrix, (_, factor), result in zip(pixels, matrices, maps, mapped, strict=True):
            flat, offset = clip.view(t, c, h * w), (clip.mean() * factor).expand(t, c, 1)
            torch.baddbmm(offset, matrix.expand(t, 3, 3), flat, out=result.view(t, c, h * w))
        return mapped.clamp_(0, 255)

    def _color_matrix(self, draws: Sequence[float]) -> tuple[Float64[np.ndarray, "3 3"], float]:
        """The color matrix, and the factor of the clip's mean to add."""
        strengths = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (1 + s * (2 * d - 1) for s, d in zip(strengths, draws, strict=False))
        gray = np.full((3, 3), 1 / 3)
        matrix = gray + saturation * (_hue_rotation(math.radians(self.hue * (2 * draws[3] - 1))) - gray)
        if draws[4] < self.permute_channels:
            matrix = matrix[:, _PERMUTATIONS[min(int(draws[5] * 6), 5)]]
        # None of the above changes the mean gray, so contrast can use the mean of the input.
        return matrix * brightness * contrast, (1 - contrast) * brightness


class CenterCrop:
    """The center square of each frame, resized to the input size of the model, for evaluation.

    Args:
        size: height and width of the result in pixels.
        fraction: side of the square, as a fraction of the frame's shorter side.
        share: deprecated name of ``fraction``.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import torch
        >>> from art.data import CenterCrop
        >>> CenterCrop(32)(torch.zeros(1, 4, 3, 48, 64, dtype=torch.uint8)).shape
        torch.Size([1, 4, 3, 32, 32])
    """

    def __init__(self, size: int, *, fraction: float = 1.0, share: float | None = None) -> None:
        if share is not None:
            warnings.warn("CenterCrop: share is now fraction", DeprecationWarning, stacklevel=2)
            fraction = share
        _check_size(size)
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in 0..1, above 0, got {fraction}")
        self.size, self.fraction = size, fraction

    share = renamed_attribute("share", "fraction")

    def __call__(self, video: Shaped[Tensor, "b t 3 h w"]) -> Shaped[Tensor, "b t 3 size size"]:
        """Crop a batch, uint8 or floating point in 0..1; the result has the same dtype.

        Raises:
            TypeError, ValueError: the video is not a batch of RGB clips.
        """
        _check_video(video)
        top, left, side = self._square(*video.shape[-2:])
        square = video[..., top : top + side, left : left + side]
        if side == self.size:
            return square
        # Per clip, to limit memory: a batch of large frames in floating point is four times as large.
        resized = torch.stack([_resize(clip, (self.size, self.size)) for clip in square.float()])
        return (resized.round_().clamp_(0, 255) if video.dtype == torch.uint8 else resized).to(video.dtype)

    def locate(self, points: Shaped[Tensor, "*any 2"], height: int, width: int) -> Shaped[Tensor, "*any 2"]:
        """Map points (x, y) of a frame to its crop, both as fractions of width and height; outside the crop, the result
        is outside 0..1."""
        top, left, side = self._square(height, width)
        return (points * points.new_tensor([width, height]) - points.new_tensor([left, top])) / side

    def _square(self, height: int, width: int) -> tuple[int, int, int]:
        """Top, left and side in pixels."""
        side = max(1, round(min(height, width) * self.fraction))
        return (height - side) // 2, (width - side) // 2, side


def three_squares(frames: Shaped[Tensor, "n 3 h w"]) -> tuple[Shaped[Tensor, "n 3 s s"], ...]:
    """The squares at the beginning, in the center and at the end of the longer side, with the shorter side's length."""
    height, width = frames.shape[2:]
    size, spare = min(height, width), abs(height - width)
    axis = 2 if height > width else 3
    return tuple(frames.narrow(axis, start, size) for start in (0, spare // 2, spare))


def _resize(frames: Float[Tensor, "t 3 h w"], size: tuple[int, int]) -> Float[Tensor, "t 3 size_h size_w"]:
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)


def _shrink(pixels: Float[Tensor, "b t 3 h w"], short_side: int) -> Float[Tensor, "b t 3 h2 w2"]:
    """Resize frames to a shorter side of at most ``short_side`` pixels."""
    h, w = pixels.shape[-2:]
    factor = short_side / min(h, w)
    if factor >= 1:
        return pixels
    size = (max(short_side, round(h * factor)), max(short_side, round(w * factor)))
    return torch.stack([_resize(clip, size) for clip in pixels])


def _hue_rotation(angle: float) -> Float64[np.ndarray, "3 3"]:
    """Rotation of RGB space about its gray diagonal by an angle in radians (Rodrigues' formula)."""
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


@dataclass(frozen=True)
class EvalViews:
    """Reads a clip as in evaluation: one or more views, cropped to the input size of a model.

    Attributes:
        num_frames: T, frames per view.
        crop: crop of each frame to the input size.
        sampling: which frames of the clip are used.
        views: number of views of T frames each, chosen by :class:`.sampling.FrameSampling`.
        crops: 1, the center of each frame, or 3, squares along its longer side.
        decoder: decoder of video files, one of :data:`art.data.decoding.video.DECODERS`.
    """

    num_frames: int
    crop: CenterCrop
    sampling: FrameSampling = SPARSE
    views: int = 1
    crops: int = 1
    decoder: str = "pyav"

    def __post_init__(self) -> None:
        check_views(self.views, self.crops)

    def __call__(
        self, clip: str | os.PathLike[str] | StoredClip, start: float | None = None, end: float | None = None
    ) -> UInt8[Tensor, "v t 3 size size"]:
        """Read the V = views · crops views of one clip.

        Args:
            clip: a video file, a directory of frames, or a clip in memory.
            start: seconds since the first frame of the file; None is the beginning.
            end: seconds since the first frame of the file; None is the end.

        Raises:
            art.data.decoding.video.VideoError: the clip cannot be read.
        """
        options: dict[str, Any] = {"sampling": self.sampling, "views": self.views, "decoder": self.decoder}
        frames = read_clip(clip, self.num_frames, start=start, end=end, **options)
        squares = torch.cat(three_squares(frames)) if self.crops == 3 else frames
        return self.crop(squares.unflatten(0, (-1, self.num_frames)))


def check_views(views: int, crops: int) -> None:
    """Raise ValueError unless ``views`` is at least 1 and ``crops`` is 1 or 3."""
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    if crops not in (1, 3):
        raise ValueError(f"crops must be 1 or 3, got {crops}")


class PairMix:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of adjacent pairs of clips in a batch.

    Each clip of a pair keeps a fraction λ ~ Beta(α, α) of itself and takes the rest from the other. Mixup averages the
    pixels. CutMix exchanges a box, the same in every frame, and λ is the remaining area. The papers mix each clip with
    a random one of the batch; mixing adjacent clips is our choice, so that a batch shared by several processes is mixed
    as in a single process.

    Args:
        num_classes: Y.
        mixup: α of mixup; 0 disables it.
        cutmix: α of CutMix; 0 disables it. If both are enabled, each is used for half of the pairs.
        probability: probability that a pair is mixed.

    Attributes:
        num_draws: number of random numbers per clip; those of the first clip of a pair are used.

    Raises:
        ValueError: an argument is out of range, or both are disabled.

    Examples:
        >>> import torch
        >>> from art.data import PairMix
        >>> mix = PairMix(num_classes=3, mixup=0.8)
        >>> draws = torch.rand(2, mix.num_draws)
        >>> clips, targets = mix(torch.rand(2, 4, 3, 16, 16), torch.tensor([0, 2]), draws)
        >>> targets.shape, torch.allclose(targets.sum(1), torch.ones(2))
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
            raise ValueError(f"probability must be in 0..1, got {probability}")
        self.num_classes, self.probability = num_classes, probability
        self._mixup = symmetric_beta_quantiles(mixup) if mixup else None
        self._cutmix = symmetric_beta_quantiles(cutmix) if cutmix else None

    def __call__(
        self, video: Float[Tensor, "b t 3 h w"], labels: Int64[Tensor, " b"], draws: Float[Tensor, "b 5"]
    ) -> tuple[Float[Tensor, "b t 3 h w"], Float[Tensor, "b y"]]:
        """Mix a batch. If the number of clips is odd, the last one is unchanged.

        Args:
            video: the clips; modified in place.
            labels: the class of each clip.
            draws: random numbers in [0, 1), on the CPU.

        Returns:
            the mixed clips, and the fraction of each class in each clip.
        """
        targets = F.one_hot(labels, self.num_classes).to(torch.float32)
        for i, own in zip(range(0, len(video) - 1, 2), draws[::2].tolist(), strict=False):
            if own[0] >= self.probability:
                continue
            kept = self._mix(video[i], video[i + 1], own)
            targets[i : i + 2] = torch.lerp(targets[i : i + 2].flip(0), targets[i : i + 2], kept)
        return video, targets

    def _mix(self, first: Float[Tensor, "t 3 h w"], second: Float[Tensor, "t 3 h w"], draws: Sequence[float]) -> float:
        """Mix two clips in place and return λ."""
        if self._cutmix is None or (self._mixup is not None and draws[1] >= 0.5):
            kept = _beta_sample(self._mixup, draws[2])
            before = first.clone()
            first.lerp_(second, 1 - kept)
            second.lerp_(before, 1 - kept)
            return kept
        height, width = first.shape[-2:]
        side = (1 - _beta_sample(self._cutmix, draws[2])) ** 0.5
        (top, bottom), (left, right) = _box_extent(side, draws[3], height), _box_extent(side, draws[4], width)
        box = (..., slice(top, bottom), slice(left, right))
        before = first[box].clone()
        first[box] = second[box]
        second[box] = before
        return 1 - (bottom - top) * (right - left) / (height * width)


def symmetric_beta_quantiles(alpha: float, count: int = 2048) -> Float64[np.ndarray, " n"]:
    """Quantiles of Beta(α, α) at the probabilities 0, 1/(2·count), …, 1/2.

    For α < 1 the density x^(α−1) (1−x)^(α−1) has a pole at 0, so it is integrated over u = (2x)^α, where it is
    (1−x)^(α−1), by the trapezoidal rule; for α ≥ 1 it is integrated over x.
    """
    power = min(alpha, 1.0)
    u = np.linspace(0.0, 1.0, 8 * count + 1)
    x = u ** (1 / power) / 2
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0.0, below[-1], count + 1), below, u) ** (1 / power) / 2


def _beta_sample(quantiles: Float64[np.ndarray, " n"] | None, draw: float) -> float:
    """The Beta variable for a uniform random number."""
    assert quantiles is not None  # the selected kind of mixing is enabled
    lower = draw if draw < 0.5 else 1 - draw
    value = float(np.interp(2 * lower, np.linspace(0.0, 1.0, len(quantiles)), quantiles))
    return value if draw < 0.5 else 1 - value


def _box_extent(side: float, draw: float, length: int) -> tuple[int, int]:
    """Start and end of a box with a uniform center along one axis, clipped to the frame."""
    center, half = draw * length, side * length / 2
    return max(0, round(center - half)), min(length, round(center + half))
