"""Where the transformer blocks of each backbone are, and how the output of one becomes tokens of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from art.backbones.clip import ClipViT
from art.backbones.interface import Backbone
from art.backbones.timm_vit import TimmViT
from art.backbones.transformers_video import TransformersVideo
from art.backbones.uniformerv2 import UniFormerV2


class NotAvailable(Exception):
    """A map that a backbone cannot give: why, as a clause for a caption."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a transformer.

    Attributes:
        modules: in order.
        patches: the patch tokens ``[B, T', N, C]`` in the output of any of them; where a token covers several frames,
            T' is smaller than T.
    """

    modules: Sequence[nn.Module]
    patches: Callable[[Any], Float[Tensor, "b t n c"]]


def blocks_of(backbone: Backbone, num_frames: int) -> Blocks | None:
    """The blocks of a backbone that has some; None of any other."""
    if isinstance(backbone, UniFormerV2):
        return Blocks(list(backbone.transformer.resblocks), lambda x: x[:, :, 1:])
    if isinstance(backbone, TransformersVideo):
        family, whole = backbone.family, backbone.model
        base: Any = whole.base_model
        layers = base.layers if hasattr(base, "layers") else base.encoder.layer
        steps = num_frames // backbone.tubelet
        return Blocks(list(layers), lambda out: family.split(first(out), steps)[0])
    if isinstance(backbone, TimmViT) or (isinstance(backbone, ClipViT) and backbone.of_timm):
        vit: Any = backbone.model
        if not hasattr(vit, "blocks"):
            return None
        return Blocks(list(vit.blocks), lambda x: x[:, vit.num_prefix_tokens :].unflatten(0, (-1, num_frames)))
    if isinstance(backbone, ClipViT):
        tower: Any = backbone.model
        transformer = tower.transformer

        def patches(x: Tensor) -> Tensor:
            x = x if transformer.batch_first else x.transpose(0, 1)
            return x[:, 1:].unflatten(0, (-1, num_frames))

        return Blocks(list(transformer.resblocks), patches)
    return None


def first(output: Any) -> Tensor:
    """The hidden state in what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def over_frames(maps: Float[Tensor, "steps n"], num_frames: int, grid: tuple[int, int]) -> Float[Tensor, "t h w"]:
    """Maps of T' steps as maps of T frames."""
    return maps.repeat_interleave(num_frames // len(maps), dim=0).unflatten(1, grid)
