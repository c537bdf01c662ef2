"""The forward pass: online softmax over tiles of regions, and the sum over splits."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels.region_attention.kernels.tile import SIZES, key, tile_at, value
from art_kernels._core.rows import load_chunk, load_rows, rows_at, store_chunk, zeros


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_output,
    p_softmax,
    p_scores,
    scale,
    eps,
    M,
    N,
    regions_a_split,
    splits,
    stride_query_frame,
    stride_query_row,
    stride_region_frame,
    stride_region,
    stride_position,
    stride_mask_frame,
    stride_mask,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCORES: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of one frame over the regions of one split; of the output, the chunks of one part.

    Writes, for split s, the output normalised over that split alone to output[s,F,M,C]; the highest score h of each row
    and Σ exp(score - h) to softmax[s,F,M,2]; with SCORES also the scores, -inf where masked, to scores[F,M,N].
    """
    OWN: tl.constexpr = CHUNKS // PARTS
    part = tl.program_id(0) % PARTS
    first = part * OWN
    split = (tl.program_id(0) // PARTS) % splits
    row_blocks = tl.cdiv(M, BLOCK_M)
    row_block = (tl.program_id(0) // (PARTS * splits)) % row_blocks
    frame = (tl.program_id(0) // (PARTS * splits * row_blocks)).to(tl.int64)
    frames = tl.num_programs(0) // (PARTS * splits * row_blocks)

    o_m = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    queries = rows_at(p_queries + frame * stride_query_frame * ALIGN, o_m, m_m, stride_query_row, ALIGN)
    b_q = ()
    if HOLD:
        b_q = load_rows(queries, C, BLOCK_C, CHUNKS)
    p_regions += frame * stride_region_frame * ALIGN
    if MASK:
        p_mask += frame * stride_mask_frame

    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_output = zeros(OWN, BLOCK_M, BLOCK_C)

    end = tl.minimum((split + 1) * regions_a_split, N)
    for start in range(split * regions_a_split, end, BLOCK_N):
        o_n, m_n, regions, positions, b_x, mean, rstd = tile_at(
            p_regions, p_position, p_mask, start, end, stride_region, stride_position, stride_mask, eps,
            C, BLOCK_N, BLOCK_C, CHUNKS, ALIGN, POSITION, MASK, NORMALIZE, HOLD,
        )  # fmt: skip
        b_scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if HOLD:
            for i in tl.static_range(CHUNKS):
                b_key = key(b_x[i], positions, i, POSITION, C, BLOCK_C, CHUNKS)
                b_scores = tl.dot(b_q[i], tl.trans(b_key), b_scores, input_precision=PRECISION)
        else:
            for k in range(CHUNKS):
                b_xk = value(regions, b_x, mean, rstd, 0, k, NORMALIZE, HOLD, C, BLOCK_C, CHUNKS)
                b_key = key(b_xk, positions, k, POSITION, C, BLOCK_C, CHUNKS)
                b_qk = load_chunk(queries, k, C, BLOCK_C, CHUNKS)
                b_scores = tl.dot(b_qk, tl.trans(b_key), b_scores, input_precision=PRECISION)
        b_scores = tl.where(m_n[None, :], b_scores * scale, float("-inf"))
        if SCORES:
            p_row = p_scores + (frame * M + o_m[:, None]) * N + o_n[None, :]
            tl.store(p_row, b_scores, mask=m_m[:, None] & (o_n < end)[None, :] & (part == 0))

        b_highest = tl.maximum(b_max, tl.max(b_scores, 1))
        b_shift = tl.where(b_highest == float("-inf"), 0.0, b_highest)  # nothing to attend yet: 0 and not inf - inf
        b_weights = tl.exp(b_scores - b_shift[:, None])
        b_decay = tl.exp(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1)
        b_max = b_highest
        b_weights = b_weights.to(p_regions.dtype.element_ty)
        b_next = ()
        for i in tl.static_range(OWN):
            b_kept = b_output[i] * b_decay[:, None]
            b_xi = value(regions, b_x, mean, rstd, i, first + i, NORMALIZE, HOLD, C, BLOCK_C, CHUNKS)
            b_next = b_next + (tl.dot(b_weights, b_xi, b_kept, input_precision=PRECISION),)
        b_output = b_next

    row = (split * frames + frame) * M + o_m  # int64
    output = rows_at(p_output, row, m_m, C, 1)
    b_total = tl.where(b_sum > 0, b_sum, 1.0)  # a row with nothing to attend: zeros
    for i in tl.static_range(OWN):
        store_chunk(output, first + i, b_output[i] / b_total[:, None], C, BLOCK_C, CHUNKS)
    tl.store(p_softmax + 2 * row, b_max, mask=m_m & (part == 0))
    tl.store(p_softmax + 2 * row + 1, b_sum, mask=m_m & (part == 0))


@triton.jit(do_not_specialize=["rows", "splits"])
def combine_kernel(
    p_partial, p_partial_softmax, p_output, p_softmax, rows, splits, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    """One row from those of its splits, partial[splits, rows, C] and softmax[splits, rows, 2]."""
    row = tl.program_id(0).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    highest = tl.load(p_partial_softmax + 2 * row)
    for split in range(1, splits):
        highest = tl.maximum(highest, tl.load(p_partial_softmax + 2 * (split * rows + row)))
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    total = 0.0
    b_output = tl.zeros([BLOCK_C], tl.float32)
    for split in range(splits):
        p_split = p_partial_softmax + 2 * (split * rows + row)
        share = tl.exp(tl.load(p_split) - shift) * tl.load(p_split + 1)
        total += share
        b_output += share * tl.load(p_partial + (split * rows + row) * C + o_c, mask=o_c < C, other=0.0)
    b_output = tl.where(total > 0, b_output / total, 0.0)
    tl.store(p_output + row * C + o_c, b_output.to(p_output.dtype.element_ty), mask=o_c < C)
    if tl.program_id(1) == 0:
        tl.store(p_softmax + 2 * row, highest)
        tl.store(p_softmax + 2 * row + 1, total)
