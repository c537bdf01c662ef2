"""Backbone ``tiny``: a factorized 3-D CNN, small enough to train from scratch on two CPU cores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.base import (
    Backbone,
    Features,
    convolve_over_time,
    group_params_by_layer,
    load_by_name,
    read_checkpoint,
    register_backbone,
    to_float01,
)


class FactorizedBlock(nn.Module):
    """A 3×3 spatial convolution, then a residual temporal convolution over three frames.

    The frames of all clips are one batch in channels-last layout; on a CPU, two 2-D convolutions in this layout take
    less time than ``Conv3d``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.spatial_norm = nn.BatchNorm2d(out_channels)
        self.temporal = nn.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0), bias=False)
        self.temporal_norm = nn.BatchNorm2d(out_channels)
        self.shortcut = in_channels == out_channels and stride == 1

    def forward(self, frames: Float[Tensor, "bt c h w"], num_frames: int) -> Float[Tensor, "bt o h2 w2"]:
        """Apply the block to B·T frames; ``num_frames`` is T."""
        x = self.spatial_norm(self.spatial(frames))
        x = F.relu(x + frames if self.shortcut else x)
        return F.relu(x + self.temporal_norm(convolve_over_time(self.temporal, x, num_frames)))


@register_backbone("tiny")
class Tiny(Backbone):
    """A factorized 3-D CNN with three stages of stride 4, 8, and 16; the last two provide the tokens.

    A token concatenates the features of stride 8 at its position with those of stride 16 around it, because a limb is
    narrower than 16 pixels. The grid of a 112×112 frame is 14×14.

    Args:
        num_frames: frames per clip; any number works.
        pretrained: path of this module's state dict, as ``.safetensors`` or written by ``torch.save``, or None.
        width: channels of the first stage; the second and third stages have 2 · width and 4 · width, tokens 6 · width.
        depth: blocks in each of the three stages.

    Examples:
        >>> import torch
        >>> from art.backbones import Tiny
        >>> Tiny(num_frames=2, width=8)(torch.rand(1, 2, 3, 64, 64)).grid
        (8, 8)
    """

    input_size, grid = 112, (14, 14)

    def __init__(
        self,
        *,
        num_frames: int,
        pretrained: str | None = None,
        width: int = 24,
        depth: tuple[int, int, int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.channels = 6 * width
        # Input channels: a frame and its difference from the previous frame, because classes differ in motion.
        self.stem = nn.Conv2d(6, width, 7, 4, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        channels = width
        for stage, count in enumerate(depth):
            wider = width * 2**stage
            strides = [1] * count if stage == 0 else [2] + [1] * (count - 1)
            blocks = [FactorizedBlock(wider if i else channels, wider, stride) for i, stride in enumerate(strides)]
            self.stages.append(nn.ModuleList(blocks))
            channels = wider
        self.norm = nn.LayerNorm(self.channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if pretrained is not None:
            state = read_checkpoint(pretrained, prefixes=("module.", "backbone."))
            load_by_name(self, state, source=pretrained, expected="the state dict of this backbone")

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of ``video``; ``class_token`` is the normalized mean of both stages."""
        video = to_float01(video) - 0.5
        b, t = video.shape[:2]
        change = torch.cat([torch.zeros_like(video[:, :1]), video[:, 1:] - video[:, :-1]], dim=1)
        frames = torch.cat([video, change], dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem_norm(self.stem(frames)))
        scales = []
        for stage in self.stages:
            for block in stage.children():
                x = block(x, t)
            scales.append(x)
        fine, coarse = scales[-2:]
        h, w = fine.shape[-2:]
        around = F.interpolate(coarse, (h, w), mode="nearest")
        tokens = torch.cat([fine, around], dim=1).permute(0, 2, 3, 1).reshape(b, t, h * w, self.channels)
        pooled = torch.cat([scale.mean((2, 3)).unflatten(0, (b, t)).mean(1) for scale in (fine, coarse)], dim=1)
        return Features(tokens, self.norm(pooled), (h, w))

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Return one group for the stem and one per block."""
        blocks = [f"stages.{i}.{j}." for i, stage in enumerate(self.stages) for j, _ in enumerate(stage.children())]
        return group_params_by_layer(self, ("stem",), blocks)
