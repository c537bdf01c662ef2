"""Loads and stores of rows and their chunks of channels, shared by all Triton kernels.

Names in kernels: `p_` pointer, `o_` offset, `m_` mask, `b_` block value. Row strides are passed in units of ALIGN
elements (:func:`art_kernels._core.launch.alignment`), so the compiler can prove that 16-byte loads are aligned, and one
compiled variant covers all sizes that ALIGN divides.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

#: Below this squared norm, the smallest normal number, a vector counts as zero, because its direction is lost.
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def rows_at(p_rows, o_row, m_row, stride_row, ALIGN: tl.constexpr):
    """Return a view of rows: (pointers to their first channels [rows, 1], mask [rows, 1])."""
    # The offset of a row may exceed 2^31 elements.
    return p_rows + (o_row.to(tl.int64) * stride_row * ALIGN)[:, None], m_row[:, None]


@triton.jit
def chunk_of(view, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Return chunk k of a view: (pointers [rows, BLOCK_C], mask).

    The chunk offset is added to the pointer, not to the channel index, so that it becomes an immediate operand and the
    chunks share one pointer.
    """
    o_c = tl.arange(0, BLOCK_C)
    m_c = view[1]
    if C < CHUNKS * BLOCK_C:
        m_c = m_c & (o_c < C - k * BLOCK_C)[None, :]
    return view[0] + o_c[None, :] + k * BLOCK_C, m_c


@triton.jit
def load_chunk(view, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Load chunk k of a view [rows, BLOCK_C]; masked rows and channels beyond C are zero."""
    p_c, m_c = chunk_of(view, k, C, BLOCK_C, CHUNKS)
    return tl.load(p_c, mask=m_c, other=0.0)


@triton.jit
def store_chunk(view, k, b_chunk, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Store chunk k of a view."""
    p_c, m_c = chunk_of(view, k, C, BLOCK_C, CHUNKS)
    tl.store(p_c, b_chunk.to(view[0].dtype.element_ty), mask=m_c)


@triton.jit
def load_rows(view, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Load all chunks of a view as a tuple."""
    chunks = ()
    for i in tl.static_range(CHUNKS):
        chunks = chunks + (load_chunk(view, i, C, BLOCK_C, CHUNKS),)
    return chunks


@triton.jit
def zeros(BLOCKS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a tuple of BLOCKS zero accumulators [ROWS, BLOCK_C]."""
    chunks = ()
    for i in tl.static_range(BLOCKS):
        chunks = chunks + (tl.zeros([ROWS, BLOCK_C], tl.float32),)
    return chunks
