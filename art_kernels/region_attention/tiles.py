"""Block sizes, warps and stages of the region-attention kernels: the one table, by kernel, vendor, dtype and channels.

What bounds a tile is what a program keeps: forward, the regions [BLOCK_N, C] and the output [BLOCK_M, C] in float32;
backward, the regions, the queries and the gradient of either. The sizes keep that within the registers of the program
without spilling and within the shared memory of every target (`python -m art_kernels compile` shows both).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from art_kernels._core.launch import chunk_width
from art_kernels._core.launch import DeviceSpec

MAX_CHANNELS = 1536


class Tiles(NamedTuple):
    """Of one launch.

    Attributes:
        block_m: query rows a program takes at once; at least 16, the least that a tensor core takes.
        block_n: regions a tile.
        block_c: channels a chunk; a power of two.
        num_warps: of a program.
        num_stages: tiles in flight.
        hold: the channels of a tile are kept in registers, and not read again from the caches.
        parts: programs that share the channels of a result, where one has too few registers for them.
        registers: of a thread at most; None leaves it to the assembler, which may spill a few to have room for one more
            program on a processor.
    """

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int
    hold: bool
    parts: int
    registers: int | None

    def chunks(self, channels: int) -> int:
        """Chunks of so many channels: the same number for every part."""
        return -(-channels // (self.block_c * self.parts)) * self.parts

    def of_a_program(self) -> tuple[int, int, int | None]:
        """Warps, stages and registers, as a launch takes them."""
        return self.num_warps, self.num_stages, self.registers


class Line(NamedTuple):
    """A line of the table: up to how many channels it holds, then fields of `Tiles`; `widest` bounds the chunk.

    The bound on registers is for float32, and for calls with a normalisation, a position or many rows.
    """

    channels: int
    block_n: int
    widest: int
    num_warps: int
    num_stages: int
    hold: bool
    parts: int
    registers: int | None = None


#: By kernel, vendor and bytes of a number; the first line with enough channels is taken. More than the bare forward
#: pass is a position, and in float32 a normalisation; backward goes by whether one block holds all rows.
TABLE: dict[tuple[str, str, int], list[Line]] = {
    ("forward", "nvidia", 2): [
        Line(128, 32, 128, 4, 2, True, 1, 255),
        Line(256, 32, 128, 4, 2, True, 1, 255),
        Line(512, 16, 128, 4, 2, True, 1, 255),
        Line(1024, 16, 128, 8, 1, True, 1, 255),
        Line(1408, 16, 128, 8, 1, False, 1, 255),
        Line(1536, 16, 128, 8, 1, False, 2, 255),
    ],
    ("forward with more", "nvidia", 2): [
        Line(128, 32, 128, 4, 2, True, 1, 255),
        Line(256, 32, 128, 4, 2, True, 1, 255),
        Line(512, 16, 128, 4, 2, True, 1, 255),
        Line(1536, 16, 128, 8, 1, False, 1, 255),
    ],
    ("backward", "nvidia", 2): [
        Line(128, 32, 64, 4, 1, True, 1, 255),
        Line(256, 16, 64, 4, 1, False, 1, 255),
        Line(512, 16, 64, 8, 1, False, 1, 255),
        Line(768, 16, 128, 8, 1, False, 1, 255),
        Line(1023, 16, 64, 8, 1, False, 1, 255),
        Line(1024, 16, 128, 8, 1, False, 1, 255),
        Line(1536, 16, 128, 8, 1, False, 2, 255),
    ],
    ("backward of many rows", "nvidia", 2): [
        Line(128, 16, 64, 4, 1, False, 1, 255),
        Line(256, 16, 128, 8, 1, False, 1, 255),
        Line(768, 16, 64, 8, 1, False, 1, 255),
        Line(1536, 16, 64, 8, 1, False, 2, 255),
    ],
    ("forward", "nvidia", 4): [
        Line(512, 16, 128, 4, 2, True, 1, 255),
        Line(1024, 16, 128, 8, 1, False, 2, 255),
        Line(1536, 16, 128, 8, 1, False, 4, 255),
    ],
    ("forward with more", "nvidia", 4): [
        Line(128, 16, 128, 4, 2, True, 1, 255),
        Line(512, 16, 128, 8, 1, False, 2, 255),
        Line(1024, 16, 128, 8, 1, False, 2, 255),
        Line(1536, 16, 128, 8, 1, False, 4, 255),
    ],
    ("backward", "nvidia", 4): [
        Line(96, 16, 32, 8, 1, False, 1, 255),
        Line(256, 16, 32, 8, 1, False, 2, 255),
        Line(512, 16, 32, 8, 1, False, 4, 255),
        Line(1024, 16, 32, 8, 1, False, 8, 255),
        Line(1536, 16, 32, 8, 1, False, 24, 255),
    ],
    ("backward of many rows", "nvidia", 4): [
        Line(64, 16, 32, 8, 1, False, 1, 255),
        Line(256, 16, 32, 8, 1, False, 4, 255),
        Line(512, 16, 32, 8, 1, False, 8, 255),
        Line(1024, 16, 32, 8, 1, False, 16, 255),
        Line(1536, 16, 32, 8, 1, False, 24, 255),
    ],
    ("forward", "amd", 2): [
        Line(256, 32, 128, 4, 1, True, 1),
        Line(512, 16, 128, 4, 1, True, 1),
        Line(1536, 16, 128, 8, 1, False, 1),
    ],
    ("backward", "amd", 2): [
        Line(128, 32, 64, 4, 1, True, 1),
        Line(256, 16, 64, 4, 1, False, 1),
        Line(512, 16, 64, 8, 1, False, 1),
        Line(1024, 16, 64, 8, 1, False, 2),
        Line(1536, 16, 64, 8, 1, False, 4),
    ],
    ("backward of many rows", "amd", 2): [
        Line(128, 32, 64, 4, 1, False, 1),
        Line(256, 16, 64, 4, 1, False, 1),
        Line(512, 16, 64, 8, 1, False, 2),
        Line(1024, 16, 64, 8, 1, False, 4),
        Line(1536, 16, 64, 8, 1, False, 8),
    ],
    ("forward", "amd", 4): [
        Line(512, 16, 128, 4, 1, True, 1),
        Line(1536, 16, 128, 8, 1, False, 1),
    ],
}
#: Not for speed: each way of going through the channels at a size that is quick to interpret, and scores taken from the
#: same tiles in both directions.
_INTERPRETED = [Line(64, 32, 32, 1, 1, True, 1), Line(128, 32, 32, 1, 1, False, 2), Line(1536, 32, 128, 1, 1, False, 1)]
for _kernel in ("forward", "forward with more", "backward", "backward of many rows"):
    for _bytes in (2, 4):
        TABLE[_kernel, "interpreter", _bytes] = _INTERPRETED
for _kernel in ("backward", "backward of many rows"):
    TABLE[_kernel, "amd", 4] = [line._replace(registers=None) for line in TABLE[_kernel, "nvidia", 4]]
TABLE["forward with more", "amd", 2] = TABLE["forward", "amd", 2]
TABLE["forward with more", "amd", 4] = TABLE["forward", "amd", 4]


def forward_tiles(
    dtype: torch.dtype, rows: int, channels: int, device: DeviceSpec, *, position: bool, normalize: bool
) -> Tiles:
    """The tiles of the forward kernel."""
    block_m = 32 if rows > 16 and channels <= 128 and dtype.itemsize == 2 else 16
    more = position or (normalize and dtype.itemsize == 4)
    plain = rows <= 16 and not (position or normalize)
    return _tiles("forward with more" if more else "forward", dtype, channels, device, block_m, plain)


def backward_tiles(
    dtype: torch.dtype, rows: int, channels: int, device: DeviceSpec, *, position: bool, normalize: bool
) -> tuple[Tiles, bool]:
    """The tiles of the backward kernels, and whether one block holds all rows.

    Then the gradient of the rows stays in registers: with many channels not beside a position or statistics.
    """
    most = 128 if position else 256 if normalize else MAX_CHANNELS
    one_block = rows <= 16 and channels <= most
    plain = one_block and not (position or normalize)
    return _tiles("backward" if one_block else "backward of many rows", dtype, channels, device, 16, plain), one_block


@functools.cache
def candidates(tiles: Tiles) -> tuple[Tiles, ...]:
    """Other sizes that may be faster on one device, for tuning; some may not compile there, or spill."""
    return tuple(
        tiles._replace(block_n=block_n, num_warps=num_warps, num_stages=num_stages, hold=hold)
        for block_n in (16, 32, 64)
        for num_warps in (4, 8)
        for num_stages in (1, 2, 3)
        for hold in sorted({tiles.hold, False})
    )


def _tiles(kernel: str, dtype: torch.dtype, channels: int, device: DeviceSpec, block_m: int, plain: bool) -> Tiles:
    line = next(line for line in TABLE[kernel, device.vendor, dtype.itemsize] if channels <= line.channels)
    a_tile = line.block_n * channels * dtype.itemsize
    num_stages = max(1, min(line.num_stages, device.shared_memory // (2 * a_tile)))
    block_c = chunk_width(channels, line.widest)
    registers = None if plain and dtype.itemsize == 2 else line.registers
    return Tiles(block_m, line.block_n, block_c, line.num_warps, num_stages, line.hold, line.parts, registers)
