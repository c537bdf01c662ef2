"""Tile sizes of the pooling kernels: the one table, by kernel, vendor and bytes of a number.

What bounds a tile is what a program keeps: scores, weights and factors of [BLOCK_T, BLOCK_J] in float32, and a chunk of
responses and semantics, [BLOCK_T + BLOCK_J, BLOCK_C], backward with a gradient of either in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from art_kernels._core.launch import DeviceSpec, num_sms

#: A program has all semantics of a video at once: more than these would leave no room for a tile of frames.
MAX_SEMANTICS = 64


class Tiles(NamedTuple):
    """Of one launch.

    Attributes:
        block_t: frames a tile; at least 16, the least that a tensor core takes.
        block_j: all semantics, padded; likewise.
        block_c: channels a chunk; a power of two.
        num_warps: of a program.
        registers: of a thread at most; None leaves it to the assembler, which may spill a few to have room for one more
            program on a processor.
    """

    block_t: int
    block_j: int
    block_c: int
    num_warps: int
    registers: int | None

    def chunks(self, channels: int) -> int:
        """Chunks of so many channels."""
        return -(-channels // self.block_c)

    def of_a_program(self) -> tuple[int, int, int | None]:
        """Warps, stages and registers, as a launch takes them."""
        return self.num_warps, 1, self.registers


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        pairs: most of BLOCK_T · BLOCK_J.
        numbers: most of (BLOCK_T + BLOCK_J) · BLOCK_C, as far as BLOCK_C is above 16.
        four_warps: most of BLOCK_T · BLOCK_J for four warps; above it they are eight.
        registers: as in `Tiles`.
    """

    pairs: int
    numbers: int
    four_warps: int
    registers: int | None = None


TABLE: dict[tuple[str, str, int], Line] = {
    ("forward", "nvidia", 2): Line(2048, 8192, 1024, 255),
    ("backward", "nvidia", 2): Line(1024, 2560, 1024, 255),
    ("forward", "nvidia", 4): Line(2048, 4608, 1024, 255),
    ("backward", "nvidia", 4): Line(1024, 2048, 512, 255),
    ("forward", "amd", 2): Line(2048, 8192, 1024),
    ("backward", "amd", 2): Line(1024, 2560, 1024),
    ("forward", "amd", 4): Line(2048, 4608, 1024),
    ("backward", "amd", 4): Line(1024, 2048, 512),
}
#: Not for speed: several tiles and several chunks at sizes that are quick to interpret. A chunk is short because the
#: interpreter's products, NumPy's, sum up one after the other; chunks are summed apart.
for _kernel in ("forward", "backward"):
    for _bytes in (2, 4):
        TABLE[_kernel, "interpreter", _bytes] = Line(512, 1536, 512)


def tiles_for(kernel: str, dtype: torch.dtype, frames: int, semantics: int, channels: int, device: DeviceSpec) -> Tiles:
    """The tiles of the "forward" or the "backward" kernel."""
    line = TABLE[kernel, device.vendor, dtype.itemsize]
    block_j = max(16, triton.next_power_of_2(semantics))
    block_t = max(16, min(triton.next_power_of_2(frames), line.pairs // block_j))
    block_c = _block_c(channels, line.numbers // (block_t + block_j))
    return Tiles(block_t, block_j, block_c, 8 if block_t * block_j > line.four_warps else 4, line.registers)


def _block_c(channels: int, widest: int) -> int:
    """Channels a chunk: the most, up to `widest`, that leave a third of the channels' number unused, or no more than
    the smallest chunks do."""
    unused = {width: -channels % width for width in (256, 128, 64, 32, 16)}
    return next(
        width for width in unused if width <= max(widest, 16) and unused[width] <= max(channels // 3, unused[16])
    )


def tracklets_a_program(videos: int, count: int, device: torch.device) -> int:
    """Of one video, for the backward pass: one, unless there is work for about four programs on every processor.

    The more a program has, the fewer parts of the semantics' gradient are written and summed.
    """
    return max(1, min(count, videos * count // (4 * num_sms(device))))
