"""Block sizes of the kernels, by kernel, vendor, bytes per element, channels and shared memory."""

from __future__ import annotations

import torch

from art_kernels._core.launch import ConfigRow, DeviceSpec, LaunchConfig, find_row

#: The first row that applies is used.
TABLE: dict[tuple[str, str, int], list[ConfigRow]] = {
    ("forward", "nvidia", 2): [
        ConfigRow(128, 64, 128, 4, 3, True, block_m=64),
        ConfigRow(256, 64, 256, 8, 2, True, block_m=128),
        ConfigRow(512, 64, 128, 8, 2, True, block_m=64, min_shared_kib=227),
        ConfigRow(None, 64, 64, 8, 3, block_m=128),
    ],
    ("backward", "nvidia", 2): [
        ConfigRow(64, 64, 64, 8, 2, True, block_m=128, min_shared_kib=227),
        ConfigRow(127, 64, 128, 8, 2, True, block_m=64, min_block_c=64, maxnreg=255),
        ConfigRow(128, 64, 128, 8, 2, True, block_m=128, min_shared_kib=227),
        ConfigRow(128, 64, 128, 8, 2, True, block_m=64),
        ConfigRow(256, 32, 256, 8, 2, True, block_m=128, min_block_c=256, min_shared_kib=227),
        ConfigRow(255, 32, 128, 8, 2, True, block_m=64, min_block_c=128),
        ConfigRow(256, 64, 256, 8, 2, True, block_m=64),
        ConfigRow(None, 64, 64, 8, 3, block_m=64, min_shared_kib=227, channels_per_program=256, maxnreg=255),
        ConfigRow(None, 32, 128, 8, 2, block_m=64, min_shared_kib=160, channels_per_program=256, maxnreg=255),
        ConfigRow(None, 32, 64, 8, 2, block_m=64, channels_per_program=128),
    ],
    ("forward", "nvidia", 4): [ConfigRow(None, 64, 32, 8, block_m=64, maxnreg=255)],
    ("backward", "nvidia", 4): [ConfigRow(None, 32, 32, 8, block_m=32, channels_per_program=96, maxnreg=255)],
    ("forward", "amd", 2): [
        ConfigRow(256, 64, 64, 8, 1, True, block_m=128),
        ConfigRow(None, 64, 64, 8, block_m=128),
    ],
    ("backward", "amd", 2): [
        ConfigRow(256, 64, 64, 4, 1, True, block_m=64),
        ConfigRow(None, 64, 64, 4, block_m=64, channels_per_program=256),
    ],
    ("forward", "amd", 4): [ConfigRow(None, 64, 32, 8, block_m=64)],
    ("backward", "amd", 4): [ConfigRow(None, 32, 32, 8, block_m=64, channels_per_program=128)],
}
#: Not tuned for speed: every way through the channels at a size that the interpreter handles quickly.
INTERPRETER = [
    ConfigRow(64, 32, 32, 1, 1, True, block_m=32),
    ConfigRow(None, 64, 64, 1, block_m=32, channels_per_program=128),
]


def find_config(kernel: str, dtype: torch.dtype, channels: int, device: DeviceSpec) -> LaunchConfig:
    """Return the block sizes of the "forward" or "backward" kernel."""
    rows = INTERPRETER if device.vendor == "interpreter" else TABLE[kernel, device.vendor, dtype.itemsize]
    row = find_row(rows, channels, device)
    return LaunchConfig(
        row.block_m,
        row.block_n,
        _block_c(channels, row.max_block_c, row.min_block_c),
        row.num_warps,
        row.num_stages,
        row.keep_in_regs,
        -(-channels // (row.channels_per_program or channels)),
        row.maxnreg,
    )


def _block_c(channels: int, max_block_c: int, min_block_c: int) -> int:
    """Return the channels per chunk: the most that waste at most an eighth of `channels`, or those that waste least."""
    waste = {width: -channels % width for width in (256, 128, 64, 32) if min_block_c <= width <= max_block_c}
    fitting = [width for width in waste if waste[width] <= channels // 8]
    return fitting[0] if fitting else min(waste, key=waste.__getitem__)
