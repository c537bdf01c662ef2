"""Block sizes of the pooling kernels, by kernel and bytes per element.

A block is limited by what a program keeps in registers: scores, weights and factors of [BLOCK_T, BLOCK_J] in float32,
and a chunk of responses and semantics, [BLOCK_T + BLOCK_J, BLOCK_C], in the backward pass with a float32 gradient of
each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from art_kernels._core.launch import DeviceSpec, LaunchConfig, num_sms

#: A program loads all semantics of a video; with more of them, no registers are left for frames.
MAX_SEMANTICS = 64


class BlockLimits(NamedTuple):
    """Limits of a block.

    Attributes:
        scores: maximum BLOCK_T · BLOCK_J.
        values: maximum (BLOCK_T + BLOCK_J) · BLOCK_C for BLOCK_C above 16.
        scores_4_warps: maximum BLOCK_T · BLOCK_J for four warps; larger blocks use eight.
    """

    scores: int
    values: int
    scores_4_warps: int


TABLE: dict[tuple[str, int], BlockLimits] = {
    ("forward", 2): BlockLimits(2048, 8192, 1024),
    ("backward", 2): BlockLimits(1024, 2560, 1024),
    ("forward", 4): BlockLimits(2048, 4608, 1024),
    ("backward", 4): BlockLimits(1024, 2048, 512),
}
#: Not tuned for speed: several tiles and chunks at sizes that the interpreter handles quickly. Chunks are short because
#: the interpreter's products (NumPy's) sum sequentially, while chunks are summed separately.
INTERPRETER = BlockLimits(512, 1536, 512)


def find_config(
    kernel: str, dtype: torch.dtype, frames: int, semantics: int, channels: int, device: DeviceSpec
) -> LaunchConfig:
    """Return the blocks of the "forward" or "backward" kernel: `block_m` frames, `block_n` semantics (all, padded)."""
    limits = INTERPRETER if device.vendor == "interpreter" else TABLE[kernel, dtype.itemsize]
    block_j = max(16, triton.next_power_of_2(semantics))
    block_t = max(16, min(triton.next_power_of_2(frames), limits.scores // block_j))
    block_c = _block_c(channels, limits.values // (block_t + block_j))
    num_warps = 8 if block_t * block_j > limits.scores_4_warps else 4
    maxnreg = 255 if device.vendor == "nvidia" else None
    return LaunchConfig(block_t, block_j, block_c, num_warps, maxnreg=maxnreg)


def _block_c(channels: int, max_block_c: int) -> int:
    """Return the channels per chunk: the most that waste at most a third of `channels`, or no more than 16 would."""
    waste = {width: -channels % width for width in (256, 128, 64, 32, 16)}
    limit = max(channels // 3, waste[16])
    return next(width for width in waste if width <= max(max_block_c, 16) and waste[width] <= limit)


def tracklets_per_program(videos: int, count: int, device: torch.device) -> int:
    """Return the tracklets of one video per backward program: one, unless there are over four programs per processor.

    More tracklets per program mean fewer partial gradients of the semantics to write and sum.
    """
    return max(1, min(count, videos * count // (4 * num_sms(device))))
