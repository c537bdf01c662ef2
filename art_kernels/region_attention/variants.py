"""The variants of the region-attention kernels that calls lead to, as launches on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from art_kernels.call import Call
from art_kernels.devices import Device
from art_kernels.region_attention.launch import backward_call, forward_calls

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


def variants(device: Device) -> Iterator[tuple[str, Call]]:
    """Names such as "backward.bf16.c768.m16.normed", and the launches, on such a device."""
    for dtype_name, dtype in DTYPES.items():
        for channels in CHANNELS:
            split = _forward(dtype, 1, channels, "plain", device, frames=1, count=4096)
            yield f"combine.{dtype_name}.c{channels}", split[-1]
            for rows in ROWS:
                for option in OPTIONS:
                    name = f"{dtype_name}.c{channels}.m{rows}.{option}"
                    yield f"forward.{name}", _forward(dtype, rows, channels, option, device)[0]
                    yield f"backward.{name}", _backward(dtype, rows, channels, option, device)


def _forward(
    dtype: torch.dtype, rows: int, channels: int, option: str, device: Device, *, frames: int = 4096, count: int = 196
) -> list[Call]:
    position, mask, normed, scores = OPTIONS[option]
    queries, regions = _empty(dtype, frames, rows, channels), _empty(dtype, frames, count, channels)
    return forward_calls(
        queries,
        regions,
        _empty(dtype, count, channels) if position else None,
        _empty(torch.bool, frames, count) if mask else None,
        1.0,
        1e-5 if normed else None,
        queries,
        _empty(torch.float32, frames, rows, 2),
        _empty(torch.float32, frames, rows, count) if scores else None,
        device,
    )


def _backward(dtype: torch.dtype, rows: int, channels: int, option: str, device: Device) -> Call:
    position, mask, normed, scores = OPTIONS[option]
    frames, count = 4096, 196
    queries, regions = _empty(dtype, frames, rows, channels), _empty(dtype, frames, count, channels)
    rows_of_frames = _empty(torch.float32, frames, rows, 2)
    pairs = _empty(dtype, frames, rows, count)
    call, _ = backward_call(
        queries,
        pairs if scores else None,
        queries,
        regions,
        _empty(dtype, count, channels) if position else None,
        _empty(torch.bool, frames, count) if mask else None,
        rows_of_frames,
        rows_of_frames,
        1.0,
        1e-5 if normed else None,
        queries,
        regions,
        pairs if position else None,
        device,
    )
    return call


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
