"""Tile sizes of the pooling kernels: the one table, by kernel, vendor and bytes of a number.

What bounds a tile is what a program keeps: scores, weights and factors of [BLOCK_T, BLOCK_J] in float32, and a chunk of
responses and semantics, [BLOCK_T + BLOCK_J, BLOCK_C], backward with a gradient of either in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from art_kernels.devices import Device, processors

#: A program has all semantics of a video at once: more than these would leave no room for a tile of frames.
MAX_SEMANTICS = 128


class Tiles(NamedTuple):
    """Of one launch.

    Attributes:
        block_t: frames a tile; at least 16, the least that a tensor core takes.
        block_j: all semantics, padded; likewise.
        block_c: channels a chunk; a power of two.
        num_warps: of a program.
    """

    block_t: int
    block_j: int
    block_c: int
    num_warps: int

    def chunks(self, channels: int) -> int:
        """Chunks of so many channels."""
        return -(-channels // self.block_c)


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        pairs: most of BLOCK_T · BLOCK_J.
        numbers: most of (BLOCK_T + BLOCK_J) · BLOCK_C, as far as BLOCK_C is above 32.
        pairs_a_warp: a program has four warps, or eight where its pairs are more than four times these.
    """

    pairs: int
    numbers: int
    pairs_a_warp: int


TABLE: dict[tuple[str, str, int], Line] = {
    ("forward", "nvidia", 2): Line(2048, 8192, 256),
    ("backward", "nvidia", 2): Line(2048, 4096, 256),
    ("forward", "nvidia", 4): Line(2048, 4096, 256),
    ("backward", "nvidia", 4): Line(2048, 2048, 256),
    ("forward", "amd", 2): Line(2048, 8192, 256),
    ("backward", "amd", 2): Line(2048, 4096, 256),
    ("forward", "amd", 4): Line(2048, 4096, 256),
    ("backward", "amd", 4): Line(2048, 2048, 256),
}
#: Not for speed: several tiles and several chunks at sizes that are quick to interpret.
for _kernel in ("forward", "backward"):
    for _bytes in (2, 4):
        TABLE[_kernel, "interpreter", _bytes] = Line(512, 4096, 512)


def tiles_for(kernel: str, dtype: torch.dtype, frames: int, semantics: int, channels: int, device: Device) -> Tiles:
    """The tiles of the "forward" or the "backward" kernel."""
    line = TABLE[kernel, device.vendor, dtype.itemsize]
    block_j = max(16, triton.next_power_of_2(semantics))
    block_t = min(max(16, triton.next_power_of_2(frames)), line.pairs // block_j)
    block_c = _block_c(channels, line.numbers // (block_t + block_j))
    return Tiles(block_t, block_j, block_c, 8 if block_t * block_j > 4 * line.pairs_a_warp else 4)


def _block_c(channels: int, widest: int) -> int:
    """Channels a chunk: the most, up to `widest`, that leave a third of the channels' number unused, or no more than
    the smallest chunks do."""
    unused = {width: -channels % width for width in (256, 128, 64, 32)}
    return next(
        width for width in unused if width <= max(widest, 32) and unused[width] <= max(channels // 3, unused[32])
    )


def tracklets_a_program(videos: int, count: int, device: torch.device) -> int:
    """Of one video, for the backward pass: one, unless there is work for about four programs on every processor.

    The more a program has, the fewer parts of the semantics' gradient are written and summed.
    """
    return max(1, min(count, videos * count // (4 * processors(device))))
