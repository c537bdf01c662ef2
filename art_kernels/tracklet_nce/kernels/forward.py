"""The forward pass: online log-sum-exp and the mean of positive logits over tiles of columns, and over splits."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_rows, rows_at
from art_kernels.tracklet_nce.kernels.logits import SIZES, pairs_at, products, rows_of_pairs

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def store_statistics(p_statistics, o_m, m_m, M, b_lse, b_mean, b_count):
    """Write statistics[3, M]."""
    tl.store(p_statistics + o_m, b_lse, mask=m_m)
    tl.store(p_statistics + M + o_m, b_mean, mask=m_m)
    tl.store(p_statistics + 2 * M + o_m, b_count, mask=m_m)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_rows,
    p_columns,
    p_row_ids,
    p_column_ids,
    p_excluded,
    p_temperature,
    p_statistics,
    M,
    N,
    columns_a_split,
    splits,
    stride_row,
    stride_column,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr,
    RULE: tl.constexpr,
    EXCLUDED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some rows over the columns of one split; writes the statistics of the rows over that split alone, [s,3,M]."""
    split = tl.program_id(0) % splits
    o_m = tl.program_id(0) // splits * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    rows = rows_at(p_rows, o_m, m_m, stride_row, ALIGN)
    b_rows = ()
    if HOLD:
        b_rows = load_rows(rows, C, BLOCK_C, CHUNKS)
    b_row_ids, b_excluded = rows_of_pairs(p_row_ids, p_excluded, o_m, m_m, EXCLUDED, TRANSPOSED)
    temperature = tl.load(p_temperature)
    to_exponent = LOG2_E / temperature

    # The highest and the sum of positive products: they are divided by the temperature at last, once for each row.
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_positive = tl.zeros([BLOCK_M], tl.float32)
    b_count = tl.zeros([BLOCK_M], tl.float32)
    begin = split * columns_a_split
    end = tl.minimum(begin + columns_a_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        columns = rows_at(p_columns, o_n, m_n, stride_column, ALIGN)
        b_columns = ()
        if HOLD:
            b_columns = load_rows(columns, C, BLOCK_C, CHUNKS)
        b_products = products(rows, columns, b_rows, b_columns, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS, HOLD, PRECISION)
        m_pair, m_positive = pairs_at(
            b_row_ids, b_excluded, p_column_ids, p_excluded, o_m, o_n, m_n, RULE, EXCLUDED, TRANSPOSED
        )
        b_products = tl.where(m_pair, b_products, float("-inf"))
        # By the products, and not by m_pair, so that the compiler keeps both masks where the products are.
        m_positive = m_positive & (b_products != float("-inf"))
        b_positive += tl.sum(tl.where(m_positive, b_products, 0.0), 1)
        b_count += tl.sum(tl.where(m_positive, 1.0, 0.0), 1)
        b_highest = tl.maximum(b_max, tl.max(b_products, 1))
        b_shift = tl.where(b_highest == float("-inf"), 0.0, b_highest)  # no pair yet: 0 and not inf - inf
        b_sum = b_sum * tl.exp2((b_max - b_shift) * to_exponent)
        b_sum += tl.sum(tl.exp2((b_products - b_shift[:, None]) * to_exponent), 1)
        b_max = b_highest

    b_lse = tl.where(b_sum == 0, float("-inf"), b_max / temperature + tl.log(b_sum))
    b_mean = b_positive / tl.maximum(b_count, 1.0) / temperature
    store_statistics(p_statistics + 3 * M * split, o_m, m_m, M, b_lse, b_mean, b_count)


@triton.jit(do_not_specialize=["M", "splits"])
def combine_kernel(p_partial, p_statistics, M, splits, BLOCK_M: tl.constexpr):
    """The statistics [3, M] of some rows over all columns, from those over each split [s, 3, M]."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    p_partial += o_m
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for split in range(splits):
        b_max = tl.maximum(b_max, tl.load(p_partial + 3 * M * split, mask=m_m, other=0.0))
    b_shift = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_positive = tl.zeros([BLOCK_M], tl.float32)
    b_count = tl.zeros([BLOCK_M], tl.float32)
    for split in range(splits):
        p_split = p_partial + 3 * M * split
        b_sum += tl.exp(tl.load(p_split, mask=m_m, other=0.0) - b_shift)
        b_in_split = tl.load(p_split + 2 * M, mask=m_m, other=0.0)
        b_positive += tl.load(p_split + M, mask=m_m, other=0.0) * b_in_split
        b_count += b_in_split
    b_lse = tl.where(b_sum == 0, float("-inf"), b_max + tl.log(b_sum))
    store_statistics(p_statistics, o_m, m_m, M, b_lse, b_positive / tl.maximum(b_count, 1.0), b_count)
