"""The variants of the region-attention kernels that calls lead to, as launches on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from art_kernels._core.launch import KernelLaunch
from art_kernels._core.launch import DeviceSpec
from art_kernels.region_attention.calls import Inputs, backward_call, delta_call, forward_calls

#: Channels that stand for all: each row of the table of tiles, with chunks that are full and some that are not.
CHANNELS = (32, 96, 256, 512, 768, 1000, 1024, 1408, 1536)
#: Query rows: those of one block, and of several.
ROWS = (16, 64)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: By name, which of position, mask, normalisation and map a call has. Each alone is a part of them all.
OPTIONS = {
    "plain": (False, False, False, False),
    "normed": (False, False, True, False),
    "all": (True, True, True, True),
}


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Names such as "backward.bf16.c768.m16.normed", and the launches, on such a device."""
    for dtype_name, dtype in DTYPES.items():
        for channels in CHANNELS:
            for option in OPTIONS:
                name = f"{dtype_name}.c{channels}.split.{option}"
                few = _inputs(dtype, 1, channels, option, frames=1, count=4096)
                forward, combine = _forward(few, option, device)
                if option == "plain":
                    yield f"combine.{dtype_name}.c{channels}", combine
                if dtype != torch.float32:  # where a split writes, as all do, what is added up: float32
                    yield f"forward.{name}", forward
                    if few.backward_tiles(device)[1]:  # with several blocks of rows there is always something to add up
                        yield f"backward.{name}", _backward(few, option, device)["backward"]
            for rows in ROWS:
                for option in OPTIONS:
                    name = f"{dtype_name}.c{channels}.m{rows}.{option}"
                    inputs = _inputs(dtype, rows, channels, option)
                    yield f"forward.{name}", _forward(inputs, option, device)[0]
                    for kernel, call in _backward(inputs, option, device).items():
                        yield f"{kernel}.{name}", call


def _inputs(
    dtype: torch.dtype, rows: int, channels: int, option: str, *, frames: int = 4096, count: int = 196
) -> Inputs:
    position, mask, normed, _ = OPTIONS[option]
    return Inputs(
        _empty(dtype, frames, rows, channels),
        _empty(dtype, frames, count, channels),
        _empty(dtype, count, channels) if position else None,
        _empty(torch.bool, frames, count) if mask else None,
        1.0,
        1e-5 if normed else None,
    )


def _forward(inputs: Inputs, option: str, device: DeviceSpec) -> list[KernelLaunch]:
    (frames, rows, _), count = inputs.queries.shape, inputs.regions.shape[1]
    scores = _empty(torch.float32, frames, rows, count) if OPTIONS[option][3] else None
    softmax = _empty(torch.float32, frames, rows, 2)
    return forward_calls(inputs, inputs.forward_tiles(device), inputs.queries, softmax, scores)


def _backward(inputs: Inputs, option: str, device: DeviceSpec) -> dict[str, KernelLaunch]:
    position, _, _, scores = OPTIONS[option]
    (frames, rows, _), (_, count, _) = inputs.queries.shape, inputs.regions.shape
    of_rows = _empty(torch.float32, frames, rows, 2)
    pairs = _empty(inputs.queries.dtype, frames, rows, count)
    grad_map = pairs if scores else None
    tiles, one_block = inputs.backward_tiles(device)
    call, _ = backward_call(
        inputs, tiles, one_block, of_rows, of_rows, inputs.queries, grad_map, inputs.queries, inputs.regions,
        pairs if position else None,
    )  # fmt: skip
    calls = {"backward": call}
    if inputs.queries.dtype == torch.float32:
        calls["delta"], _ = delta_call(inputs, tiles, of_rows, inputs.queries, grad_map)
    return calls


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
