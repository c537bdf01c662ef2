"""The backward pass. The gradient of a logit is Σ over the two sides of g p + h y / count, see `passes.Gradients`."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, load_rows, rows_at, store_chunk, zeros
from art_kernels.tracklet_nce.kernels.logits import SIZES, pairs_at, products, rows_of_pairs


@triton.jit
def _side(p_side, o, m, SIZE):
    """Of some rows, or columns: what stands in side[3, SIZE]."""
    b_lse = tl.load(p_side + o, mask=m, other=0.0)
    b_grad_lse = tl.load(p_side + SIZE + o, mask=m, other=0.0)
    b_grad_positive = tl.load(p_side + 2 * SIZE + o, mask=m, other=0.0)
    return b_lse, b_grad_lse, b_grad_positive


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    p_rows,
    p_columns,
    p_row_ids,
    p_column_ids,
    p_excluded,
    p_temperature,
    p_row_side,
    p_column_side,
    p_grad_rows,
    p_grad_temperature,
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
    PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
    RULE: tl.constexpr,
    EXCLUDED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    GRAD_ROWS: tl.constexpr,
    GRAD_TEMPERATURE: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some rows over the columns of one split; of the gradient of the rows, the chunks of one part.

    Writes their share of that gradient to grad_rows[s,M,C], and Σ_j G_ij l_ij of each, where G_ij is the gradient of a
    logit, to grad_temperature[s,M]. A side of G, row_side[3,M] or column_side[3,N], is the log-sum-exp, its gradient,
    and h / count; OF_ROWS and OF_COLUMNS say which there are.
    """
    OWN: tl.constexpr = CHUNKS // PARTS if GRAD_ROWS else 0
    part = tl.program_id(0) % PARTS
    first = part * OWN
    split = (tl.program_id(0) // PARTS) % splits
    o_m = tl.program_id(0) // (PARTS * splits) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    rows = rows_at(p_rows, o_m, m_m, stride_row, ALIGN)
    b_rows = ()
    if HOLD:
        b_rows = load_rows(rows, C, BLOCK_C, CHUNKS)
    b_row_ids, b_excluded = rows_of_pairs(p_row_ids, p_excluded, o_m, m_m, EXCLUDED, TRANSPOSED)
    if OF_ROWS:
        b_row_lse, b_row_grad, b_row_positive = _side(p_row_side, o_m, m_m, M)
    to_logit = 1.0 / tl.load(p_temperature)

    b_grad_rows = zeros(OWN, BLOCK_M, BLOCK_C)
    b_grad_temperature = tl.zeros([BLOCK_M], tl.float32)
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
        b_logits = b_products * to_logit
        b_grad = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        b_grad_positive = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if OF_ROWS:
            b_grad += tl.exp(b_logits - b_row_lse[:, None]) * b_row_grad[:, None]
            b_grad_positive += b_row_positive[:, None]
        if OF_COLUMNS:
            b_lse, b_lse_grad, b_positive = _side(p_column_side, o_n, m_n, N)
            b_grad += tl.exp(b_logits - b_lse[None, :]) * b_lse_grad[None, :]
            b_grad_positive += b_positive[None, :]
        m_pair, m_positive = pairs_at(
            b_row_ids, b_excluded, p_column_ids, p_excluded, o_m, o_n, m_n, RULE, EXCLUDED, TRANSPOSED
        )
        b_grad += tl.where(m_positive, b_grad_positive, 0.0)
        b_grad = tl.where(m_pair, b_grad, 0.0)  # not inf, as may be where a log-sum-exp leaves the pair out
        if GRAD_TEMPERATURE:
            b_grad_temperature += tl.sum(b_grad * b_products, 1)
        b_grad = b_grad.to(p_columns.dtype.element_ty)
        b_next = ()
        for i in tl.static_range(OWN):
            if HOLD and PARTS == 1:
                b_column = b_columns[i]
            else:
                b_column = load_chunk(columns, first + i, C, BLOCK_C, CHUNKS)
            b_next = b_next + (tl.dot(b_grad, b_column, b_grad_rows[i], input_precision=PRECISION),)
        b_grad_rows = b_next

    row = split.to(tl.int64) * M + o_m
    if GRAD_ROWS:
        grad_rows = rows_at(p_grad_rows, row, m_m, C, 1)
        for i in tl.static_range(OWN):
            store_chunk(grad_rows, first + i, b_grad_rows[i] * to_logit, C, BLOCK_C, CHUNKS)
    if GRAD_TEMPERATURE:
        tl.store(p_grad_temperature + row, b_grad_temperature * to_logit, mask=m_m & (part == 0))
