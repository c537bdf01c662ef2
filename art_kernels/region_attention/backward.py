"""Triton backward kernels of region attention.

With p the weights, o the output and do its gradient, the gradient of a score is p · (do xᵀ - delta) · scale, where
delta = Σ_n p · (do xᵀ) = do · o per row.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, load_rows, rows_at, store_chunk, zeros
from art_kernels.region_attention.forward import SIZES, chunk, key, mask_pairs, tile_at, value


@triton.jit
def _products(
    queries, grads, regions, positions, b_q, b_do, b_x, mean, rstd, C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, POSITION: tl.constexpr,
    NORMALIZE: tl.constexpr, KEEP_IN_REGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of a block of rows and a tile, accumulated over the channels.

    Returns q (x + position)ᵀ, q xᵀ (used by the LayerNorm gradient only) and do xᵀ, each [BLOCK_M, BLOCK_N]; and Σ_c q
    and Σ_c do, each [BLOCK_M].
    """
    b_qx = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_dox = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_q_sum, b_do_sum = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    if KEEP_IN_REGS:
        for i in tl.static_range(CHUNKS):
            b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _add_products(
                b_scores, b_qx, b_dox, b_q_sum, b_do_sum, b_q[i], b_do[i], b_x[i], positions, i, C, BLOCK_C, CHUNKS,
                POSITION, NORMALIZE, PRECISION,
            )  # fmt: skip
    else:
        for k in range(CHUNKS):
            b_qk = load_chunk(queries, k, C, BLOCK_C, CHUNKS)
            b_dok = load_chunk(grads, k, C, BLOCK_C, CHUNKS)
            b_xk = value(regions, b_x, mean, rstd, 0, k, NORMALIZE, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
            b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _add_products(
                b_scores, b_qx, b_dox, b_q_sum, b_do_sum, b_qk, b_dok, b_xk, positions, k, C, BLOCK_C, CHUNKS,
                POSITION, NORMALIZE, PRECISION,
            )  # fmt: skip
    if not POSITION:
        b_qx = b_scores
    return b_scores, b_qx, b_dox, b_q_sum, b_do_sum


@triton.jit
def _add_products(
    b_scores, b_qx, b_dox, b_q_sum, b_do_sum, b_q, b_do, b_x, positions, k, C: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr, POSITION: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add chunk k to the sums of :func:`_products`."""
    if POSITION and NORMALIZE:
        b_qx = tl.dot(b_q, tl.trans(b_x), b_qx, input_precision=PRECISION)
    b_key = key(b_x, positions, k, POSITION, C, BLOCK_C, CHUNKS)
    b_scores = tl.dot(b_q, tl.trans(b_key), b_scores, input_precision=PRECISION)
    b_dox = tl.dot(b_do, tl.trans(b_x), b_dox, input_precision=PRECISION)
    if NORMALIZE:
        b_q_sum += tl.sum(b_q.to(tl.float32), 1)
        b_do_sum += tl.sum(b_do.to(tl.float32), 1)
    return b_scores, b_qx, b_dox, b_q_sum, b_do_sum


@triton.jit
def _weights(
    b_scores, b_dox, p_softmax, p_attn_mask, p_grad_map, frame, o_m, m_m, m_n, M, N, o_n, scale, attn_mask_rows,
    stride_attn_mask_frame, stride_attn_mask_row, ATTN_MASK: tl.constexpr, GRAD_MAP: tl.constexpr,
):  # fmt: skip
    """Return the weights and their gradient, [BLOCK_M, BLOCK_N] in float32."""
    b_scores = mask_pairs(
        b_scores * scale, p_attn_mask, frame, o_m, m_m, o_n, m_n, attn_mask_rows, stride_attn_mask_frame,
        stride_attn_mask_row, ATTN_MASK,
    )  # fmt: skip
    row = frame * M + o_m
    # Maximum and sum instead of a log-sum-exp, whose rounding would cost one digit.
    b_highest = tl.load(p_softmax + 2 * row, mask=m_m, other=0.0)
    b_total = tl.load(p_softmax + 2 * row + 1, mask=m_m, other=1.0)
    b_total = tl.where(b_total > 0, b_total, 1.0)  # a fully masked row
    if ATTN_MASK != 0:
        b_highest = tl.where(b_highest == float("-inf"), 0.0, b_highest)  # the same row: 0 instead of inf - inf
    m_pair = m_m[:, None] & m_n[None, :]
    b_weights = tl.where(m_pair, tl.exp(b_scores - b_highest[:, None]) / b_total[:, None], 0.0)
    if GRAD_MAP:
        b_dox += tl.load(p_grad_map + row[:, None] * N + o_n[None, :], mask=m_pair, other=0.0).to(tl.float32)
    return b_weights, b_dox


@triton.jit
def _weights_and_scores(
    b_scores, b_dox, p_softmax, p_delta, p_attn_mask, p_grad_map, p_grad_scores, frame, o_m, m_m, m_n, M, N, end, o_n,
    channel_split, scale, attn_mask_rows, stride_attn_mask_frame, stride_attn_mask_row, ATTN_MASK: tl.constexpr,
    GRAD_MAP: tl.constexpr, GRAD_SCORES: tl.constexpr,
):  # fmt: skip
    """Return the weights and the gradient of q (x + position)ᵀ, [BLOCK_M, BLOCK_N] in float32.

    Stores that gradient (GRAD_SCORES=1), or that of the scaled scores (2), which an additive mask requires.
    """
    b_weights, b_grad = _weights(
        b_scores, b_dox, p_softmax, p_attn_mask, p_grad_map, frame, o_m, m_m, m_n, M, N, o_n, scale, attn_mask_rows,
        stride_attn_mask_frame, stride_attn_mask_row, ATTN_MASK, GRAD_MAP,
    )  # fmt: skip
    row = frame * M + o_m
    b_delta = tl.load(p_delta + row, mask=m_m, other=0.0)
    b_scaled = b_weights * (b_grad - b_delta[:, None])
    b_ds = b_scaled * scale
    if GRAD_SCORES != 0:
        p_pair = p_grad_scores + row[:, None] * N + o_n[None, :]
        m_pair = m_m[:, None] & (o_n < end)[None, :] & (channel_split == 0)
        b_stored = b_ds if GRAD_SCORES == 1 else b_scaled
        tl.store(p_pair, b_stored.to(p_grad_scores.dtype.element_ty), mask=m_pair)
    return b_weights, b_ds


@triton.jit
def _norm_sums(b_p, b_ds, b_qx, b_dox, b_q_sum, b_do_sum):
    """Return Σ_c dx̂ and Σ_c dx̂ x̂ per region, with dx̂ = dsᵀ q + pᵀ do, from sums over c computed earlier."""
    b_ds, b_p = b_ds.to(tl.float32), b_p.to(tl.float32)
    b_sum = tl.sum(b_ds * b_q_sum[:, None] + b_p * b_do_sum[:, None], 0)
    return b_sum, tl.sum(b_ds * b_qx + b_p * b_dox, 0)


@triton.jit
def _store_gradient(
    grad_regions, b_dx, b_x, b_sum, b_product, b_rstd, m_n, k, C: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Store chunk k of the gradient of a tile, through the LayerNorm with NORMALIZE; masked regions get zero."""
    if NORMALIZE:
        b_dx -= b_sum[:, None] / C + b_x.to(tl.float32) * (b_product / C)[:, None]
        b_dx *= b_rstd[:, None]
    store_chunk(grad_regions, k, tl.where(m_n[:, None], b_dx, 0.0), C, BLOCK_C, CHUNKS)


@triton.jit(do_not_specialize=SIZES)
def delta_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_attn_mask,
    p_softmax,
    p_grad_output,
    p_grad_map,
    p_delta,
    scale,
    eps,
    M,
    N,
    regions_per_split,
    splits,
    stride_query_frame,
    stride_query_row,
    stride_region_frame,
    stride_region,
    stride_position_frame,
    stride_position,
    stride_mask_frame,
    stride_mask,
    attn_mask_rows,
    stride_attn_mask_frame,
    stride_attn_mask_row,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GRAD_MAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute delta[s,F,M] of a block of rows as Σ_n weight · (gradient of the weight) over the regions of split s.

    Mathematically this is do · o. But if one weight is close to 1, the gradient of its score is the small difference
    between do xᵀ and delta, which is accurate only if delta has the rounding errors of the same products.
    """
    split = tl.program_id(0) % splits
    row_blocks = tl.cdiv(M, BLOCK_M)
    row_block = (tl.program_id(0) // splits) % row_blocks
    frame = (tl.program_id(0) // (splits * row_blocks)).to(tl.int64)
    frames = tl.num_programs(0) // (splits * row_blocks)
    p_regions += frame * stride_region_frame * ALIGN
    if MASK:
        p_mask += frame * stride_mask_frame
    o_m = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    queries = rows_at(p_queries + frame * stride_query_frame * ALIGN, o_m, m_m, stride_query_row, ALIGN)
    grads = rows_at(p_grad_output + frame * M * C, o_m, m_m, C, 1)

    b_delta = tl.zeros([BLOCK_M], tl.float32)
    begin = split * regions_per_split
    end = tl.minimum(begin + regions_per_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n, m_n, regions, positions, b_x, mean, rstd = tile_at(
            p_regions, p_position, p_mask, frame, start, end, stride_region, stride_position_frame, stride_position,
            stride_mask, eps, C, BLOCK_N, BLOCK_C, CHUNKS, ALIGN, POSITION, MASK, NORMALIZE, False,
        )  # fmt: skip
        b_scores, _, b_dox, _, _ = _products(
            queries, grads, regions, positions, (), (), b_x, mean, rstd, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS,
            POSITION, NORMALIZE, False, PRECISION,
        )  # fmt: skip
        b_weights, b_grad = _weights(
            b_scores, b_dox, p_softmax, p_attn_mask, p_grad_map, frame, o_m, m_m, m_n, M, N, o_n, scale, attn_mask_rows,
            stride_attn_mask_frame, stride_attn_mask_row, ATTN_MASK, GRAD_MAP,
        )  # fmt: skip
        b_delta += tl.sum(b_weights * b_grad, 1)
    tl.store(p_delta + (split * frames + frame) * M + o_m, b_delta, mask=m_m)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_attn_mask,
    p_softmax,
    p_delta,
    p_grad_output,
    p_grad_map,
    p_grad_queries,
    p_grad_regions,
    p_grad_scores,
    scale,
    eps,
    M,
    N,
    regions_per_split,
    splits,
    stride_query_frame,
    stride_query_row,
    stride_region_frame,
    stride_region,
    stride_position_frame,
    stride_position,
    stride_mask_frame,
    stride_mask,
    attn_mask_rows,
    stride_attn_mask_frame,
    stride_attn_mask_row,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHANNEL_SPLITS: tl.constexpr,
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GRAD_MAP: tl.constexpr,
    GRAD_REGIONS: tl.constexpr,
    GRAD_SCORES: tl.constexpr,
    KEEP_IN_REGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of one frame whose rows fit in one block, over the regions of one split, for one channel split.

    Writes the complete gradient of its regions to grad_regions[F,N,C], the contribution of split s to the gradient of
    the queries to grad_queries[s,F,M,C], and with GRAD_SCORES the gradient of the scores to grad_scores[F,M,N].
    """
    OWN_CHUNKS: tl.constexpr = CHUNKS // CHANNEL_SPLITS
    channel_split = tl.program_id(0) % CHANNEL_SPLITS
    first = channel_split * OWN_CHUNKS
    split = (tl.program_id(0) // CHANNEL_SPLITS) % splits
    frame = (tl.program_id(0) // (CHANNEL_SPLITS * splits)).to(tl.int64)
    frames = tl.num_programs(0) // (CHANNEL_SPLITS * splits)
    p_regions += frame * stride_region_frame * ALIGN
    if MASK:
        p_mask += frame * stride_mask_frame
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < M
    queries = rows_at(p_queries + frame * stride_query_frame * ALIGN, o_m, m_m, stride_query_row, ALIGN)
    grads = rows_at(p_grad_output + frame * M * C, o_m, m_m, C, 1)

    b_dq = zeros(OWN_CHUNKS, BLOCK_M, BLOCK_C)
    begin = split * regions_per_split
    end = tl.minimum(begin + regions_per_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n, m_n, regions, positions, b_x, mean, rstd = tile_at(
            p_regions, p_position, p_mask, frame, start, end, stride_region, stride_position_frame, stride_position,
            stride_mask, eps, C, BLOCK_N, BLOCK_C, CHUNKS, ALIGN, POSITION, MASK, NORMALIZE, KEEP_IN_REGS,
        )  # fmt: skip
        b_q, b_do = (), ()
        if KEEP_IN_REGS:
            b_q, b_do = load_rows(queries, C, BLOCK_C, CHUNKS), load_rows(grads, C, BLOCK_C, CHUNKS)
        b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _products(
            queries, grads, regions, positions, b_q, b_do, b_x, mean, rstd, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS,
            POSITION, NORMALIZE, KEEP_IN_REGS, PRECISION,
        )  # fmt: skip
        b_p, b_ds = _weights_and_scores(
            b_scores, b_dox, p_softmax, p_delta, p_attn_mask, p_grad_map, p_grad_scores, frame, o_m, m_m, m_n, M, N,
            end, o_n, channel_split, scale, attn_mask_rows, stride_attn_mask_frame, stride_attn_mask_row, ATTN_MASK,
            GRAD_MAP, GRAD_SCORES,
        )  # fmt: skip
        b_p, b_ds = b_p.to(p_regions.dtype.element_ty), b_ds.to(p_regions.dtype.element_ty)
        b_sum, b_product = 0.0, 0.0
        grad_regions = regions
        if GRAD_REGIONS:
            grad_regions = rows_at(p_grad_regions + frame * N * C, o_n, o_n < end, C, 1)
            if NORMALIZE:
                b_sum, b_product = _norm_sums(b_p, b_ds, b_qx, b_dox, b_q_sum, b_do_sum)
        b_next = ()
        for i in tl.static_range(OWN_CHUNKS):
            b_xi = value(regions, b_x, mean, rstd, i, first + i, NORMALIZE, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
            if GRAD_REGIONS:
                b_qi = chunk(queries, b_q, i, first + i, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
                b_doi = chunk(grads, b_do, i, first + i, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
                b_dx = tl.dot(tl.trans(b_ds), b_qi, input_precision=PRECISION)
                b_dx = tl.dot(tl.trans(b_p), b_doi, b_dx, input_precision=PRECISION)
                _store_gradient(
                    grad_regions, b_dx, b_xi, b_sum, b_product, rstd, m_n, first + i, C, BLOCK_C, CHUNKS, NORMALIZE
                )
            b_key = key(b_xi, positions, first + i, POSITION, C, BLOCK_C, CHUNKS)
            b_next = b_next + (tl.dot(b_ds, b_key, b_dq[i], input_precision=PRECISION),)
        b_dq = b_next

    grad_queries = rows_at(p_grad_queries + (split * frames + frame) * M * C, o_m, m_m, C, 1)
    for i in tl.static_range(OWN_CHUNKS):
        store_chunk(grad_queries, first + i, b_dq[i], C, BLOCK_C, CHUNKS)


@triton.jit(do_not_specialize=SIZES)
def backward_multi_block_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_attn_mask,
    p_softmax,
    p_delta,
    p_grad_output,
    p_grad_map,
    p_grad_queries,
    p_grad_regions,
    p_grad_scores,
    scale,
    eps,
    M,
    N,
    regions_per_split,
    splits,
    stride_query_frame,
    stride_query_row,
    stride_region_frame,
    stride_region,
    stride_position_frame,
    stride_position,
    stride_mask_frame,
    stride_mask,
    attn_mask_rows,
    stride_attn_mask_frame,
    stride_attn_mask_row,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHANNEL_SPLITS: tl.constexpr,
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    ATTN_MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GRAD_MAP: tl.constexpr,
    GRAD_REGIONS: tl.constexpr,
    GRAD_SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multi-block version of :func:`backward_kernel`, for rows that do not fit in one block.

    The gradient of a tile of regions stays in registers over all blocks of rows. The gradient of the queries is
    accumulated tile by tile in float32 in grad_queries[s,F,M,C], where each program owns its channels.
    """
    OWN_CHUNKS: tl.constexpr = CHUNKS // CHANNEL_SPLITS
    channel_split = tl.program_id(0) % CHANNEL_SPLITS
    first = channel_split * OWN_CHUNKS
    split = (tl.program_id(0) // CHANNEL_SPLITS) % splits
    frame = (tl.program_id(0) // (CHANNEL_SPLITS * splits)).to(tl.int64)
    frames = tl.num_programs(0) // (CHANNEL_SPLITS * splits)
    p_queries += frame * stride_query_frame * ALIGN
    p_regions += frame * stride_region_frame * ALIGN
    p_grad_output += frame * M * C
    p_grad_queries += (split * frames + frame) * M * C
    if MASK:
        p_mask += frame * stride_mask_frame

    begin = split * regions_per_split
    end = tl.minimum(begin + regions_per_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n, m_n, regions, positions, b_x, mean, rstd = tile_at(
            p_regions, p_position, p_mask, frame, start, end, stride_region, stride_position_frame, stride_position,
            stride_mask, eps, C, BLOCK_N, BLOCK_C, CHUNKS, ALIGN, POSITION, MASK, NORMALIZE, False,
        )  # fmt: skip
        b_sum, b_product = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        b_dx = zeros(OWN_CHUNKS if GRAD_REGIONS else 0, BLOCK_N, BLOCK_C)

        for first_row in range(0, M, BLOCK_M):
            o_m = first_row + tl.arange(0, BLOCK_M)
            m_m = o_m < M
            queries = rows_at(p_queries, o_m, m_m, stride_query_row, ALIGN)
            grads = rows_at(p_grad_output, o_m, m_m, C, 1)
            b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _products(
                queries, grads, regions, positions, (), (), b_x, mean, rstd, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS,
                POSITION, NORMALIZE, False, PRECISION,
            )  # fmt: skip
            b_p, b_ds = _weights_and_scores(
                b_scores, b_dox, p_softmax, p_delta, p_attn_mask, p_grad_map, p_grad_scores, frame, o_m, m_m, m_n, M, N,
                end, o_n, channel_split, scale, attn_mask_rows, stride_attn_mask_frame, stride_attn_mask_row,
                ATTN_MASK, GRAD_MAP, GRAD_SCORES,
            )  # fmt: skip
            b_p, b_ds = b_p.to(p_regions.dtype.element_ty), b_ds.to(p_regions.dtype.element_ty)
            if GRAD_REGIONS and NORMALIZE:
                b_more, b_more_product = _norm_sums(b_p, b_ds, b_qx, b_dox, b_q_sum, b_do_sum)
                b_sum += b_more
                b_product += b_more_product
            b_next = ()
            for i in tl.static_range(OWN_CHUNKS if GRAD_REGIONS else 0):
                b_qi = load_chunk(queries, first + i, C, BLOCK_C, CHUNKS)
                b_doi = load_chunk(grads, first + i, C, BLOCK_C, CHUNKS)
                b_next_dx = tl.dot(tl.trans(b_ds), b_qi, b_dx[i], input_precision=PRECISION)
                b_next = b_next + (tl.dot(tl.trans(b_p), b_doi, b_next_dx, input_precision=PRECISION),)
            m_later = m_m & (tl.zeros_like(o_m) + start > begin)  # the first tile has nothing to add to
            before = rows_at(p_grad_queries, o_m, m_later, C, 1)
            after = rows_at(p_grad_queries, o_m, m_m, C, 1)
            for k in range(first, first + OWN_CHUNKS):
                b_dq = load_chunk(before, k, C, BLOCK_C, CHUNKS)
                b_xk = value(regions, b_x, mean, rstd, 0, k, NORMALIZE, False, C, BLOCK_C, CHUNKS)
                b_key = key(b_xk, positions, k, POSITION, C, BLOCK_C, CHUNKS)
                b_dq = tl.dot(b_ds, b_key, b_dq, input_precision=PRECISION)
                store_chunk(after, k, b_dq, C, BLOCK_C, CHUNKS)
            if GRAD_REGIONS:
                b_dx = b_next

        if GRAD_REGIONS:
            grad_regions = rows_at(p_grad_regions + frame * N * C, o_n, o_n < end, C, 1)
            for i in tl.static_range(OWN_CHUNKS):
                b_xi = value(regions, b_x, mean, rstd, 0, first + i, NORMALIZE, False, C, BLOCK_C, CHUNKS)
                _store_gradient(
                    grad_regions, b_dx[i], b_xi, b_sum, b_product, rstd, m_n, first + i, C, BLOCK_C, CHUNKS, NORMALIZE
                )
