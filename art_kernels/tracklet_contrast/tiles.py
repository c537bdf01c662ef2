"""The block sizes of the contrast kernels: one table, by the rows that a block has to have."""

from __future__ import annotations

from typing import NamedTuple

import torch

from art_kernels._core.launch import DeviceSpec

#: A frame is one block, whose rows are all compared with each other; more spill.
MAX_TRACKLETS = 32


class Tiles(NamedTuple):
    """Of one launch.

    Attributes:
        block_r: rows a program takes at once, whole frames; at least 16, the least that a tensor core takes.
        widest: channels a chunk at most.
        num_warps: of a program.
        registers: of a thread at most; None leaves it to the assembler, which may spill a few to have room for one more
            program on a processor.
    """

    block_r: int
    widest: int
    num_warps: int
    registers: int | None = 255

    def frames(self, count: int) -> int:
        """Frames of so many tracklets in a block."""
        return self.block_r // count

    def of_a_program(self) -> tuple[int, int, int | None]:
        """Warps, stages and registers, as a launch takes them."""
        return self.num_warps, 1, self.registers


#: By bytes of a number; the first line with enough rows is taken.
TABLE: dict[int, list[Tiles]] = {
    2: [Tiles(16, 128, 4), Tiles(32, 64, 4)],
    4: [Tiles(16, 64, 4), Tiles(32, 32, 4)],
}
#: Of the kernels without products: frames and channels a program takes at once, numbers, and programs whose sums are
#: added at once.
MEAN_FRAMES, MEAN_WIDEST, WEIGH_NUMBERS, TERMS_PROGRAMS = 16, 128, 1024, 1024


def tiles_for(dtype: torch.dtype, count: int, device: DeviceSpec) -> Tiles:
    """The sizes for so many tracklets a frame; only NVIDIA's compiler takes a bound on registers."""
    tiles = next(tiles for tiles in TABLE[dtype.itemsize] if count <= tiles.block_r)
    return tiles if device.vendor == "nvidia" else tiles._replace(registers=None)
