"""Region attention in Triton: each tile of regions is read once, as keys, as values and for its own statistics.

Sizes: F frames, M query rows, N regions, C channels. A program holds a [BLOCK_M, C] block of rows and walks over tiles
of [BLOCK_N, C] regions. C is cut into CHUNKS of BLOCK_C channels that are kept apart, as tuples of tiles, because one
[16, 1024] accumulator held whole makes the compiler spill: scores are summed over the chunks, outputs are not.

Where the registers are too few to hold a tile (HOLD), its chunks are read again from the caches, in loops that are not
unrolled: unrolled, the compiler would move all their loads to the front, and hold them after all.

Names: `p_` a pointer, `o_` an offset, `m_` a mask, `b_` a value of the block. Strides of rows come in units of ALIGN
elements: that they are its multiples is what lets a load be 16 bytes wide, and one compiled variant serves all sizes
that ALIGN divides.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _view(p_rows, o_row, m_row, stride_row, ALIGN: tl.constexpr):
    """Some rows as (pointers to their first channels [rows, 1], mask [rows, 1])."""
    # More than 2^31 elements may lie before a row.
    return p_rows + (o_row.to(tl.int64) * stride_row * ALIGN)[:, None], m_row[:, None]


@triton.jit
def _load(view, i, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Chunk i of a view, [rows, BLOCK_C]; rows outside of the mask, and channels beyond C, are zero."""
    o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.load(view[0] + o_c[None, :], mask=view[1] & (o_c < C)[None, :], other=0.0)


