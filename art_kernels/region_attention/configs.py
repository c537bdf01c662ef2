"""Launch configurations of the region-attention kernels: one table by kernel, vendor, dtype size and channels.

The size of a tile is bounded by what a program keeps: in the forward pass the regions [BLOCK_N, C] and the output
[BLOCK_M, C] in float32; in the backward pass the regions, the queries and the gradients of both. The sizes avoid
spilling registers and fit the shared memory of every target (`python -m art_kernels compile` reports both).
"""

from __future__ import annotations

import functools

import torch

from art_kernels._core.launch import ConfigRow, DeviceSpec, LaunchConfig, chunk_width, find_row

MAX_CHANNELS = 1536

#: By kernel, vendor and bytes per element; see `find_row`. "forward_extra" is for a position, and in float32 also for a
#: LayerNorm; "backward" if one block holds all rows, else "backward_multi_block". Columns: max_channels, block_n,
#: max_block_c, num_warps, num_stages, keep_in_regs, channel_splits, maxnreg.
TABLE: dict[tuple[str, str, int], list[ConfigRow]] = {
    ("forward", "nvidia", 2): [
        ConfigRow(256, 32, 128, 4, 2, True, 1, 255),
        ConfigRow(512, 16, 128, 4, 2, True, 1, 255),
        ConfigRow(1024, 16, 128, 8, 1, True, 1, 255),
        ConfigRow(1408, 16, 128, 8, 1, False, 1, 255),
        ConfigRow(1536, 16, 128, 8, 1, False, 2, 255),
    ],
    ("forward_extra", "nvidia", 2): [
        ConfigRow(256, 32, 128, 4, 2, True, 1, 255),
        ConfigRow(512, 16, 128, 4, 2, True, 1, 255),
        ConfigRow(1536, 16, 128, 8, 1, False, 1, 255),
    ],
    ("backward", "nvidia", 2): [
        ConfigRow(128, 32, 64, 4, 1, True, 1, 255),
        ConfigRow(256, 16, 64, 4, 1, False, 1, 255),
        ConfigRow(512, 16, 64, 8, 1, False, 1, 255),
        ConfigRow(768, 16, 128, 8, 1, False, 1, 255),
        ConfigRow(1023, 16, 64, 8, 1, False, 1, 255),
        ConfigRow(1024, 16, 128, 8, 1, False, 1, 255),
        ConfigRow(1536, 16, 128, 8, 1, False, 2, 255),
    ],
    ("backward_multi_block", "nvidia", 2): [
        ConfigRow(128, 16, 64, 4, 1, False, 1, 255),
        ConfigRow(256, 16, 128, 8, 1, False, 1, 255),
        ConfigRow(768, 16, 64, 8, 1, False, 1, 255),
        ConfigRow(1536, 16, 64, 8, 1, False, 2, 255),
    ],
    ("forward", "nvidia", 4): [
        ConfigRow(512, 16, 128, 4, 2, True, 1, 255),
        ConfigRow(1024, 16, 128, 8, 1, False, 2, 255),
        ConfigRow(1536, 16, 128, 8, 1, False, 4, 255),
    ],
    ("forward_extra", "nvidia", 4): [
        ConfigRow(128, 16, 128, 4, 2, True, 1, 255),
        ConfigRow(1024, 16, 128, 8, 1, False, 2, 255),
        ConfigRow(1536, 16, 128, 8, 1, False, 4, 255),
    ],
    ("backward", "nvidia", 4): [
        ConfigRow(96, 16, 32, 8, 1, False, 1, 255),
        ConfigRow(256, 16, 32, 8, 1, False, 2, 255),
        ConfigRow(512, 16, 32, 8, 1, False, 4, 255),
        ConfigRow(1024, 16, 32, 8, 1, False, 8, 255),
        ConfigRow(1536, 16, 32, 8, 1, False, 24, 255),
    ],
    ("backward_multi_block", "nvidia", 4): [
        ConfigRow(64, 16, 32, 8, 1, False, 1, 255),
        ConfigRow(256, 16, 32, 8, 1, False, 4, 255),
        ConfigRow(512, 16, 32, 8, 1, False, 8, 255),
        ConfigRow(1024, 16, 32, 8, 1, False, 16, 255),
        ConfigRow(1536, 16, 32, 8, 1, False, 24, 255),
    ],
    ("forward", "amd", 2): [
        ConfigRow(256, 32, 128, 4, 1, True, 1),
        ConfigRow(512, 16, 128, 4, 1, True, 1),
        ConfigRow(1536, 16, 128, 8, 1, False, 1),
    ],
    ("backward", "amd", 2): [
        ConfigRow(128, 32, 64, 4, 1, True, 1),
        ConfigRow(256, 16, 64, 4, 1, False, 1),
        ConfigRow(512, 16, 64, 8, 1, False, 1),
        ConfigRow(1024, 16, 64, 8, 1, False, 2),
        ConfigRow(1536, 16, 64, 8, 1, False, 4),
    ],
    ("backward_multi_block", "amd", 2): [
        ConfigRow(128, 32, 64, 4, 1, False, 1),
        ConfigRow(256, 16, 64, 4, 1, False, 1),
        ConfigRow(512, 16, 64, 8, 1, False, 2),
        ConfigRow(1024, 16, 64, 8, 1, False, 4),
        ConfigRow(1536, 16, 64, 8, 1, False, 8),
    ],
    ("forward", "amd", 4): [
        ConfigRow(512, 16, 128, 4, 1, True, 1),
        ConfigRow(1536, 16, 128, 8, 1, False, 1),
    ],
}
#: Not tuned for speed: covers each way to loop over the channels at sizes that are quick to interpret, with scores
#: computed from the same tiles in both directions.
_INTERPRETED = [
    ConfigRow(64, 32, 32, 1, 1, True, 1),
    ConfigRow(128, 32, 32, 1, 1, False, 2),
    ConfigRow(1536, 32, 128, 1, 1, False, 1),
]
for _kernel in ("forward", "forward_extra", "backward", "backward_multi_block"):
    for _bytes in (2, 4):
        TABLE[_kernel, "interpreter", _bytes] = _INTERPRETED
