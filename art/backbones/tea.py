"""Backbone ``tea50``: Res2Net-50 with motion excitation and multiple temporal aggregation (TEA), the paper's CNN.

Li, Ji, Shi, Zhang, Kang, Wang: "TEA: Temporal Excitation and Aggregation for Action Recognition", CVPR 2020,
arXiv 2004.01398; based on Gao et al.: "Res2Net: A New Multi-scale Backbone Architecture", TPAMI 2021, arXiv 1904.01169.
Modules have the names of the published parameters.

The frames of all clips are one batch ``[B·T, C, h, w]`` in channels-last layout, in which a temporal convolution is a
2-D convolution on the same memory.
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

from art._deprecated import renamed_attribute
from art.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    Features,
    convolve_over_time,
    group_params_by_layer,
    load_by_name,
    read_checkpoint,
    register_backbone,
    to_float01,
)

DEPTHS = (3, 4, 6, 3)
SCALES = 4  # groups that the channels of a block are split into
WIDTH = 26  # channels per group in the first stage; doubled in each further stage
REDUCTION = 16  # channel reduction of the motion excitation
STRIDE = 32  # of the last stage, in pixels

_log = logging.getLogger(__name__)


class MotionExcitation(nn.Module):
    """Scale each channel of a frame by its change to the next frame (section 3.1 of the TEA paper)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // REDUCTION
        self.conv1 = nn.Conv2d(channels, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1, groups=narrow, bias=False)
        self.conv3 = nn.Conv2d(narrow, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "bt c h w"], num_frames: int) -> Float[Tensor, "bt c h w"]:
        """Return x · (½ + σ(motion)) with motion = bn3(conv3(spatial mean of conv2(next frame) − this frame)).

        ``num_frames`` is T. The difference is 0 for the last frame of a clip.
        """
        narrow = self.bn1(self.conv1(x))
        # The mean of the difference is the difference of the means, which is cheaper.
        current, shifted = (y.mean((2, 3)).unflatten(0, (-1, num_frames)) for y in (narrow, self.conv2(narrow)))
        motion = F.pad(shifted[:, 1:] - current[:, :-1], (0, 0, 0, 1))
        return x * (0.5 + self.bn3(self.conv3(motion.flatten(0, 1)[..., None, None])).sigmoid())


