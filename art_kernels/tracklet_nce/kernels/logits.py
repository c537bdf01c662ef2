"""The logits of a tile of pairs, and which of these take part and are positive: what both passes begin with."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk

#: What a compiled variant does not depend on: no recompilation where there are more anchors or candidates.
SIZES = ["M", "N", "columns_a_split", "splits", "stride_row", "stride_column"]


@triton.jit
def products(
    rows, columns, b_rows, b_columns, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, HOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """⟨row, column⟩ of all pairs, [BLOCK_M, BLOCK_N]: the logits, but for the temperature."""
    b_products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if HOLD:
        for i in tl.static_range(CHUNKS):
            b_products = tl.dot(b_rows[i], tl.trans(b_columns[i]), b_products, input_precision=PRECISION)
    else:
        for k in range(CHUNKS):
            b_row = load_chunk(rows, k, C, BLOCK_C, CHUNKS)
            b_column = load_chunk(columns, k, C, BLOCK_C, CHUNKS)
            b_products = tl.dot(b_row, tl.trans(b_column), b_products, input_precision=PRECISION)
    return b_products


@triton.jit
def rows_of_pairs(p_row_ids, p_excluded, o_m, m_m, EXCLUDED: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Of each row its id, and the column that is excluded with it, -1 for none."""
    b_ids = tl.load(p_row_ids + o_m, mask=m_m, other=0)
    b_excluded = tl.full(o_m.shape, -1, tl.int32)
    if EXCLUDED and not TRANSPOSED:
        b_excluded = tl.load(p_excluded + o_m, mask=m_m, other=-1).to(tl.int32)
    return b_ids, b_excluded


@triton.jit
def pairs_at(
    b_row_ids, b_excluded, p_column_ids, p_excluded, o_m, o_n, m_n, RULE: tl.constexpr, EXCLUDED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Which pairs of rows and columns take part, and which of these are positive, by the rule; both broadcast to [rows,
    columns], and a pair that takes no part may be positive."""
    b_column_ids = tl.load(p_column_ids + o_n, mask=m_n, other=0)
    m_pair = m_n[None, :]
    if TRANSPOSED:
        b_positive = RULE(b_column_ids[None, :], b_row_ids[:, None])
        if EXCLUDED:
            b_excluded = tl.load(p_excluded + o_n, mask=m_n, other=-1).to(tl.int32)
            m_pair = m_pair & (b_excluded[None, :] != o_m[:, None])
    else:
        b_positive = RULE(b_row_ids[:, None], b_column_ids[None, :])
        if EXCLUDED:
            m_pair = m_pair & (b_excluded[:, None] != o_n[None, :])
    return m_pair, b_positive
