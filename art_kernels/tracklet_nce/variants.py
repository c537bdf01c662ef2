"""The variants of the kernels that calls lead to, as launches on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from art_kernels._core.launch import KernelLaunch
from art_kernels._core.launch import DeviceSpec
from art_kernels.tracklet_nce.calls import Inputs, Sides, backward_call, forward_calls
from art_kernels.tracklet_nce.passes import Pairs
from art_kernels.tracklet_nce.tiles import backward_tiles, forward_tiles

#: Channels that stand for all: each row of the table of tiles, with chunks that are full and some that are not.
CHANNELS = (32, 64, 100, 128, 192, 256, 512, 1000, 1536)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: By name, whether columns have statistics and whether pairs are excluded. Each alone is a part of both.
OPTIONS = {"plain": (False, False), "all": (True, True)}
#: By name, what a backward launch gives: whether its rows are the candidates, their gradient, the temperature's.
BACKWARD = {
    "anchors": (False, True, True),
    "candidates": (True, True, False),
    "candidates_alone": (True, True, True),
    "temperature_alone": (False, False, True),
}
#: So many anchors and candidates are in one split.
_SIZE = 8192


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Names such as "backward.anchors.bf16.c256.plain", and the launches, on such a device."""
    few = _forward(_inputs(torch.float32, 1, 32, "plain", False), device)
    yield "combine", few[-1]
    for dtype_name, dtype in DTYPES.items():
        for channels in CHANNELS:
            for option in OPTIONS:
                name = f"{dtype_name}.c{channels}.{option}"
                yield f"forward.anchors.{name}", _forward(_inputs(dtype, _SIZE, channels, option, False), device)[0]
                if OPTIONS[option][0]:
                    inputs = _inputs(dtype, _SIZE, channels, option, True)
                    yield f"forward.candidates.{name}", _forward(inputs, device)[0]
                for kernel, (transposed, _, _) in BACKWARD.items():
                    inputs = _inputs(dtype, _SIZE, channels, option, transposed)
                    yield f"backward.{kernel}.{name}", _backward(inputs, option, kernel, device)


def _inputs(dtype: torch.dtype, rows: int, channels: int, option: str, transposed: bool) -> Inputs:
    ids = _empty(torch.int64, rows)
    columns = _empty(torch.int64, _SIZE)
    pairs = Pairs(ids, columns, ids if OPTIONS[option][1] else None, "equal")
    return Inputs(
        _empty(dtype, rows, channels), _empty(dtype, _SIZE, channels), pairs, _empty(torch.float32), transposed
    )


def _forward(inputs: Inputs, device: DeviceSpec) -> list[KernelLaunch]:
    rows, channels = inputs.rows.shape
    tiles = forward_tiles(inputs.anchors.dtype, channels, device)
    return forward_calls(inputs, tiles, _empty(torch.float32, 3, rows))


def _backward(inputs: Inputs, option: str, kernel: str, device: DeviceSpec) -> KernelLaunch:
    (rows, channels), columns = inputs.anchors.shape, inputs.candidates.shape[0]
    tiles = backward_tiles(inputs.anchors.dtype, channels, device)
    of_columns = _empty(torch.float32, 3, columns) if OPTIONS[option][0] else None
    _, of_rows, of_temperature = BACKWARD[kernel]
    grad_rows = torch.empty_like(inputs.rows) if of_rows else None
    tiles = tiles if of_rows else tiles._replace(parts=1)
    sides = Sides(_empty(torch.float32, 3, rows), of_columns)
    call, _, _ = backward_call(inputs, tiles, sides, grad_rows, of_temperature)
    return call


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