@triton.jit
def _rows(view, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """All chunks of a view."""
    chunks = ()
    for i in tl.static_range(CHUNKS):
        chunks = chunks + (_load(view, i, C, BLOCK_C),)
    return chunks


@triton.jit
def _chunk(view, held, i, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Chunk i of a view that is held, or that is read (again) from the caches because the registers are too few."""
    if HOLD:
        b_chunk = held[i]
    else:
        b_chunk = _load(view, i, C, BLOCK_C)
    return b_chunk


@triton.jit
def _squares(b_chunk, mean, i, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum of squares of the centred chunk i of each row."""
    o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
    centred = tl.where((o_c < C)[None, :], b_chunk.to(tl.float32) - mean[:, None], 0.0)
    return tl.sum(centred * centred, 1)


@triton.jit
def _statistics(
    view, held, eps, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Mean and 1 / deviation of each row. Two passes over the tile: no cancellation."""
    mean = tl.sum(_chunk(view, held, 0, HOLD, C, BLOCK_C).to(tl.float32), 1)
    variance = tl.zeros_like(mean)
    if HOLD:
        for i in tl.static_range(1, CHUNKS):
            mean += tl.sum(held[i].to(tl.float32), 1)
        mean = mean / C
        for i in tl.static_range(CHUNKS):
            variance += _squares(held[i], mean, i, C, BLOCK_C)
    else:
        for i in range(1, CHUNKS):
            mean += tl.sum(_load(view, i, C, BLOCK_C).to(tl.float32), 1)
        mean = mean / C
        for i in range(CHUNKS):
            variance += _squares(_load(view, i, C, BLOCK_C), mean, i, C, BLOCK_C)
    return mean, 1.0 / tl.sqrt(variance / C + eps)


@triton.jit
def _normalized(b_chunk, mean, rstd, i, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Chunk i of normalised rows, in its own dtype."""
    o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
    centred = tl.where((o_c < C)[None, :], b_chunk.to(tl.float32) - mean[:, None], 0.0)
    return (centred * rstd[:, None]).to(b_chunk.dtype)


@triton.jit
def _tile(
    view, eps, NORMALIZE: tl.constexpr, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """A tile of regions: its chunks, normalised where that is asked for (none without HOLD), and mean and 1 / deviation
    of each region."""
    held, mean, rstd = (), 0.0, 0.0
    if HOLD:
        held = _rows(view, C, BLOCK_C, CHUNKS)
    if NORMALIZE:
        mean, rstd = _statistics(view, held, eps, HOLD, C, BLOCK_C, CHUNKS)
        if HOLD:
            chunks = ()
            for i in tl.static_range(CHUNKS):
                chunks = chunks + (_normalized(held[i], mean, rstd, i, C, BLOCK_C),)
            held = chunks
    return held, mean, rstd


@triton.jit
def _value(
    view, held, mean, rstd, i, NORMALIZE: tl.constexpr, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Chunk i of a tile."""
    b_chunk = _chunk(view, held, i, HOLD, C, BLOCK_C)
    if NORMALIZE and not HOLD:
        b_chunk = _normalized(b_chunk, mean, rstd, i, C, BLOCK_C)
    return b_chunk


@triton.jit
def _attended(p_mask, o_n, m_n, stride_mask, MASK: tl.constexpr):
    """Which regions of a tile may be attended."""
    if MASK:
        m_n = tl.load(p_mask + o_n.to(tl.int64) * stride_mask, mask=m_n, other=0) != 0
    return m_n


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
    ALIGN: tl.constexpr,
    POSITION: tl.constexpr,
    MASK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCORES: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of one frame over the regions of one split.

    Writes, for split s, the output normalised over that split alone to output[s,F,M,C]; the highest score h of each row
    and Σ exp(score - h) to softmax[s,F,M,2]; with SCORES also the scores, -inf where masked, to scores[F,M,N].
    """
    row_blocks = tl.cdiv(M, BLOCK_M)
    split = tl.program_id(0) % splits
    row_block = (tl.program_id(0) // splits) % row_blocks
    frame = (tl.program_id(0) // (splits * row_blocks)).to(tl.int64)
    frames = tl.num_programs(0) // (splits * row_blocks)

    o_m = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    p_queries += frame * stride_query_frame * ALIGN
    queries = _view(p_queries, o_m, m_m, stride_query_row, ALIGN)
    b_q = ()
    if HOLD:
        b_q = _rows(queries, C, BLOCK_C, CHUNKS)
    p_regions += frame * stride_region_frame * ALIGN
    if MASK:
        p_mask += frame * stride_mask_frame

    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_output = ()
    for i in tl.static_range(CHUNKS):
        b_output = b_output + (tl.zeros([BLOCK_M, BLOCK_C], tl.float32),)

    end = tl.minimum((split + 1) * regions_a_split, N)
    for start in range(split * regions_a_split, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = _attended(p_mask, o_n, o_n < end, stride_mask, MASK)
        regions = _view(p_regions, o_n, m_n, stride_region, ALIGN)
        positions = regions
        if POSITION:
            positions = _view(p_position, o_n, m_n, stride_position, ALIGN)
        b_x, mean, rstd = _tile(regions, eps, NORMALIZE, HOLD, C, BLOCK_C, CHUNKS)
        b_scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if HOLD:
            for i in tl.static_range(CHUNKS):
                b_key = b_x[i]
                if POSITION:
                    b_key += _load(positions, i, C, BLOCK_C)
                b_scores = tl.dot(b_q[i], tl.trans(b_key), b_scores, input_precision=PRECISION)
        else:
            for k in range(CHUNKS):
                b_key = _value(regions, b_x, mean, rstd, k, NORMALIZE, HOLD, C, BLOCK_C)
                if POSITION:
                    b_key += _load(positions, k, C, BLOCK_C)
                b_qk = _load(queries, k, C, BLOCK_C)
                b_scores = tl.dot(b_qk, tl.trans(b_key), b_scores, input_precision=PRECISION)
        b_scores = tl.where(m_n[None, :], b_scores * scale, float("-inf"))
        if SCORES:
            p_row = p_scores + (frame * M + o_m[:, None]) * N + o_n[None, :]
            tl.store(p_row, b_scores, mask=m_m[:, None] & (o_n < end)[None, :])

        b_highest = tl.maximum(b_max, tl.max(b_scores, 1))
        b_shift = tl.where(b_highest == float("-inf"), 0.0, b_highest)  # nothing to attend yet: 0 and not inf - inf
        b_weights = tl.exp(b_scores - b_shift[:, None])
        b_decay = tl.exp(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1)
        b_max = b_highest
        b_weights = b_weights.to(p_regions.dtype.element_ty)
        b_next = ()
        for i in tl.static_range(CHUNKS):
            b_kept = b_output[i] * b_decay[:, None]
            b_xi = _value(regions, b_x, mean, rstd, i, NORMALIZE, HOLD, C, BLOCK_C)
            b_next = b_next + (tl.dot(b_weights, b_xi, b_kept, input_precision=PRECISION),)
        b_output = b_next

    row = (split * frames + frame) * M + o_m  # int64
    b_inverse = tl.where(b_sum > 0, 1.0 / b_sum, 0.0)
    for i in tl.static_range(CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        b_out = (b_output[i] * b_inverse[:, None]).to(p_output.dtype.element_ty)
        tl.store(p_output + row[:, None] * C + o_c[None, :], b_out, mask=m_m[:, None] & (o_c < C)[None, :])
    tl.store(p_softmax + 2 * row, b_max, mask=m_m)
    tl.store(p_softmax + 2 * row + 1, b_sum, mask=m_m)


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


@triton.jit
def _products(
    queries, grads, regions, positions, b_q, b_do, b_x, mean, rstd, C: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, POSITION: tl.constexpr,
    NORMALIZE: tl.constexpr, HOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a block of rows and a tile: q (x + position)ᵀ, q xᵀ and do xᵀ [BLOCK_M, BLOCK_N], the second for the
    normalisation only; Σ_c q and Σ_c do [BLOCK_M]."""
    b_qx = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_dox = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_q_sum, b_do_sum = tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    if HOLD:
        for i in tl.static_range(CHUNKS):
            b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _add_products(
                b_scores, b_qx, b_dox, b_q_sum, b_do_sum, b_q[i], b_do[i], b_x[i], positions, i, C, BLOCK_C,
                POSITION, NORMALIZE, PRECISION,
            )  # fmt: skip
    else:
        for k in range(CHUNKS):
            b_xk = _value(regions, b_x, mean, rstd, k, NORMALIZE, HOLD, C, BLOCK_C)
            b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _add_products(
                b_scores, b_qx, b_dox, b_q_sum, b_do_sum, _load(queries, k, C, BLOCK_C), _load(grads, k, C, BLOCK_C),
                b_xk, positions, k, C, BLOCK_C, POSITION, NORMALIZE, PRECISION,
            )  # fmt: skip
    if not POSITION:
        b_qx = b_scores
    return b_scores, b_qx, b_dox, b_q_sum, b_do_sum


@triton.jit
def _add_products(
    b_scores, b_qx, b_dox, b_q_sum, b_do_sum, b_q, b_do, b_x, positions, i, C: tl.constexpr, BLOCK_C: tl.constexpr,
    POSITION: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of :func:`_products` with chunk i added."""
    b_key = b_x
    if POSITION:
        b_key += _load(positions, i, C, BLOCK_C)
        if NORMALIZE:
            b_qx = tl.dot(b_q, tl.trans(b_x), b_qx, input_precision=PRECISION)
    b_scores = tl.dot(b_q, tl.trans(b_key), b_scores, input_precision=PRECISION)
    b_dox = tl.dot(b_do, tl.trans(b_x), b_dox, input_precision=PRECISION)
    if NORMALIZE:
        b_q_sum += tl.sum(b_q.to(tl.float32), 1)
        b_do_sum += tl.sum(b_do.to(tl.float32), 1)
    return b_scores, b_qx, b_dox, b_q_sum, b_do_sum


@triton.jit
def _weights(
    b_scores, b_dox, p_softmax, p_delta, p_grad_map, p_grad_scores, row, m_m, m_n, N, o_n, scale,
    GRAD_MAP: tl.constexpr, GRAD_SCORES: tl.constexpr,
):  # fmt: skip
    """The weights and the gradient of q (x + position)ᵀ, [BLOCK_M, BLOCK_N] in float32."""
    # Highest score and sum, as the softmax takes them, and not the logarithm of the sum, which would cost a digit.
    b_highest = tl.load(p_softmax + 2 * row, mask=m_m, other=0.0)
    b_total = tl.load(p_softmax + 2 * row + 1, mask=m_m, other=0.0)
    b_inverse = tl.where(b_total > 0, 1.0 / b_total, 0.0)  # a row with nothing to attend: all weights are 0
    b_delta = tl.load(p_delta + row, mask=m_m, other=0.0)
    m_pair = m_m[:, None] & m_n[None, :]
    b_weights = tl.where(m_pair, tl.exp(b_scores * scale - b_highest[:, None]) * b_inverse[:, None], 0.0)
    o_pair = row[:, None] * N + o_n[None, :]
    if GRAD_MAP:
        b_dox += tl.load(p_grad_map + o_pair, mask=m_pair, other=0.0).to(tl.float32)
    b_ds = b_weights * (b_dox - b_delta[:, None]) * scale
    if GRAD_SCORES:
        m_stored = m_m[:, None] & (o_n < N)[None, :]
        tl.store(p_grad_scores + o_pair, b_ds.to(p_grad_scores.dtype.element_ty), mask=m_stored)
    return b_weights, b_ds


@triton.jit
def _norm_sums(b_p, b_ds, b_qx, b_dox, b_q_sum, b_do_sum):
    """Σ_c dx̂ and Σ_c dx̂ x̂ of each region, for dx̂ = dsᵀ q + pᵀ do, from sums over c that are there already."""
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
    HOLD: tl.constexpr,
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
    p_grad_queries += (split * frames + frame) * M * C
    if GRAD_REGIONS:
        p_grad_regions += frame * N * C
    if MASK:
        p_mask += frame * stride_mask_frame
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < M
    queries = _view(p_queries, o_m, m_m, stride_query_row, ALIGN)
    grads = _view(p_grad_output, o_m, m_m, C, 1)

    b_dq = ()
    for i in tl.static_range(CHUNKS):
        b_dq = b_dq + (tl.zeros([BLOCK_M, BLOCK_C], tl.float32),)

    begin = split * regions_a_split
    end = tl.minimum(begin + regions_a_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_stored = o_n < end
        m_n = _attended(p_mask, o_n, m_stored, stride_mask, MASK)
        regions = _view(p_regions, o_n, m_n, stride_region, ALIGN)
        positions = regions
        if POSITION:
            positions = _view(p_position, o_n, m_n, stride_position, ALIGN)
        b_x, mean, rstd = _tile(regions, eps, NORMALIZE, HOLD, C, BLOCK_C, CHUNKS)
        b_q, b_do = (), ()
        if HOLD:
            b_q, b_do = _rows(queries, C, BLOCK_C, CHUNKS), _rows(grads, C, BLOCK_C, CHUNKS)
        b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _products(
            queries, grads, regions, positions, b_q, b_do, b_x, mean, rstd, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS,
            POSITION, NORMALIZE, HOLD, PRECISION,
        )  # fmt: skip
        b_p, b_ds = _weights(
            b_scores, b_dox, p_softmax, p_delta, p_grad_map, p_grad_scores, frame * M + o_m, m_m, m_n, N, o_n, scale,
            GRAD_MAP, GRAD_SCORES,
        )  # fmt: skip
        b_p, b_ds = b_p.to(p_regions.dtype.element_ty), b_ds.to(p_regions.dtype.element_ty)
        b_sum, b_product = 0.0, 0.0
        if GRAD_REGIONS and NORMALIZE:
            b_sum, b_product = _norm_sums(b_p, b_ds, b_qx, b_dox, b_q_sum, b_do_sum)
        b_next = ()
        for i in tl.static_range(CHUNKS):
            b_xi = _value(regions, b_x, mean, rstd, i, NORMALIZE, HOLD, C, BLOCK_C)
            if GRAD_REGIONS:
                b_qi = _chunk(queries, b_q, i, HOLD, C, BLOCK_C)
                b_doi = _chunk(grads, b_do, i, HOLD, C, BLOCK_C)
                b_dx = tl.dot(tl.trans(b_ds), b_qi, input_precision=PRECISION)
                b_dx = tl.dot(tl.trans(b_p), b_doi, b_dx, input_precision=PRECISION)
                _store_gradient(
                    p_grad_regions, b_dx, b_xi, b_sum, b_product, rstd, o_n, m_stored, m_n, i, C, BLOCK_C, NORMALIZE
                )
            b_key = b_xi
            if POSITION:
                b_key += _load(positions, i, C, BLOCK_C)
            b_next = b_next + (tl.dot(b_ds, b_key, b_dq[i], input_precision=PRECISION),)
        b_dq = b_next

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
    p_grad_queries += (split * frames + frame) * M * C
    if GRAD_REGIONS:
        p_grad_regions += frame * N * C
    if MASK:
        p_mask += frame * stride_mask_frame

    begin = split * regions_a_split
    end = tl.minimum(begin + regions_a_split, N)
    for start in range(begin, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_stored = o_n < end
        m_n = _attended(p_mask, o_n, m_stored, stride_mask, MASK)
        regions = _view(p_regions, o_n, m_n, stride_region, ALIGN)
        positions = regions
        if POSITION:
            positions = _view(p_position, o_n, m_n, stride_position, ALIGN)
        b_x, mean, rstd = _tile(regions, eps, NORMALIZE, False, C, BLOCK_C, CHUNKS)
        b_sum, b_product = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        b_dx = ()
        for i in tl.static_range(CHUNKS if GRAD_REGIONS else 0):
            b_dx = b_dx + (tl.zeros([BLOCK_N, BLOCK_C], tl.float32),)

        for first_row in range(0, M, BLOCK_M):
            o_m = first_row + tl.arange(0, BLOCK_M)
            m_m = o_m < M
            queries = _view(p_queries, o_m, m_m, stride_query_row, ALIGN)
            grads = _view(p_grad_output, o_m, m_m, C, 1)
            b_scores, b_qx, b_dox, b_q_sum, b_do_sum = _products(
                queries, grads, regions, positions, (), (), b_x, mean, rstd, C, BLOCK_M, BLOCK_N, BLOCK_C, CHUNKS,
                POSITION, NORMALIZE, False, PRECISION,
            )  # fmt: skip
            b_p, b_ds = _weights(
                b_scores, b_dox, p_softmax, p_delta, p_grad_map, p_grad_scores, frame * M + o_m, m_m, m_n, N, o_n,
                scale, GRAD_MAP, GRAD_SCORES,
            )  # fmt: skip
            b_p, b_ds = b_p.to(p_regions.dtype.element_ty), b_ds.to(p_regions.dtype.element_ty)
            if GRAD_REGIONS and NORMALIZE:
                b_more, b_more_product = _norm_sums(b_p, b_ds, b_qx, b_dox, b_q_sum, b_do_sum)
                b_sum += b_more
                b_product += b_more_product
            b_next = ()
            for i in tl.static_range(CHUNKS if GRAD_REGIONS else 0):
                b_next_dx = tl.dot(tl.trans(b_ds), _load(queries, i, C, BLOCK_C), b_dx[i], input_precision=PRECISION)
                b_doi = _load(grads, i, C, BLOCK_C)
                b_next = b_next + (tl.dot(tl.trans(b_p), b_doi, b_next_dx, input_precision=PRECISION),)
            m_later = m_m & (tl.zeros_like(o_m) + start > begin)  # the first tile finds nothing yet
            for k in range(CHUNKS):
                o_c = k * BLOCK_C + tl.arange(0, BLOCK_C)
                p_dq = p_grad_queries + o_m[:, None].to(tl.int64) * C + o_c[None, :]
                b_dq = tl.load(p_dq, mask=m_later[:, None] & (o_c < C)[None, :], other=0.0)
                b_key = _value(regions, b_x, mean, rstd, k, NORMALIZE, False, C, BLOCK_C)
                if POSITION:
                    b_key += _load(positions, k, C, BLOCK_C)
                b_dq = tl.dot(b_ds, b_key, b_dq, input_precision=PRECISION)
                tl.store(p_dq, b_dq, mask=m_m[:, None] & (o_c < C)[None, :])
            if GRAD_REGIONS:
                b_dx = b_next

        for i in tl.static_range(CHUNKS if GRAD_REGIONS else 0):
            b_xi = _value(regions, b_x, mean, rstd, i, NORMALIZE, False, C, BLOCK_C)
            _store_gradient(
                p_grad_regions, b_dx[i], b_xi, b_sum, b_product, rstd, o_n, m_stored, m_n, i, C, BLOCK_C, NORMALIZE
            )
