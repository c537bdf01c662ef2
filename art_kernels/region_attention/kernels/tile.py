"""Tiles of regions: what all kernels of region attention read."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, load_rows, rows_at

#: What a compiled variant does not depend on: no recompilation where a batch, or a clip, has another length.
SIZES = [
    "M", "N", "regions_a_split", "splits", "stride_query_frame", "stride_query_row", "stride_region_frame",
    "stride_region", "stride_position", "stride_mask_frame", "stride_mask",
]  # fmt: skip


@triton.jit
def chunk(
    view, held, i, k, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Chunk i of a view that is held, or chunk k, read (again) from the caches because the registers are too few."""
    if HOLD:
        b_chunk = held[i]
    else:
        b_chunk = load_chunk(view, k, C, BLOCK_C, CHUNKS)
    return b_chunk


@triton.jit
def _centred(b_chunk, mean, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Chunk k without the mean of each row, in float32; channels beyond C stay zero."""
    centred = b_chunk.to(tl.float32) - mean[:, None]
    if C < CHUNKS * BLOCK_C:
        centred = tl.where((tl.arange(0, BLOCK_C) < C - k * BLOCK_C)[None, :], centred, 0.0)
    return centred


@triton.jit
def _squares(b_chunk, mean, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    centred = _centred(b_chunk, mean, k, C, BLOCK_C, CHUNKS)
    return tl.sum(centred * centred, 1)


@triton.jit
def _statistics(
    view, held, eps, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Mean and 1 / deviation of each row. Two passes over the tile: no cancellation."""
    mean = tl.sum(chunk(view, held, 0, 0, HOLD, C, BLOCK_C, CHUNKS).to(tl.float32), 1)
    variance = tl.zeros_like(mean)
    if HOLD:
        for i in tl.static_range(1, CHUNKS):
            mean += tl.sum(held[i].to(tl.float32), 1)
        mean = mean / C
        for i in tl.static_range(CHUNKS):
            variance += _squares(held[i], mean, i, C, BLOCK_C, CHUNKS)
    else:
        for k in range(1, CHUNKS):
            mean += tl.sum(load_chunk(view, k, C, BLOCK_C, CHUNKS).to(tl.float32), 1)
        mean = mean / C
        for k in range(CHUNKS):
            variance += _squares(load_chunk(view, k, C, BLOCK_C, CHUNKS), mean, k, C, BLOCK_C, CHUNKS)
    return mean, 1.0 / tl.sqrt(variance / C + eps)


@triton.jit
def _normalized(b_chunk, mean, rstd, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Chunk k of normalised rows, in its own dtype."""
    return (_centred(b_chunk, mean, k, C, BLOCK_C, CHUNKS) * rstd[:, None]).to(b_chunk.dtype)


@triton.jit
def tile_at(
    p_regions, p_position, p_mask, start, end, stride_region, stride_position, stride_mask, eps,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, ALIGN: tl.constexpr,
    POSITION: tl.constexpr, MASK: tl.constexpr, NORMALIZE: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """The tile of regions that begins at `start`.

    Returns the numbers of its regions; which may be attended; views of the regions and of their positions; the chunks
    that are held, normalised where that is asked for (none without HOLD); mean and 1 / deviation of each region.
    """
    o_n = start + tl.arange(0, BLOCK_N)
    m_n = o_n < end
    if MASK:
        m_n = tl.load(p_mask + o_n.to(tl.int64) * stride_mask, mask=m_n, other=0) != 0
    regions = rows_at(p_regions, o_n, m_n, stride_region, ALIGN)
    positions = regions
    if POSITION:
        positions = rows_at(p_position, o_n, m_n, stride_position, ALIGN)
    held, mean, rstd = (), 0.0, 0.0
    if HOLD:
        held = load_rows(regions, C, BLOCK_C, CHUNKS)
    if NORMALIZE:
        mean, rstd = _statistics(regions, held, eps, HOLD, C, BLOCK_C, CHUNKS)
        if HOLD:
            chunks = ()
            for i in tl.static_range(CHUNKS):
                chunks = chunks + (_normalized(held[i], mean, rstd, i, C, BLOCK_C, CHUNKS),)
            held = chunks
    return o_n, m_n, regions, positions, held, mean, rstd


@triton.jit
def value(
    view, held, mean, rstd, i, k, NORMALIZE: tl.constexpr, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Chunk k of a tile; where it is held, chunk i."""
    b_chunk = chunk(view, held, i, k, HOLD, C, BLOCK_C, CHUNKS)
    if NORMALIZE and not HOLD:
        b_chunk = _normalized(b_chunk, mean, rstd, k, C, BLOCK_C, CHUNKS)
    return b_chunk


@triton.jit
def key(b_value, positions, k, POSITION: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Chunk k of the keys: the values, and their positions where there are any."""
    if POSITION:
        b_value += load_chunk(positions, k, C, BLOCK_C, CHUNKS)
    return b_value
