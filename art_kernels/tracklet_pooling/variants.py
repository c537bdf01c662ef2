"""The variants of the pooling kernels that calls lead to, as launches on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from art_kernels._core.launch import KernelLaunch
from art_kernels._core.launch import DeviceSpec
from art_kernels.tracklet_pooling.calls import Inputs, backward_call, forward_call

#: Channels that stand for all: few chunks, all of them full, and many, of which the last is not.
CHANNELS = (256, 1000)
#: Semantics and frames: few, tiles that hold all frames, and several of the largest tiles.
SIZES = ((16, 16), (16, 64), (16, 256), (64, 64))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: By name, whether a call has a mask of valid frames, and a gradient of the saliency.
OPTIONS = {"plain": False, "all": True}


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Names such as "backward.bf16.c256.j16.t32.all", and the launches, on such a device."""
    for dtype_name, dtype in DTYPES.items():
        for channels in CHANNELS:
            for semantics, frames in SIZES:
                for option, everything in OPTIONS.items():
                    responses = _empty(dtype, 1024, frames, 8, channels)
                    valid = _empty(torch.bool, 1024, frames) if everything else None
                    inputs = Inputs(responses, _empty(dtype, 1024, semantics, channels), 0.01, valid)
                    name = f"{dtype_name}.c{channels}.j{semantics}.t{frames}.{option}"
                    yield from _calls(name, inputs, everything, device)


def _calls(name: str, inputs: Inputs, everything: bool, device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    videos, frames, count, channels = inputs.responses.shape
    saliency = _empty(inputs.responses.dtype, videos, frames, count)
    call, _ = forward_call(inputs, inputs.tiles("forward", device), saliency)
    yield f"forward.{name}", call
    grad_aggregated = _empty(inputs.responses.dtype, videos, count, channels)
    call, _ = backward_call(
        inputs, inputs.tiles("backward", device), grad_aggregated, saliency if everything else None, inputs.responses,
        True,
    )  # fmt: skip
    yield f"backward.{name}", call


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
