"""Block sizes, warps and stages of the region-attention kernels: the one table, by direction, dtype, rows and channels.

What bounds a tile is what a program keeps: forward, the regions [BLOCK_N, C] and the output [BLOCK_M, C] in float32;
backward, the regions, the queries and the gradient of either. The sizes keep that within the registers of the program
without spilling and within the shared memory of every target (`python -m art_kernels compile` shows both).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Of one launch.

    Attributes:
        block_m: query rows a program takes at once; at least 16, the least that a tensor core takes.
        block_n: regions a tile.
        block_c: channels a chunk; a power of two.
        num_warps: of a program.
        num_stages: tiles in flight.
        hold: the channels of a tile are kept in registers, and not read again from the caches.
    """

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int
    hold: bool


Table = dict[int, tuple[tuple[int, int, int, int], ...]]

#: (greatest C, BLOCK_N, warps, stages) by bytes of a channel; the first line that fits is taken.
_FORWARD: Table = {
    2: ((128, 32, 4, 2), (256, 32, 4, 2), (512, 16, 4, 2), (1536, 16, 8, 1)),
    4: ((512, 16, 4, 2), (1536, 16, 8, 1)),
}
_BACKWARD: Table = {
    2: ((128, 32, 4, 1), (256, 16, 4, 1), (512, 16, 8, 1), (1536, 16, 8, 1)),
    4: ((1536, 16, 8, 1),),
}

MAX_CHANNELS = 1536


def forward_tiles(dtype: torch.dtype, rows: int, channels: int, shared: int, *, position: bool) -> Tiles:
    """The tiles of the forward kernel on a device whose programs have `shared` bytes of shared memory."""
    block_m = 32 if rows > 16 and channels <= 128 and dtype.itemsize == 2 else 16
    hold = channels <= (512 if position else 1024)
    return _tiles(_FORWARD, dtype, channels, shared, block_m, 128, hold)


def backward_tiles(dtype: torch.dtype, rows: int, channels: int, shared: int) -> Tiles:
    """The tiles of the backward kernels, likewise."""
    hold = dtype.itemsize == 2 and channels <= 128 and rows <= 16
    return _tiles(_BACKWARD, dtype, channels, shared, 16, 64 if dtype.itemsize == 2 else 32, hold)


def one_row_block(tiles: Tiles, rows: int, channels: int, *, position: bool, normalize: bool) -> bool:
    """Whether one block holds all rows backward, and the registers their gradient: with many channels not beside a
    position or statistics."""
    most = 128 if position else 256 if normalize else MAX_CHANNELS
    return rows <= tiles.block_m and channels <= most


def _tiles(
    table: Table, dtype: torch.dtype, channels: int, shared: int, block_m: int, widest_chunk: int, hold: bool
) -> Tiles:
    _, block_n, num_warps, num_stages = next(line for line in table[dtype.itemsize] if channels <= line[0])
    a_tile = block_n * channels * dtype.itemsize
    num_stages = max(1, min(num_stages, shared // (2 * a_tile)))
    return Tiles(block_m, block_n, block_c(channels, widest_chunk), num_warps, num_stages, hold)


def block_c(channels: int, widest: int) -> int:
    """Channels a chunk: the most, up to `widest`, that leave at most an eighth of the channels' number unused."""
    for width in (size for size in (128, 64, 32) if size <= widest):
        padded = -(-channels // width) * width
        if padded - channels <= channels // 8:
            return width
    return 32


def splits_for(count: int, programs: int, block_n: int, device: torch.device) -> tuple[int, int]:
    """Into how many splits the regions go, and how many regions each takes.

    One split, unless the programs would leave most of the device idle: then enough for about two on every processor,
    and none of less than two tiles.
    """
    tiles = -(-count // block_n)
    wanted = max(1, min(2 * processors(device) // max(programs, 1), tiles // 2))
    tiles_a_split = -(-tiles // wanted)
    return -(-tiles // tiles_a_split), tiles_a_split * block_n


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; of the interpreter, few, so that its tests split too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Most bytes of shared memory that a program on the device may have."""
    if device.type != "cuda":
        return 99 * 1024
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
