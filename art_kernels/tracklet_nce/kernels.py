"""Triton kernels of the contrast across a batch: both passes compute the logits tile by tile and never store them.

Sizes: M rows, N columns, C channels. A program computes the statistics, or the gradients, of a block of rows in a loop
over tiles of [BLOCK_N, C] columns. The rows are the anchors, or the candidates if TRANSPOSED.

C is split into CHUNKS of BLOCK_C channels. With KEEP_IN_REGS, the rows stay in registers, and a tile of columns is
loaded once for both of its products. Without it, if registers or shared memory are scarce, chunks are reread from
cache. If registers are too few for the gradients of all channels, they are divided among CHANNEL_SPLITS programs: each
computes the logits over all channels and accumulates its own. The columns are divided among `splits` programs.

Naming and strides: see :mod:`art_kernels._core.rows`.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, load_rows, rows_at, store_chunk, zeros

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
#: Arguments without value specialization, so that other numbers of anchors and candidates do not recompile.
SIZES = ["M", "N", "columns_per_split", "splits", "stride_row", "stride_column"]


@triton.jit
def products(
    rows, columns, b_rows, b_columns, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, KEEP_IN_REGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ⟨row, column⟩ of all pairs [BLOCK_M, BLOCK_N], the logits times the temperature."""
    b_products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if KEEP_IN_REGS:
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
    """Return the id of each row, and the column excluded for it, or -1."""
    b_ids = tl.load(p_row_ids + o_m, mask=m_m, other=0)
    b_excluded = tl.full(o_m.shape, -1, tl.int32)
    if EXCLUDED and not TRANSPOSED:
        b_excluded = tl.load(p_excluded + o_m, mask=m_m, other=-1).to(tl.int32)
    return b_ids, b_excluded


