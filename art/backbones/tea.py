"""``tea50``: Res2Net-50 with motion excitation and multiple temporal aggregation (TEA), the paper's CNN.

Li, Ji, Shi, Zhang, Kang, Wang: "TEA: Temporal Excitation and Aggregation for Action Recognition", CVPR 2020,
arXiv 2004.01398; on Gao et al.: "Res2Net: A New Multi-scale Backbone Architecture", TPAMI 2021, arXiv 1904.01169.
Modules carry the names of the published parameters.

The frames of all clips lie in one batch ``[B·T, C, h, w]``, channels last, so that a convolution over time is a 2-D one
on the same memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from art.backbones.checkpoint import load_by_name, read_checkpoint
from art.backbones.interface import Backbone, Features, as_unit_range, layered, register_backbone

DEPTHS = (3, 4, 6, 3)
SCALES = 4  # pieces of a block's channels
WIDTH = 26  # channels of a piece in the first stage; each stage doubles them
REDUCTION = 16  # of the channels in which motion is measured
STRIDE = 32  # pixels between the cells of the last stage

_log = logging.getLogger(__name__)


class MotionExcitation(nn.Module):
    """Scales each channel of a frame by how much it changes until the next frame (section 3.1 of TEA)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // REDUCTION
        self.conv1 = nn.Conv2d(channels, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False)
        self.conv3 = nn.Conv2d(narrow, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "bt c h w"], num_frames: int) -> Float[Tensor, "bt c h w"]:
        """x · (½ + σ(motion)), where the motion is bn3(conv3(mean over space of conv2(next frame) − this frame)).

        ``num_frames`` is T; the last frame of a clip has no next one, and its difference is 0.
        """
        narrow = self.bn1(self.conv1(x))
        # The mean of a difference of pictures is the difference of their means, of which there are far fewer.
        now, moved = (y.mean((2, 3)).unflatten(0, (-1, num_frames)) for y in (narrow, self.conv2(narrow)))
        motion = F.pad(moved[:, 1:] - now[:, :-1], (0, 0, 0, 1))
        return x * (0.5 + self.bn3(self.conv3(motion.flatten(0, 1)[..., None, None])).sigmoid())


