"""``tiny``: a factorised 3-D CNN that trains from scratch on two processor cores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .interface import Backbone, Features, as_unit_range, register_backbone


class FactorisedBlock(nn.Module):
    """A 3×3 convolution in each frame, then a residual convolution of three frames at each position.

    The frames of all clips lie in one batch, channels last: on a CPU two 2-D convolutions in that layout take about
    half the time of one factorised ``Conv3d``.
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
    """A factorised 3-D CNN with stride 16: a 112×112 frame gives a 7×7 grid.

    Args:
        num_frames: frames a clip; any number works.
        pretrained: path of a ``.safetensors`` file with this module's state, or None.
        width: channels of the first stage; the last has four times as many.
        depth: blocks in each of the three stages.
    """

    input_size = 112

    def __init__(
        self, *, num_frames: int, pretrained: str | None = None, width: int = 24, depth: tuple[int, ...] = (1, 2, 2)
    ) -> None:
        super().__init__()
        self.channels = 4 * width
        # Each frame comes with its change since the frame before: motion is what is to be told apart.
        self.stem = nn.Conv2d(6, width, 7, 4, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        blocks, channels = [], width
        for stage, count in enumerate(depth):
            for index in range(count):
                wider = width * 2**stage
                blocks.append(FactorisedBlock(channels, wider, stride=2 if stage and not index else 1))
                channels = wider
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(self.channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if pretrained is not None:
            from safetensors.torch import load_file

            self.load_state_dict(load_file(pretrained))

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """See :class:`~art.backbones.interface.Backbone`; ``class_token`` is the normalised mean of all tokens."""
        video = as_unit_range(video) - 0.5
        b, t = video.shape[:2]
        change = torch.cat([torch.zeros_like(video[:, :1]), video[:, 1:] - video[:, :-1]], dim=1)
        frames = torch.cat([video, change], dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem_norm(self.stem(frames)))
        for block in self.blocks:
            x = block(x, t)
        h, w = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1).reshape(b, t, h * w, self.channels)
        return Features(tokens, self.norm(tokens.mean(dim=(1, 2))), (h, w))
