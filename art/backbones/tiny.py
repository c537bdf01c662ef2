"""``tiny``: a factorised 3-D CNN that trains from scratch on two processor cores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.interface import Backbone, Features, as_unit_range, layered, register_backbone


class FactorisedBlock(nn.Module):
    """A 3×3 convolution in each frame, then a residual convolution of three frames at each position.

    The frames of all clips lie in one batch, channels last: on a CPU two 2-D convolutions in that layout take less time
    than ``Conv3d``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.spatial_norm = nn.BatchNorm2d(out_channels)
        self.temporal = nn.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0), bias=False)
        self.temporal_norm = nn.BatchNorm2d(out_channels)
        self.shortcut = in_channels == out_channels and stride == 1

    def forward(self, frames: Float[Tensor, "bt c h w"], num_frames: int) -> Float[Tensor, "bt o h2 w2"]:
        """``frames`` holds B·T frames; ``num_frames`` is T."""
        x = self.spatial_norm(self.spatial(frames))
        x = F.relu(x + frames if self.shortcut else x)
        return F.relu(x + self.temporal_norm(self._over_time(x, num_frames)))

    def _over_time(self, x: Float[Tensor, "bt o h w"], num_frames: int) -> Float[Tensor, "bt o h w"]:
        # [B·T, C, h, w] seen as pictures [B, C, T, h·w]: no copy, because channels are last.
        bt, c, h, w = x.shape
        clips = x.permute(0, 2, 3, 1).reshape(bt // num_frames, num_frames, h * w, c).permute(0, 3, 1, 2)
        return self.temporal(clips).permute(0, 2, 3, 1).reshape(bt, h, w, c).permute(0, 3, 1, 2)


@register_backbone("tiny")
class Tiny(Backbone):
    """A factorised 3-D CNN: stages of stride 4, 8 and 16, of which the last two make the tokens.

    A token holds what the stage of stride 8 says of its place and, from the cell around it, what the stage of stride 16
    says: a limb is narrower than 16 pixels. A 112×112 frame gives a 14×14 grid.

    Args:
        num_frames: frames a clip; any number works.
        pretrained: path of a ``.safetensors`` file with this module's state, or None.
        width: channels of the first stage; the next two have two and four times as many, a token the sum of these.
        depth: blocks in each of the three stages.

    Examples:
        >>> import torch
        >>> from art.backbones import Tiny
        >>> Tiny(num_frames=2, width=8)(torch.rand(1, 2, 3, 64, 64)).grid
        (8, 8)
    """

    input_size = 112

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
        # Each frame comes with its change since the frame before: motion is what is to be told apart.
        self.stem = nn.Conv2d(6, width, 7, 4, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        channels = width
        for stage, count in enumerate(depth):
            wider = width * 2**stage
            strides = [1] * count if stage == 0 else [2] + [1] * (count - 1)
            blocks = [FactorisedBlock(wider if i else channels, wider, stride) for i, stride in enumerate(strides)]
            self.stages.append(nn.ModuleList(blocks))
            channels = wider
        self.norm = nn.LayerNorm(self.channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if pretrained is not None:
            from safetensors.torch import load_file

            self.load_state_dict(load_file(pretrained))

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """See :class:`~art.backbones.interface.Backbone`; ``class_token`` is the normalised mean of both stages."""
        video = as_unit_range(video) - 0.5
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
        """The stem, and each block of each stage."""
        blocks = [f"stages.{i}.{j}." for i, stage in enumerate(self.stages) for j, _ in enumerate(stage.children())]
        return layered(self, ("stem",), blocks)