class TemporalConvolution(nn.Module):
    """A convolution over three frames in each channel by itself, the published code's "shift".

    Args:
        channels: C, even.
        shifts: begin as the shift of TSM: the first half of the channels shows the next frame, the second half the one
            before; otherwise begin as the identity.
    """

    def __init__(self, channels: int, *, shifts: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1, groups=channels, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            if shifts:
                self.conv.weight[: channels // 2, 0, 2] = 1
                self.conv.weight[channels // 2 :, 0, 0] = 1
            else:
                self.conv.weight[:, 0, 1] = 1

    def forward(self, x: Float[Tensor, "bt c h w"], num_frames: int) -> Float[Tensor, "bt c h w"]:
        """``num_frames`` is T."""
        # [B·T, C, h, w] seen as pictures [B, C, T, h·w], a view because channels are last.
        bt, c, h, w = x.shape
        clips = x.permute(0, 2, 3, 1).reshape(bt // num_frames, num_frames, h * w, c).permute(0, 3, 1, 2)
        clips = F.conv2d(clips, self.conv.weight.unsqueeze(-1), padding=(1, 0), groups=c)
        return clips.permute(0, 2, 3, 1).reshape(bt, h, w, c).permute(0, 3, 1, 2)


class TEABlock(nn.Module):
    """A Res2Net bottleneck with motion excitation, whose pieces each pass a convolution over time first.

    The channels are split into four pieces. The first three pass a convolution over time and one over space, and what
    comes out joins the next piece, so that each sees further in both; the last piece passes the one over time alone. In
    the first block of a stage no piece joins another, and the last one is pooled.

    Args:
        in_channels: of its input.
        width: channels of a piece.
        out_channels: of its output.
        stride: of the convolutions over space.
        first: the first block of its stage.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int, *, first: bool) -> None:
        super().__init__()
        middle = SCALES * width
        self.stride, self.first = stride, first
        self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.me = MotionExcitation(middle)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride, 1, bias=False) for _ in range(SCALES - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(SCALES - 1))
        self.shifts = nn.ModuleList(TemporalConvolution(width, shifts=i == SCALES - 1) for i in range(SCALES))
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            if first
            else nn.Identity()
        )

    def forward(self, x: Float[Tensor, "bt c h w"], num_frames: int) -> Float[Tensor, "bt o h2 w2"]:
        """``num_frames`` is T."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = torch.cat(self._aggregated(self.me(y, num_frames), num_frames), dim=1)
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)

    def _aggregated(self, x: Float[Tensor, "bt m h w"], num_frames: int) -> list[Tensor]:
        *pieces, last = x.chunk(SCALES, dim=1)
        out: list[Tensor] = []
        for piece, shift, conv, norm in zip(pieces, self.shifts, self.convs, self.bns, strict=False):
            joined = piece + out[-1] if out and not self.first else piece
            out.append(F.relu(norm(conv(shift(joined, num_frames))), inplace=True))
        last = self.shifts[-1](last, num_frames)
        out.append(F.avg_pool2d(last, 3, self.stride, 1) if self.first else last)
        return out


@register_backbone("tea50")
class TEA50(Backbone):
    """TEA on Res2Net-50 26w4s. Its state dict has the published names, without the classifier.

    The tokens are the last stage's output, one for 32×32 pixels; ``class_token`` is their mean over space and time.

    Args:
        num_frames: T; any number works, and no weight depends on it: those for 8 frames serve 16.
        pretrained: path of a published TEA checkpoint, or of an ImageNet checkpoint of Res2Net-50 26w4s
            (``res2net50_26w_4s``), as ``.safetensors`` or as ``torch.save`` wrote it. Names may begin with "module."
            and "base_model."; the classifier ("fc", "new_fc") is left out. The ImageNet checkpoint lacks
            :func:`temporal_names`, which keep their initialisation.
        frozen_batch_norm: normalise with the statistics as they are, also in training, and leave the normalisations'
            weights and biases without gradient. Meant for small batches on top of ``pretrained``.
        gradient_checkpointing: keep only the input of each block in training and compute the block again in the
            backward pass: less memory, more time, the same result.

    Attributes:
        num_frames: T.
        initialised: the names that ``pretrained`` did not fill; all, where it is None.

    Raises:
        FileNotFoundError: there is no file ``pretrained``.
        ValueError: it holds another architecture.

    Examples:
        >>> from art.backbones import TEA50
        >>> TEA50(num_frames=8).channels
        2048
    """

    channels = 2048
    input_size = 224
    colour_mean: Tensor
    colour_std: Tensor

    def __init__(
        self,
        *,
        num_frames: int,
        pretrained: str | None = None,
        frozen_batch_norm: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.frozen_batch_norm = frozen_batch_norm
        self.gradient_checkpointing = gradient_checkpointing
        # ImageNet's mean and deviation of red, green and blue. Not in the state dict: published ones do not have them.
        self.register_buffer("colour_mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("colour_std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(0, in_channels=64)
        self.layer2 = _stage(1, in_channels=256)
        self.layer3 = _stage(2, in_channels=512)
        self.layer4 = _stage(3, in_channels=1024)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.initialised = list(self.state_dict()) if pretrained is None else self._load(pretrained)
        if frozen_batch_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train(self.training)

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """See :class:`~art.backbones.interface.Backbone`.

        Raises:
            ValueError: another number of frames than ``num_frames``, or frames below 32×32 pixels.
        """
        video = as_unit_range(video)
        b, t, _, height, width = video.shape
        if t != self.num_frames:
            raise ValueError(
                f"video has {t} frames a clip (shape {list(video.shape)}), expected {self.num_frames}; "
                f"sample that many, or build the backbone with num_frames={t}"
            )
        if min(height, width) < STRIDE:
            raise ValueError(
                f"video has frames of {height}×{width} pixels, expected at least {STRIDE}×{STRIDE}, what a token of "
                "the last stage stands for; enlarge the frames"
            )
        frames = ((video - self.colour_mean) / self.colour_std).flatten(0, 1)
        x = F.relu(self.bn1(self.conv1(frames.contiguous(memory_format=torch.channels_last))), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage.children():
                x = self._run(cast(TEABlock, block), x)
        h, w = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1).reshape(b, t, h * w, self.channels)
        return Features(tokens, tokens.mean((1, 2)), (h, w))

    def train(self, mode: bool = True) -> TEA50:
        """As ``nn.Module.train``; frozen normalisations stay in eval mode."""
        super().train(mode)
        if self.frozen_batch_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """The first convolution, and each of the four stages."""
        return layered(self, ("conv1.", "bn1."), [f"layer{i}." for i in range(1, 5)])

    def _norms(self) -> Iterator[nn.BatchNorm2d]:
        return (module for module in self.modules() if isinstance(module, nn.BatchNorm2d))

    def _run(self, block: TEABlock, x: Float[Tensor, "bt c h w"]) -> Float[Tensor, "bt o h2 w2"]:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return block(x, self.num_frames)
        return checkpoint(
            block,
            x,
            self.num_frames,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in a block is random
            context_fn=lambda: (nullcontext(), _statistics_kept(block)),
        )

    def _load(self, path: str) -> list[str]:
        state = read_checkpoint(path, prefixes=("module.", "base_model."))
        state = {name: value for name, value in state.items() if not name.startswith(("fc.", "new_fc."))}
        temporal = temporal_names(self)
        from_images = not any(name in state for name in temporal)
        lacking = load_by_name(
            self,
            state,
            source=path,
            fits="a checkpoint of TEA on Res2Net-50 26w4s, or one of Res2Net-50 26w4s for images (res2net50_26w_4s), "
            "which lacks all of the temporal parts (me, shifts)",
            may_lack=temporal if from_images else (),
        )
        if from_images:
            _log.info("%s is a Res2Net for images: the temporal parts (me, shifts) keep their initialisation", path)
        return lacking


def temporal_names(backbone: TEA50) -> list[str]:
    """The names in the state dict that TEA adds to Res2Net: motion excitation and convolutions over time."""
    return [name for name in backbone.state_dict() if ".me." in name or ".shifts." in name]


def _stage(index: int, *, in_channels: int) -> nn.ModuleList:
    width, out_channels = WIDTH * 2**index, 256 * 2**index
    stride = 1 if index == 0 else 2
    blocks = [TEABlock(in_channels, width, out_channels, stride, first=True)]
    blocks += [TEABlock(out_channels, width, out_channels, 1, first=False) for _ in range(DEPTHS[index] - 1)]
    return nn.ModuleList(blocks)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch normalisation does not count this pass: a block that is computed again would count twice."""
    counting = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in counting]
    for norm in counting:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(counting, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