class TemporalConvolution(nn.Module):
    """A depthwise convolution over three frames, the "shift" of the published code.

    Args:
        channels: C, even.
        shifts: initialize as the shift of TSM: the first half of the channels reads the next frame, the second half the
            previous frame. If False, initialize as the identity.
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
        """Convolve over time; ``num_frames`` is T."""
        weight = self.conv.weight.unsqueeze(-1)
        return convolve_over_time(
            lambda clips: F.conv2d(clips, weight, padding=(1, 0), groups=x.shape[1]), x, num_frames
        )


class TEABlock(nn.Module):
    """A Res2Net bottleneck with motion excitation and a temporal convolution in each group of channels.

    The channels are split into four groups. The first three pass through a temporal and a spatial convolution, and each
    output is added to the next input, which enlarges the receptive field. The last group only passes through a temporal
    convolution. In the first block of a stage the groups are independent, and the last one is pooled.

    Args:
        in_channels: channels of the input.
        width: channels per group.
        out_channels: channels of the output.
        stride: of the spatial convolutions.
        first: whether this is the first block of its stage.
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
        """Apply the block to B·T frames; ``num_frames`` is T."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        *groups, last = self.me(y, num_frames).chunk(SCALES, dim=1)
        out: list[Tensor] = []
        for group, shift, conv, norm in zip(groups, self.shifts, self.convs, self.bns, strict=False):
            group = group + out[-1] if out and not self.first else group
            out.append(F.relu(norm(conv(shift(group, num_frames))), inplace=True))
        last = self.shifts[-1](last, num_frames)
        out.append(F.avg_pool2d(last, 3, self.stride, 1) if self.first else last)
        return F.relu(self.bn3(self.conv3(torch.cat(out, dim=1))) + self.downsample(x), inplace=True)


@register_backbone("tea50")
class TEA50(Backbone):
    """TEA on Res2Net-50 26w4s. The state dict has the published names, without the classifier.

    ``tokens`` are the output of the last stage, one per 32×32 pixels; ``class_token`` is their mean.

    Args:
        num_frames: T; any number works, and no weight depends on it.
        pretrained: path of a published TEA checkpoint, or of an ImageNet checkpoint of Res2Net-50 26w4s
            (``res2net50_26w_4s``), as ``.safetensors`` or written by ``torch.save``. The name prefixes "module." and
            "base_model." are removed; the classifier ("fc", "new_fc") is ignored. The parameters of
            :func:`temporal_names` are missing from an ImageNet checkpoint and keep their initial values.
        frozen_batch_norm: use the stored statistics in training too, and disable the gradients of the weights and
            biases of batch normalization. For small batches with ``pretrained`` weights.
        gradient_checkpointing: recompute the activations of each block in the backward pass: less memory, more time,
            the same result.

    Attributes:
        num_frames: T.
        randomly_initialized: names in the state dict that were not loaded from ``pretrained``.

    Raises:
        FileNotFoundError: If ``pretrained`` does not exist.
        ValueError: If it is a checkpoint of another architecture.

    Examples:
        >>> from art.backbones import TEA50
        >>> TEA50(num_frames=8).channels
        2048
    """

    channels = 2048
    input_size, grid = 224, (7, 7)
    image_mean: Tensor
    image_std: Tensor
    initialised = renamed_attribute("initialised", "randomly_initialized")

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
        # Not in the state dict: published ones do not have them.
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
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
        self.randomly_initialized = list(self.state_dict()) if pretrained is None else self._load(pretrained)
        if frozen_batch_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)
        self.train(self.training)

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of ``num_frames`` frames of at least 32×32 pixels."""
        video = to_float01(video)
        b, t, _, height, width = video.shape
        if t != self.num_frames:
            raise ValueError(
                f"video has {t} frames per clip (shape {list(video.shape)}), expected {self.num_frames}; "
                f"sample {self.num_frames} frames, or build the backbone with num_frames={t}"
            )
        if min(height, width) < STRIDE:
            raise ValueError(
                f"video has frames of {height}×{width} pixels, expected at least {STRIDE}×{STRIDE}, the "
                "stride of the last stage; enlarge the frames"
            )
        frames = ((video - self.image_mean) / self.image_std).flatten(0, 1)
        x = F.relu(self.bn1(self.conv1(frames.contiguous(memory_format=torch.channels_last))), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage.children():
                x = self._run(cast(TEABlock, block), x)
        h, w = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1).reshape(b, t, h * w, self.channels)
        return Features(tokens, tokens.mean((1, 2)), (h, w))

    def train(self, mode: bool = True) -> TEA50:
        """Set the mode as ``nn.Module.train`` does; frozen batch normalization stays in eval mode."""
        super().train(mode)
        if self.frozen_batch_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Return one group for the first convolution and one per stage."""
        return group_params_by_layer(self, ("conv1.", "bn1."), [f"layer{i}." for i in range(1, 5)])

    def _batch_norms(self) -> Iterator[nn.BatchNorm2d]:
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
            context_fn=lambda: (nullcontext(), _fixed_statistics(block)),
        )

    def _load(self, path: str) -> list[str]:
        state = read_checkpoint(path, prefixes=("module.", "base_model."))
        state = {name: value for name, value in state.items() if not name.startswith(("fc.", "new_fc."))}
        temporal = temporal_names(self)
        is_image_model = not any(name in state for name in temporal)
        missing = load_by_name(
            self,
            state,
            source=path,
            expected="a checkpoint of TEA on Res2Net-50 26w4s, or an ImageNet checkpoint of Res2Net-50 26w4s "
            "(res2net50_26w_4s) without any temporal parameters (me, shifts)",
            optional=temporal if is_image_model else (),
        )
        if is_image_model:
            _log.info("%s is an image checkpoint: the temporal parameters (me, shifts) keep their initial values", path)
        return missing


def temporal_names(backbone: TEA50) -> list[str]:
    """Return the names in the state dict that TEA adds to Res2Net: motion excitation and temporal convolutions."""
    return [name for name in backbone.state_dict() if ".me." in name or ".shifts." in name]


def _stage(index: int, *, in_channels: int) -> nn.ModuleList:
    width, out_channels = WIDTH * 2**index, 256 * 2**index
    stride = 1 if index == 0 else 2
    blocks = [TEABlock(in_channels, width, out_channels, stride, first=True)]
    blocks += [TEABlock(out_channels, width, out_channels, 1, first=False) for _ in range(DEPTHS[index] - 1)]
    return nn.ModuleList(blocks)


@contextmanager
def _fixed_statistics(block: nn.Module) -> Iterator[None]:
    """Do not update batch statistics: a recomputed block would update them twice."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
