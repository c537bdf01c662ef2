"""Region attention in Triton: each tile of regions is read once, as keys, as values and for its own statistics.

Sizes: F frames, M query rows, N regions, C channels. A program holds a [BLOCK_M, C] block of rows and walks over tiles
of [BLOCK_N, C] regions. C is cut into CHUNKS of BLOCK_C channels that are kept apart, as tuples of tiles, because one
[16, 1024] accumulator held whole makes the compiler spill: scores are summed over the chunks, outputs are not.

Names: `p_` a pointer, `o_` an offset, `m_` a mask, `b_` a value of the block. Scores are in units of log 2, so that the
softmax is an exp2. Strides of rows come in units of ALIGN elements: that they are its multiples is what lets a load be
16 bytes wide, and one compiled variant serves all sizes that ALIGN divides.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rows(
    p_rows, o_row, m_row, stride_row, ALIGN: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):
    """The chunks [rows, BLOCK_C] of some rows; rows outside of the mask, and channels beyond C, are zero."""
    chunks = ()
    o_start = o_row.to(tl.int64) * stride_row * ALIGN  # more than 2^31 elements may lie before a row
    for i in tl.static_range(CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        p_chunk = p_rows + o_start[:, None] + o_c[None, :]
        chunks = chunks + (tl.load(p_chunk, mask=m_row[:, None] & (o_c < C)[None, :], other=0.0),)
    return chunks


@triton.jit
def _normalized(b_x, eps, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """The layer-normalised chunks in their own dtype, and 1 / deviation. Two passes over the tile: no cancellation."""
    mean = tl.sum(b_x[0].to(tl.float32), 1)
    for i in tl.static_range(1, CHUNKS):
        mean += tl.sum(b_x[i].to(tl.float32), 1)
    mean = mean / C
    variance = tl.zeros_like(mean)
    for i in tl.static_range(CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        centred = tl.where((o_c < C)[None, :], b_x[i].to(tl.float32) - mean[:, None], 0.0)
        variance += tl.sum(centred * centred, 1)
    rstd = 1.0 / tl.sqrt(variance / C + eps)
    chunks = ()
    for i in tl.static_range(CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        centred = tl.where((o_c < C)[None, :], b_x[i].to(tl.float32) - mean[:, None], 0.0)
        chunks = chunks + ((centred * rstd[:, None]).to(b_x[i].dtype),)
    return chunks, rstd


@triton.jit
def _scores(b_q, b_x, b_scores, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """b_scores + q xᵀ, [rows, regions] in float32."""
    for i in tl.static_range(CHUNKS):
        b_scores = tl.dot(b_q[i], tl.trans(b_x[i]), b_scores, input_precision=PRECISION)
    return b_scores


#: What a compiled variant does not depend on: no recompilation where a batch, or a clip, has another length.
_SIZES = [
    "M", "N", "regions_a_split", "splits", "stride_query_frame", "stride_query_row", "stride_region_frame",
    "stride_region", "stride_position", "stride_mask_frame", "stride_mask",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def forward_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_output,
    p_softmax,
    p_scores,
    scale_log2,
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
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of one frame over the regions of one split.

    Writes, for split s, the output normalised over that split alone to output[s,F,M,C]; the highest score h of each row
    and Σ 2^(score - h) to softmax[s,2,F,M]; with SCORES also the scores, -inf where masked, to scores[F,M,N].
    """
    row_blocks = tl.cdiv(M, BLOCK_M)
    split = tl.program_id(0) % splits
    row_block = (tl.program_id(0) // splits) % row_blocks
    frame = (tl.program_id(0) // (splits * row_blocks)).to(tl.int64)
    frames = tl.num_programs(0) // (splits * row_blocks)

    o_m = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    p_queries += frame * stride_query_frame * ALIGN
    b_q = _rows(p_queries, o_m, m_m, stride_query_row, ALIGN, C, BLOCK_C, CHUNKS)
    p_regions += frame * stride_region_frame * ALIGN

    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_output = ()
    for i in tl.static_range(CHUNKS):
        b_output = b_output + (tl.zeros([BLOCK_M, BLOCK_C], tl.float32),)

    end = tl.minimum((split + 1) * regions_a_split, N)
    for start in range(split * regions_a_split, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        if MASK:
            m_n = tl.load(p_mask + frame * stride_mask_frame + o_n.to(tl.int64) * stride_mask, mask=m_n, other=0) != 0
        b_x = _rows(p_regions, o_n, m_n, stride_region, ALIGN, C, BLOCK_C, CHUNKS)
        if NORMALIZE:
            b_x, _ = _normalized(b_x, eps, C, BLOCK_C, CHUNKS)
        b_scores = _scores(b_q, b_x, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), CHUNKS, PRECISION)
        if POSITION:
            b_position = _rows(p_position, o_n, m_n, stride_position, ALIGN, C, BLOCK_C, CHUNKS)
            b_scores = _scores(b_q, b_position, b_scores, CHUNKS, PRECISION)
        b_scores = tl.where(m_n[None, :], b_scores * scale_log2, float("-inf"))
        if SCORES:
            p_row = p_scores + (frame * M + o_m[:, None]) * N + o_n[None, :]
            tl.store(p_row, b_scores, mask=m_m[:, None] & (o_n < end)[None, :])

        b_highest = tl.maximum(b_max, tl.max(b_scores, 1))
        b_shift = tl.where(b_highest == float("-inf"), 0.0, b_highest)  # nothing to attend yet: 0 and not inf - inf
        b_weights = tl.exp2(b_scores - b_shift[:, None])
        b_decay = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1)
        b_max = b_highest
        b_weights = b_weights.to(b_x[0].dtype)
        b_next = ()
        for i in tl.static_range(CHUNKS):
            b_kept = b_output[i] * b_decay[:, None]
            b_next = b_next + (tl.dot(b_weights, b_x[i], b_kept, input_precision=PRECISION),)
        b_output = b_next

    row = (split * frames + frame) * M + o_m  # int64
    b_inverse = tl.where(b_sum > 0, 1.0 / b_sum, 0.0)
    for i in tl.static_range(CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        b_out = (b_output[i] * b_inverse[:, None]).to(p_output.dtype.element_ty)
        tl.store(p_output + row[:, None] * C + o_c[None, :], b_out, mask=m_m[:, None] & (o_c < C)[None, :])
    row += split * frames * M
    tl.store(p_softmax + row, b_max, mask=m_m)
    tl.store(p_softmax + row + frames * M, b_sum, mask=m_m)


@triton.jit(do_not_specialize=["rows", "splits"])
def combine_kernel(
    p_partial, p_partial_softmax, p_output, p_softmax, rows, splits, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    """One row from those of its splits, partial[splits, rows, C] and softmax[splits, 2, rows]."""
    row = tl.program_id(0).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    highest = tl.load(p_partial_softmax + row)
    for split in range(1, splits):
        highest = tl.maximum(highest, tl.load(p_partial_softmax + 2 * split * rows + row))
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    total = 0.0
    b_output = tl.zeros([BLOCK_C], tl.float32)
    for split in range(splits):
        p_split = p_partial_softmax + 2 * split * rows + row
        share = tl.exp2(tl.load(p_split) - shift) * tl.load(p_split + rows)
        total += share
        b_output += share * tl.load(p_partial + (split * rows + row) * C + o_c, mask=o_c < C, other=0.0)
    b_output = tl.where(total > 0, b_output / total, 0.0)
    tl.store(p_output + row * C + o_c, b_output.to(p_output.dtype.element_ty), mask=o_c < C)
    if tl.program_id(1) == 0:
        tl.store(p_softmax + row, highest)
        tl.store(p_softmax + row + rows, total)


@triton.jit
def _weights(
    b_q,
    b_do,
    b_x,
    b_position,
    p_softmax,
    p_delta,
    p_grad_map,
    p_grad_scores,
    row,
    rows,
    m_m,
    m_n,
    N,
    o_n,
    scale,
    scale_log2,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    POSITION: tl.constexpr,
    GRAD_MAP: tl.constexpr,
    GRAD_SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of a block of rows and a tile of regions [BLOCK_M, BLOCK_N]: the weights, the gradient of q (x + position)ᵀ, and
    the products q xᵀ and do xᵀ, the last two in float32."""
    # Highest score and sum, as the softmax takes them, and not the logarithm of the sum, which would cost a digit.
    b_highest = tl.load(p_softmax + row, mask=m_m, other=0.0)
    b_total = tl.load(p_softmax + row + rows, mask=m_m, other=0.0)
    b_inverse = tl.where(b_total > 0, 1.0 / b_total, 0.0)  # a row with nothing to attend: all weights are 0
    b_delta = tl.load(p_delta + row, mask=m_m, other=0.0)
    b_qx = _scores(b_q, b_x, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), CHUNKS, PRECISION)
    b_scores = b_qx
    if POSITION:
        b_scores = _scores(b_q, b_position, b_scores, CHUNKS, PRECISION)
    m_pair = m_m[:, None] & m_n[None, :]
    b_weights = tl.where(m_pair, tl.exp2(b_scores * scale_log2 - b_highest[:, None]) * b_inverse[:, None], 0.0)
    b_dox = _scores(b_do, b_x, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), CHUNKS, PRECISION)
    b_grad_weights = b_dox
    o_pair = row[:, None] * N + o_n[None, :]
    if GRAD_MAP:
        b_grad_weights += tl.load(p_grad_map + o_pair, mask=m_pair, other=0.0).to(tl.float32)
    b_ds = (b_weights * (b_grad_weights - b_delta[:, None]) * scale).to(b_x[0].dtype)
    if GRAD_SCORES:
        tl.store(p_grad_scores + o_pair, b_ds, mask=m_m[:, None] & (o_n < N)[None, :])
    return b_weights.to(b_x[0].dtype), b_ds, b_qx, b_dox


@triton.jit
def _norm_means(b_q, b_do, b_p, b_ds, b_qx, b_dox, CHUNKS: tl.constexpr):
    """Σ_c dx̂ and Σ_c dx̂ x̂ of each region, for dx̂ = dsᵀ q + pᵀ do, from sums over c that are there already."""
    b_q_sum = tl.sum(b_q[0].to(tl.float32), 1)
    b_do_sum = tl.sum(b_do[0].to(tl.float32), 1)
    for i in tl.static_range(1, CHUNKS):
        b_q_sum += tl.sum(b_q[i].to(tl.float32), 1)
        b_do_sum += tl.sum(b_do[i].to(tl.float32), 1)
    b_ds, b_p = b_ds.to(tl.float32), b_p.to(tl.float32)
    b_sum = tl.sum(b_ds * b_q_sum[:, None] + b_p * b_do_sum[:, None], 0)
    return b_sum, tl.sum(b_ds * b_qx + b_p * b_dox, 0)


@triton.jit
def _store_gradient(
    p_grad_regions, b_dx, b_x, b_sum, b_product, b_rstd, o_n, m_stored, m_n, i, C: tl.constexpr, BLOCK_C: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Chunk i of the gradient of a tile, through the normalisation where there is one; masked regions get zero."""
    o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
    if NORMALIZE:
        b_dx -= b_sum[:, None] / C + b_x.to(tl.float32) * (b_product / C)[:, None]
        b_dx *= b_rstd[:, None]
    b_dx = tl.where(m_n[:, None], b_dx, 0.0).to(p_grad_regions.dtype.element_ty)
    p_dx = p_grad_regions + o_n[:, None].to(tl.int64) * C + o_c[None, :]
    tl.store(p_dx, b_dx, mask=m_stored[:, None] & (o_c < C)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def backward_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_softmax,
    p_delta,
    p_grad_output,
    p_grad_map,
    p_grad_queries,
    p_grad_regions,
    p_grad_scores,
    scale,
    scale_log2,
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
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GRAD_MAP: tl.constexpr,
    GRAD_REGIONS: tl.constexpr,
    GRAD_SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All rows of one frame, which one block holds, over the regions of one split.

    Writes the whole gradient of its regions to grad_regions[F,N,C], its share of that of the queries to
    grad_queries[s,F,M,C], and with GRAD_SCORES the gradient of q (x + position)ᵀ to grad_scores[F,M,N].
    delta[F,M] is Σ_n weight · (gradient of the weight).
    """
    split = tl.program_id(0) % splits
    frame = (tl.program_id(0) // splits).to(tl.int64)
    frames = tl.num_programs(0) // splits
    p_queries += frame * stride_query_frame * ALIGN
    p_regions += frame * stride_region_frame * ALIGN
    p_grad_output += frame * M * C
    if GRAD_REGIONS:
        p_grad_regions += frame * N * C
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < M
    row = frame * M + o_m

    b_dq = ()
    for i in tl.static_range(CHUNKS):
        b_dq = b_dq + (tl.zeros([BLOCK_M, BLOCK_C], tl.float32),)

    begin = split * regions_a_split
    end = tl.minimum(begin + regions_a_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_stored = o_n < end
        m_n = m_stored
        if MASK:
            m_n = tl.load(p_mask + frame * stride_mask_frame + o_n.to(tl.int64) * stride_mask, mask=m_n, other=0) != 0
        b_x = _rows(p_regions, o_n, m_n, stride_region, ALIGN, C, BLOCK_C, CHUNKS)
        b_rstd = 0.0
        if NORMALIZE:
            b_x, b_rstd = _normalized(b_x, eps, C, BLOCK_C, CHUNKS)
        b_position = b_x
        if POSITION:
            b_position = _rows(p_position, o_n, m_n, stride_position, ALIGN, C, BLOCK_C, CHUNKS)
        b_q = _rows(p_queries, o_m, m_m, stride_query_row, ALIGN, C, BLOCK_C, CHUNKS)
        b_do = _rows(p_grad_output, o_m, m_m, C, 1, C, BLOCK_C, CHUNKS)
        b_p, b_ds, b_qx, b_dox = _weights(
            b_q, b_do, b_x, b_position, p_softmax, p_delta, p_grad_map, p_grad_scores, row, frames * M, m_m, m_n, N,
            o_n, scale, scale_log2, CHUNKS, BLOCK_M, BLOCK_N, POSITION, GRAD_MAP, GRAD_SCORES, PRECISION,
        )  # fmt: skip
        b_sum, b_product = 0.0, 0.0
        if GRAD_REGIONS and NORMALIZE:
            b_sum, b_product = _norm_means(b_q, b_do, b_p, b_ds, b_qx, b_dox, CHUNKS)
        b_next = ()
        for i in tl.static_range(CHUNKS):
            if GRAD_REGIONS:
                b_dx = tl.dot(tl.trans(b_ds), b_q[i], input_precision=PRECISION)
                b_dx = tl.dot(tl.trans(b_p), b_do[i], b_dx, input_precision=PRECISION)
                _store_gradient(
                    p_grad_regions, b_dx, b_x[i], b_sum, b_product, b_rstd, o_n, m_stored, m_n, i, C, BLOCK_C, NORMALIZE
                )
            b_next_dq = tl.dot(b_ds, b_x[i], b_dq[i], input_precision=PRECISION)
            if POSITION:
                b_next_dq = tl.dot(b_ds, b_position[i], b_next_dq, input_precision=PRECISION)
            b_next = b_next + (b_next_dq,)
        b_dq = b_next

    p_grad_queries += (split * frames + frame) * M * C
    for i in tl.static_range(CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        p_dq = p_grad_queries + o_m[:, None] * C + o_c[None, :]
        tl.store(p_dq, b_dq[i].to(p_grad_queries.dtype.element_ty), mask=m_m[:, None] & (o_c < C)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def backward_many_rows_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_softmax,
    p_delta,
    p_grad_output,
    p_grad_map,
    p_grad_queries,
    p_grad_regions,
    p_grad_scores,
    scale,
    scale_log2,
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
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GRAD_MAP: tl.constexpr,
    GRAD_REGIONS: tl.constexpr,
    GRAD_SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As :func:`backward_kernel`, for rows that take several blocks.

    The gradient of a tile of regions stays in registers over all blocks of rows; that of the queries is added up, tile
    by tile, in the program's own part of grad_queries[s,F,M,C] in float32, which no other program touches.
    """
    split = tl.program_id(0) % splits
    frame = (tl.program_id(0) // splits).to(tl.int64)
    frames = tl.num_programs(0) // splits
    p_queries += frame * stride_query_frame * ALIGN
    p_regions += frame * stride_region_frame * ALIGN
    p_grad_output += frame * M * C
    if GRAD_REGIONS:
        p_grad_regions += frame * N * C
    p_grad_queries += (split * frames + frame) * M * C

    begin = split * regions_a_split
    end = tl.minimum(begin + regions_a_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_stored = o_n < end
        m_n = m_stored
        if MASK:
            m_n = tl.load(p_mask + frame * stride_mask_frame + o_n.to(tl.int64) * stride_mask, mask=m_n, other=0) != 0
        b_x = _rows(p_regions, o_n, m_n, stride_region, ALIGN, C, BLOCK_C, CHUNKS)
        b_rstd = 0.0
        if NORMALIZE:
            b_x, b_rstd = _normalized(b_x, eps, C, BLOCK_C, CHUNKS)
        b_position = b_x
        if POSITION:
            b_position = _rows(p_position, o_n, m_n, stride_position, ALIGN, C, BLOCK_C, CHUNKS)
        b_sum, b_product = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        b_dx = ()
        for i in tl.static_range(CHUNKS if GRAD_REGIONS else 0):
            b_dx = b_dx + (tl.zeros([BLOCK_N, BLOCK_C], tl.float32),)

        for first_row in range(0, M, BLOCK_M):
            o_m = first_row + tl.arange(0, BLOCK_M)
            m_m = o_m < M
            b_q = _rows(p_queries, o_m, m_m, stride_query_row, ALIGN, C, BLOCK_C, CHUNKS)
            b_do = _rows(p_grad_output, o_m, m_m, C, 1, C, BLOCK_C, CHUNKS)
            b_p, b_ds, b_qx, b_dox = _weights(
                b_q, b_do, b_x, b_position, p_softmax, p_delta, p_grad_map, p_grad_scores, frame * M + o_m, frames * M,
                m_m, m_n, N, o_n, scale, scale_log2, CHUNKS, BLOCK_M, BLOCK_N, POSITION, GRAD_MAP, GRAD_SCORES,
                PRECISION,
            )  # fmt: skip
            if GRAD_REGIONS and NORMALIZE:
                b_more, b_more_product = _norm_means(b_q, b_do, b_p, b_ds, b_qx, b_dox, CHUNKS)
                b_sum += b_more
                b_product += b_more_product
            b_next = ()
            for i in tl.static_range(CHUNKS):
                if GRAD_REGIONS:
                    b_next_dx = tl.dot(tl.trans(b_ds), b_q[i], b_dx[i], input_precision=PRECISION)
                    b_next = b_next + (tl.dot(tl.trans(b_p), b_do[i], b_next_dx, input_precision=PRECISION),)
                o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
                p_dq = p_grad_queries + o_m[:, None].to(tl.int64) * C + o_c[None, :]
                m_dq = m_m[:, None] & (o_c < C)[None, :]
                b_dq = tl.load(p_dq, mask=m_dq & (start > begin), other=0.0)
                b_dq = tl.dot(b_ds, b_x[i], b_dq, input_precision=PRECISION)
                if POSITION:
                    b_dq = tl.dot(b_ds, b_position[i], b_dq, input_precision=PRECISION)
                tl.store(p_dq, b_dq, mask=m_dq)
            if GRAD_REGIONS:
                b_dx = b_next

        for i in tl.static_range(CHUNKS if GRAD_REGIONS else 0):
            _store_gradient(
                p_grad_regions, b_dx[i], b_x[i], b_sum, b_product, b_rstd, o_n, m_stored, m_n, i, C, BLOCK_C, NORMALIZE
            )