@triton.jit
def pairs_at(
    b_row_ids, b_excluded, p_column_ids, p_excluded, o_m, o_n, m_n, EXCLUDED: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Return which pairs of rows and columns are included, and which have equal ids; both broadcast to [rows, columns],
    and an excluded pair may have equal ids."""
    b_column_ids = tl.load(p_column_ids + o_n, mask=m_n, other=0)
    m_pair = m_n[None, :]
    if EXCLUDED:
        if TRANSPOSED:
            b_excluded = tl.load(p_excluded + o_n, mask=m_n, other=-1).to(tl.int32)
            m_pair = m_pair & (b_excluded[None, :] != o_m[:, None])
        else:
            m_pair = m_pair & (b_excluded[:, None] != o_n[None, :])
    return m_pair, b_row_ids[:, None] == b_column_ids[None, :]


@triton.jit
def store_statistics(p_statistics, o_m, m_m, M, b_lse, b_mean, b_count):
    """Store statistics[3, M]."""
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
    columns_per_split,
    splits,
    stride_row,
    stride_column,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr,
    EXCLUDED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    KEEP_IN_REGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the statistics of a block of rows over the columns of one split, [s,3,M]."""
    split = tl.program_id(0) % splits
    o_m = tl.program_id(0) // splits * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    rows = rows_at(p_rows, o_m, m_m, stride_row, ALIGN)
    b_rows = ()
    if KEEP_IN_REGS:
        b_rows = load_rows(rows, C, BLOCK_C, CHUNKS)
    b_row_ids, b_excluded = rows_of_pairs(p_row_ids, p_excluded, o_m, m_m, EXCLUDED, TRANSPOSED)
    temperature = tl.load(p_temperature)
    to_exponent = LOG2_E / temperature

    # The maximum and the sum of positive products are divided by the temperature at the end, once per row.
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_positive = tl.zeros([BLOCK_M], tl.float32)
    b_count = tl.zeros([BLOCK_M], tl.float32)
    begin = split * columns_per_split
    end = tl.minimum(begin + columns_per_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        columns = rows_at(p_columns, o_n, m_n, stride_column, ALIGN)
        b_columns = ()
        if KEEP_IN_REGS:
            b_columns = load_rows(columns, C, BLOCK_C, CHUNKS)
        b_products = products(
            rows, columns, b_rows, b_columns, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS, KEEP_IN_REGS, PRECISION
        )
        m_pair, m_positive = pairs_at(
            b_row_ids, b_excluded, p_column_ids, p_excluded, o_m, o_n, m_n, EXCLUDED, TRANSPOSED
        )
        b_products = tl.where(m_pair, b_products, float("-inf"))
        # From the products, not m_pair, so that the compiler keeps both masks in the layout of the products.
        m_positive = m_positive & (b_products != float("-inf"))
        b_positive += tl.sum(tl.where(m_positive, b_products, 0.0), 1)
        b_count += tl.sum(tl.where(m_positive, 1.0, 0.0), 1)
        b_highest = tl.maximum(b_max, tl.max(b_products, 1))
        b_shift = tl.where(b_highest == float("-inf"), 0.0, b_highest)  # no pair yet: 0, not inf - inf
        b_sum = b_sum * tl.exp2((b_max - b_shift) * to_exponent)
        b_sum += tl.sum(tl.exp2((b_products - b_shift[:, None]) * to_exponent), 1)
        b_max = b_highest

    b_lse = tl.where(b_sum == 0, float("-inf"), b_max / temperature + tl.log(b_sum))
    b_mean = b_positive / tl.maximum(b_count, 1.0) / temperature
    store_statistics(p_statistics + 3 * M * split, o_m, m_m, M, b_lse, b_mean, b_count)


@triton.jit(do_not_specialize=["M", "splits"])
def combine_kernel(p_partial, p_statistics, M, splits, BLOCK_M: tl.constexpr):
    """Combine the statistics of a block of rows over each split [s,3,M] to those over all columns [3,M]."""
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


@triton.jit
def _side(p_side, o, m, SIZE):
    """Load side[3, SIZE] of a block of rows or columns."""
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
    columns_per_split,
    splits,
    stride_row,
    stride_column,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHANNEL_SPLITS: tl.constexpr,
    ALIGN: tl.constexpr,
    EXCLUDED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    GRAD_ROWS: tl.constexpr,
    GRAD_TEMPERATURE: tl.constexpr,
    KEEP_IN_REGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradient of a block of rows over the columns of one split, for the chunks of one channel split.

    The gradient of a logit is G_ij = g p + h / count (if positive), summed over its row and its column; see
    `tracklet_nce.torch.backward`. A side of G, row_side[3,M] or column_side[3,N], is the log-sum-exp, its gradient g,
    and h / count; OF_ROWS and OF_COLUMNS select the sides. Writes the gradient of the rows to grad_rows[s,M,C], and
    Σ_j G_ij l_ij to grad_temperature[s,M].
    """
    OWN: tl.constexpr = CHUNKS // CHANNEL_SPLITS if GRAD_ROWS else 0
    channel_split = tl.program_id(0) % CHANNEL_SPLITS
    first = channel_split * OWN
    split = (tl.program_id(0) // CHANNEL_SPLITS) % splits
    o_m = tl.program_id(0) // (CHANNEL_SPLITS * splits) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    rows = rows_at(p_rows, o_m, m_m, stride_row, ALIGN)
    b_rows = ()
    if KEEP_IN_REGS:
        b_rows = load_rows(rows, C, BLOCK_C, CHUNKS)
    b_row_ids, b_excluded = rows_of_pairs(p_row_ids, p_excluded, o_m, m_m, EXCLUDED, TRANSPOSED)
    if OF_ROWS:
        b_row_lse, b_row_grad, b_row_positive = _side(p_row_side, o_m, m_m, M)
    to_logit = 1.0 / tl.load(p_temperature)

    b_grad_rows = zeros(OWN, BLOCK_M, BLOCK_C)
    b_grad_temperature = tl.zeros([BLOCK_M], tl.float32)
    begin = split * columns_per_split
    end = tl.minimum(begin + columns_per_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        columns = rows_at(p_columns, o_n, m_n, stride_column, ALIGN)
        b_columns = ()
        if KEEP_IN_REGS:
            b_columns = load_rows(columns, C, BLOCK_C, CHUNKS)
        b_products = products(
            rows, columns, b_rows, b_columns, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS, KEEP_IN_REGS, PRECISION
        )
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
            b_row_ids, b_excluded, p_column_ids, p_excluded, o_m, o_n, m_n, EXCLUDED, TRANSPOSED
        )
        b_grad += tl.where(m_positive, b_grad_positive, 0.0)
        b_grad = tl.where(m_pair, b_grad, 0.0)  # not inf, which is possible if a log-sum-exp excludes the pair
        if GRAD_TEMPERATURE:
            b_grad_temperature += tl.sum(b_grad * b_products, 1)
        b_grad = b_grad.to(p_columns.dtype.element_ty)
        b_next = ()
        for i in tl.static_range(OWN):
            if KEEP_IN_REGS and CHANNEL_SPLITS == 1:
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
        tl.store(p_grad_temperature + row, b_grad_temperature * to_logit, mask=m_m & (channel_split == 0))
