"""Rows in memory and their chunks of channels, as every Triton kernel reads and writes them.

Names in kernels: `p_` a pointer, `o_` an offset, `m_` a mask, `b_` a value of the block. Strides of rows come in units
of ALIGN elements (`call.alignment`): that they are its multiples is what lets a load be 16 bytes wide, and one compiled
variant serves all sizes that ALIGN divides.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_at(p_rows, o_row, m_row, stride_row, ALIGN: tl.constexpr):
    """A view of some rows: (pointers to their first channels [rows, 1], mask [rows, 1])."""
    # More than 2^31 elements may lie before a row.
    return p_rows + (o_row.to(tl.int64) * stride_row * ALIGN)[:, None], m_row[:, None]


@triton.jit
def chunk_of(view, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Chunk k of a view as (pointers [rows, BLOCK_C], mask).

    The chunk moves the pointer and not the channel: so its offset becomes a constant in the instruction, and no chunk
    keeps a pointer of its own.
    """
    o_c = tl.arange(0, BLOCK_C)
    m_c = view[1]
    if C < CHUNKS * BLOCK_C:
        m_c = m_c & (o_c < C - k * BLOCK_C)[None, :]
    return view[0] + o_c[None, :] + k * BLOCK_C, m_c


@triton.jit
def load_chunk(view, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Chunk k of a view, [rows, BLOCK_C]; rows outside of the mask, and channels beyond C, are zero."""
    p_c, m_c = chunk_of(view, k, C, BLOCK_C, CHUNKS)
    return tl.load(p_c, mask=m_c, other=0.0)


@triton.jit
def store_chunk(view, k, b_chunk, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Write chunk k of a view."""
    p_c, m_c = chunk_of(view, k, C, BLOCK_C, CHUNKS)
    tl.store(p_c, b_chunk.to(view[0].dtype.element_ty), mask=m_c)


@triton.jit
def load_rows(view, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """All chunks of a view."""
    chunks = ()
    for i in tl.static_range(CHUNKS):
        chunks = chunks + (load_chunk(view, i, C, BLOCK_C, CHUNKS),)
    return chunks


@triton.jit
def zeros(BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Accumulators of so many chunks."""
    chunks = ()
    for i in tl.static_range(BLOCKS):
        chunks = chunks + (tl.zeros([ROWS, BLOCK_C], tl.float32),)
    return chunks