for _kernel in ("backward", "backward_multi_block"):
    TABLE[_kernel, "amd", 4] = [row._replace(maxnreg=None) for row in TABLE[_kernel, "nvidia", 4]]
TABLE["forward_extra", "amd", 2] = TABLE["forward", "amd", 2]
TABLE["forward_extra", "amd", 4] = TABLE["forward", "amd", 4]


def forward_config(
    dtype: torch.dtype, rows: int, channels: int, device: DeviceSpec, *, position: bool, normalize: bool
) -> LaunchConfig:
    """Configuration of the forward kernel."""
    block_m = 32 if rows > 16 and channels <= 128 and dtype.itemsize == 2 else 16
    extra = position or (normalize and dtype.itemsize == 4)
    plain = rows <= 16 and not (position or normalize)
    return _config("forward_extra" if extra else "forward", dtype, channels, device, block_m, plain)


def backward_config(
    dtype: torch.dtype, rows: int, channels: int, device: DeviceSpec, *, position: bool, normalize: bool
) -> tuple[LaunchConfig, bool]:
    """Configuration of the backward kernels, and whether one block holds all rows.

    With one block, the gradient of the rows stays in registers, which limits the channels if a position or LayerNorm
    statistics also need registers.
    """
    max_channels = 128 if position else 256 if normalize else MAX_CHANNELS
    one_block = rows <= 16 and channels <= max_channels
    plain = one_block and not (position or normalize)
    return _config("backward" if one_block else "backward_multi_block", dtype, channels, device, 16, plain), one_block


@functools.cache
def candidates(config: LaunchConfig) -> tuple[LaunchConfig, ...]:
    """Other configurations for `art_kernels.autotune`; some may not compile on a device, or spill."""
    return tuple(
        config._replace(block_n=block_n, num_warps=num_warps, num_stages=num_stages, keep_in_regs=keep_in_regs)
        for block_n in (16, 32, 64)
        for num_warps in (4, 8)
        for num_stages in (1, 2, 3)
        for keep_in_regs in sorted({config.keep_in_regs, False})
    )


def _config(
    kernel: str, dtype: torch.dtype, channels: int, device: DeviceSpec, block_m: int, plain: bool
) -> LaunchConfig:
    row = find_row(TABLE[kernel, device.vendor, dtype.itemsize], channels, device)
    tile_bytes = row.block_n * channels * dtype.itemsize
    num_stages = max(1, min(row.num_stages, device.shared_memory // (2 * tile_bytes)))
    maxnreg = None if plain and dtype.itemsize == 2 else row.maxnreg
    return LaunchConfig(
        block_m, row.block_n, chunk_width(channels, row.max_block_c), row.num_warps, num_stages, row.keep_in_regs,
        row.channel_splits, maxnreg,
    )  # fmt: skip
