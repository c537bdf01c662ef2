"""What the backbones around a model of another library share: colours, checks of the video, freezing, sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.interface import Backbone, as_unit_range

IMAGENET_COLOURS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Colours = tuple[Sequence[float], Sequence[float]]

A = TypeVar("A", bound="AdaptedBackbone")


class AdaptedBackbone(Backbone):
    """A backbone around a model of another library.

    Args:
        model: the library's model, or the part of it that makes features.
        channels: C of its features.
        input_size: height and width of a frame in pixels.
        patch_size: height and width of a patch in pixels.
        colours: mean and deviation of red, green and blue that the model wants. They belong to the weights, and so to
            the state dict: a model that is saved and loaded keeps those of the checkpoint that it began with.
        frozen: no parameter has a gradient, and the model stays in eval mode: no dropout, statistics as they are.

    Raises:
        ValueError: an ``input_size`` that patches do not tile; colours that are not three means and deviations above 0.
    """

    colour_mean: Tensor
    colour_std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        channels: int,
        input_size: int,
        patch_size: int,
        colours: Colours,
        frozen: bool,
    ) -> None:
        super().__init__()
        check_tiling(input_size, patch_size)
        self.model = model
        self.channels, self.input_size = channels, input_size
        self.grid = (input_size // patch_size, input_size // patch_size)
        for name, values in zip(("colour_mean", "colour_std"), colours, strict=True):
            if len(values) != 3 or (name == "colour_std" and min(values) <= 0):
                raise ValueError(
                    f"{name} is {list(values)}, expected three numbers{', above 0' * (name == 'colour_std')}: "
                    "of red, green and blue in 0..1"
                )
            self.register_buffer(name, torch.tensor(list(values), dtype=torch.float32)[:, None, None])
        self.frozen = frozen
        if frozen:
            model.requires_grad_(False)
            model.eval()

    def train(self: A, mode: bool = True) -> A:
        """As ``nn.Module.train``; a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def prepared(self, video: Shaped[Tensor, "b t 3 height width"]) -> Float[Tensor, "b t 3 height width"]:
        """The video in the colours that the model wants.

        Raises:
            ValueError: another shape, or frames of another size than ``input_size``.
            TypeError: another dtype.
        """
        video = as_unit_range(video)
        size = self.input_size
        if video.shape[3:] != (size, size):
            raise ValueError(
                f"video has frames of {video.shape[3]}×{video.shape[4]} pixels, but there are positions for "
                f"{self.grid[0]}×{self.grid[1]} patches: expected {size}×{size}; for another square build the backbone "
                "with another input_size"
            )
        return (video - self.colour_mean) / self.colour_std


def check_tiling(input_size: int, patch_size: int) -> None:
    """Raise ValueError unless patches tile a frame."""
    if input_size < patch_size or input_size % patch_size:
        below = max(1, input_size // patch_size) * patch_size
        raise ValueError(
            f"input_size is {input_size}, expected a multiple of the patch size, {patch_size}, "
            f"such as {below} or {below + patch_size}"
        )


def chosen_colours(
    mean: Sequence[float] | None, std: Sequence[float] | None, otherwise: Colours
) -> tuple[Sequence[float], Sequence[float]]:
    """The colours that were asked for, and ``otherwise`` for what was not."""
    return (otherwise[0] if mean is None else mean, otherwise[1] if std is None else std)


def is_tag(pretrained: str | None, tags: Sequence[str], model: str) -> bool:
    """Whether ``pretrained`` is one of ``tags``, which the library downloads; otherwise it is a file, or None.

    Raises:
        FileNotFoundError: it is neither.
    """
    if pretrained is None or pretrained in tags:
        return pretrained is not None
    if not Path(pretrained).is_file():
        known = f"a tag of {model} ({', '.join(tags)})" if tags else f"a tag ({model} has none)"
        raise FileNotFoundError(f"pretrained is {pretrained!r}: expected the path of a checkpoint, or {known}")
    return False
