"""Block sizes, warps and stages of the kernels: the one table, by kernel, vendor, dtype, channels and shared memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

from art_kernels._core.launch import DeviceSpec


class Tiles(NamedTuple):
    """Of one launch.

    Attributes:
        block_m: rows of a program.
        block_n: columns a tile.
        block_c: channels a chunk; a power of two.
        num_warps: of a program.
        num_stages: tiles in flight.
        hold: the rows stay with the program, and a tile of columns is loaded once for both of its products.
        parts: programs that share the channels of a gradient.
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
    """A line of the table: up to how many channels it holds, on a device with how many KiB of shared memory, then
    fields of `Tiles`; `widest` and `narrowest` bound the chunk, and `share` the channels of a gradient that one program
    sums."""

    channels: int | None
    memory: int
    block_m: int
    block_n: int
    widest: int
    num_warps: int
    num_stages: int
    hold: bool
    narrowest: int = 32
    share: int = 1 << 30
    registers: int | None = None


#: By kernel, vendor and bytes of a number; the first line that holds is taken.
TABLE: dict[tuple[str, str, int], list[Line]] = {
    ("forward", "nvidia", 2): [
        Line(128, 0, 64, 64, 128, 4, 3, True),
        Line(256, 0, 128, 64, 256, 8, 2, True),
        Line(512, 227, 64, 64, 128, 8, 2, True),
        Line(None, 0, 128, 64, 64, 8, 3, False),
    ],
    ("backward", "nvidia", 2): [
        Line(64, 227, 128, 64, 64, 8, 2, True),
        Line(127, 0, 64, 64, 128, 8, 2, True, narrowest=64, registers=255),
        Line(128, 227, 128, 64, 128, 8, 2, True),
        Line(128, 0, 64, 64, 128, 8, 2, True),
        Line(256, 227, 128, 32, 256, 8, 2, True, narrowest=256),
        Line(255, 0, 64, 32, 128, 8, 2, True, narrowest=128),
        Line(256, 0, 64, 64, 256, 8, 2, True),
        Line(None, 227, 64, 64, 64, 8, 3, False, share=256, registers=255),
        Line(None, 160, 64, 32, 128, 8, 2, False, share=256, registers=255),
        Line(None, 0, 64, 32, 64, 8, 2, False, share=128),
    ],
    ("forward", "nvidia", 4): [Line(None, 0, 64, 64, 32, 8, 1, False, registers=255)],
    ("backward", "nvidia", 4): [Line(None, 0, 32, 32, 32, 8, 1, False, share=96, registers=255)],
    ("forward", "amd", 2): [
        Line(256, 0, 128, 64, 64, 8, 1, True),
        Line(None, 0, 128, 64, 64, 8, 1, False),
    ],
    ("backward", "amd", 2): [
        Line(256, 0, 64, 64, 64, 4, 1, True),
        Line(None, 0, 64, 64, 64, 4, 1, False, share=256),
    ],
    ("forward", "amd", 4): [Line(None, 0, 64, 64, 32, 8, 1, False)],
    ("backward", "amd", 4): [Line(None, 0, 64, 32, 32, 8, 1, False, share=128)],
}
#: Not for speed: each way of going through the channels at a size that is quick to interpret.
for _kernel in ("forward", "backward"):
    for _bytes in (2, 4):
        TABLE[_kernel, "interpreter", _bytes] = [
            Line(64, 0, 32, 32, 32, 1, 1, True),
            Line(None, 0, 32, 64, 64, 1, 1, False, share=128),
        ]


def forward_tiles(dtype: torch.dtype, channels: int, device: DeviceSpec) -> Tiles:
    """The tiles of the forward kernel."""
    return _tiles("forward", dtype, channels, device)


def backward_tiles(dtype: torch.dtype, channels: int, device: DeviceSpec) -> Tiles:
    """The tiles of the backward kernel."""
    return _tiles("backward", dtype, channels, device)


def _tiles(kernel: str, dtype: torch.dtype, channels: int, device: DeviceSpec) -> Tiles:
    line = next(
        line
        for line in TABLE[kernel, device.vendor, dtype.itemsize]
        if (line.channels is None or channels <= line.channels) and line.memory * 1024 <= device.shared_memory
    )
    block_c = _block_c(channels, line.widest, line.narrowest)
    parts = max(1, -(-channels // line.share))
    return Tiles(
        line.block_m, line.block_n, block_c, line.num_warps, line.num_stages, line.hold, parts, line.registers
    )  # fmt: skip


def _block_c(channels: int, widest: int, narrowest: int) -> int:
    """Channels a chunk: the most that leave at most an eighth of the channels' number unused; or else those that leave
    least."""
    unused = {width: -channels % width for width in (256, 128, 64, 32) if narrowest <= width <= widest}
    fitting = [width for width in unused if unused[width] <= channels // 8]
    return fitting[0] if fitting else min(unused, key=unused.__getitem__)
