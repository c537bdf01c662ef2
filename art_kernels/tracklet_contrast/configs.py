"""Block sizes of the contrast kernels, by bytes per element and the number of tracklets."""

from __future__ import annotations

import torch

from art_kernels._core.launch import ConfigRow, DeviceSpec

#: All rows of a frame are compared in one block; with more of them, registers spill.
MAX_TRACKLETS = 32

#: Rows of `block_m` responses, whole frames of one video; the first row with at least K of them is used.
TABLE: dict[int, list[ConfigRow]] = {
    2: [
        ConfigRow(None, 16, 128, 4, maxnreg=255, block_m=16),
        ConfigRow(None, 32, 64, 4, maxnreg=255, block_m=32),
    ],
    4: [
        ConfigRow(None, 16, 64, 4, maxnreg=255, block_m=16),
        ConfigRow(None, 32, 32, 4, maxnreg=255, block_m=32),
    ],
}

#: Block sizes of the kernels without products: frames and channels of the mean, elements of the weighted sum, and
#: partial sums of the terms.
MEAN_FRAMES, MEAN_CHANNELS, WEIGH_ELEMENTS, TERMS_PROGRAMS = 16, 128, 1024, 1024


def find_config(dtype: torch.dtype, count: int, device: DeviceSpec) -> ConfigRow:
    """Return the row for `count` tracklets per frame; only NVIDIA's compiler supports a register limit."""
    row = next(row for row in TABLE[dtype.itemsize] if count <= row.block_m)
    return row if device.vendor == "nvidia" else row._replace(maxnreg=None)
