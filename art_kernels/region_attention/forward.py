"""Triton forward kernels of region attention, and the tile helpers that the backward kernels share.

Each tile of regions is read once and used as keys, as values and for its LayerNorm statistics.

Sizes: F frames, M query rows, N regions, C channels. A program keeps a [BLOCK_M, C] block of rows and loops over tiles
of [BLOCK_N, C] regions. C is divided into CHUNKS of BLOCK_C channels, kept as tuples of blocks, because the compiler
spills a single [16, 1024] accumulator: scores are summed over the chunks, outputs are kept per chunk.

If a tile does not fit into registers (KEEP_IN_REGS=False), its chunks are reread from cache, in loops that are not
unrolled: in an unrolled loop the compiler hoists all loads and keeps their results in registers anyway. If even the
accumulators do not fit, CHANNEL_SPLITS programs divide the chunks of a result: each computes the scores over all
channels and accumulates its own chunks.

Naming and strides: see :mod:`art_kernels._core.rows`.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, load_rows, rows_at, store_chunk, zeros

#: Parameters that do not specialize a compiled variant: a new batch size or clip length needs no recompilation.
SIZES = [
    "M", "N", "regions_per_split", "splits", "stride_query_frame", "stride_query_row", "stride_region_frame",
    "stride_region", "stride_position_frame", "stride_position", "stride_mask_frame", "stride_mask", "attn_mask_rows",
    "stride_attn_mask_frame", "stride_attn_mask_row",
]  # fmt: skip


@triton.jit
def chunk(
    view, kept, i, k, KEEP_IN_REGS: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Return chunk i of the chunks kept in registers, or else load chunk k of the view, usually from cache."""
    if KEEP_IN_REGS:
        b_chunk = kept[i]
    else:
        b_chunk = load_chunk(view, k, C, BLOCK_C, CHUNKS)
    return b_chunk


@triton.jit
def _centered(b_chunk, mean, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Subtract the mean of each row from chunk k, in float32; channels beyond C stay zero."""
    centered = b_chunk.to(tl.float32) - mean[:, None]
    if C < CHUNKS * BLOCK_C:
        centered = tl.where((tl.arange(0, BLOCK_C) < C - k * BLOCK_C)[None, :], centered, 0.0)
    return centered


@triton.jit
def _squares(b_chunk, mean, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    centered = _centered(b_chunk, mean, k, C, BLOCK_C, CHUNKS)
    return tl.sum(centered * centered, 1)


@triton.jit
def _statistics(
    view, kept, eps, KEEP_IN_REGS: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Return the mean and 1 / standard deviation of each row, in two passes over the tile to avoid cancellation."""
    mean = tl.sum(chunk(view, kept, 0, 0, KEEP_IN_REGS, C, BLOCK_C, CHUNKS).to(tl.float32), 1)
    variance = tl.zeros_like(mean)
    if KEEP_IN_REGS:
        for i in tl.static_range(1, CHUNKS):
            mean += tl.sum(kept[i].to(tl.float32), 1)
        mean = mean / C
        for i in tl.static_range(CHUNKS):
            variance += _squares(kept[i], mean, i, C, BLOCK_C, CHUNKS)
    else:
        for k in range(1, CHUNKS):
            mean += tl.sum(load_chunk(view, k, C, BLOCK_C, CHUNKS).to(tl.float32), 1)
        mean = mean / C
        for k in range(CHUNKS):
            variance += _squares(load_chunk(view, k, C, BLOCK_C, CHUNKS), mean, k, C, BLOCK_C, CHUNKS)
    return mean, 1.0 / tl.sqrt(variance / C + eps)


@triton.jit
def _normalized(b_chunk, mean, rstd, k, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Normalize chunk k, in its own dtype."""
    return (_centered(b_chunk, mean, k, C, BLOCK_C, CHUNKS) * rstd[:, None]).to(b_chunk.dtype)


@triton.jit
def tile_at(
    p_regions, p_position, p_mask, frame, start, end, stride_region, stride_position_frame, stride_position,
    stride_mask, eps, C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr, POSITION: tl.constexpr, MASK: tl.constexpr, NORMALIZE: tl.constexpr,
    KEEP_IN_REGS: tl.constexpr,
):  # fmt: skip
    """Prepare the tile of regions that begins at `start`.

    Returns the indices of its regions; the mask of regions that may be attended; views of the regions and of their
    positions; the chunks kept in registers (empty without KEEP_IN_REGS), normalized with NORMALIZE; and the mean and
    1 / standard deviation of each region.
    """
    o_n = start + tl.arange(0, BLOCK_N)
    m_n = o_n < end
    if MASK:
        m_n = tl.load(p_mask + o_n.to(tl.int64) * stride_mask, mask=m_n, other=0) != 0
    regions = rows_at(p_regions, o_n, m_n, stride_region, ALIGN)
    positions = regions
    if POSITION:
        positions = rows_at(p_position + frame * stride_position_frame * ALIGN, o_n, m_n, stride_position, ALIGN)
    kept, mean, rstd = (), 0.0, 0.0
    if KEEP_IN_REGS:
        kept = load_rows(regions, C, BLOCK_C, CHUNKS)
    if NORMALIZE:
        mean, rstd = _statistics(regions, kept, eps, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
        if KEEP_IN_REGS:
            chunks = ()
            for i in tl.static_range(CHUNKS):
                chunks = chunks + (_normalized(kept[i], mean, rstd, i, C, BLOCK_C, CHUNKS),)
            kept = chunks
    return o_n, m_n, regions, positions, kept, mean, rstd


@triton.jit
def value(
    view, kept, mean, rstd, i, k, NORMALIZE: tl.constexpr, KEEP_IN_REGS: tl.constexpr, C: tl.constexpr,
    BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Return a chunk of the values of a tile: chunk i if kept in registers, otherwise chunk k from memory."""
    b_chunk = chunk(view, kept, i, k, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
    if NORMALIZE and not KEEP_IN_REGS:
        b_chunk = _normalized(b_chunk, mean, rstd, k, C, BLOCK_C, CHUNKS)
    return b_chunk


@triton.jit
def key(b_value, positions, k, POSITION: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr):
    """Return chunk k of the keys: the values plus their positions, if any."""
    if POSITION:
        b_value += load_chunk(positions, k, C, BLOCK_C, CHUNKS)
    return b_value


@triton.jit
def mask_pairs(
    b_scores, p_attn_mask, frame, o_m, m_m, o_n, m_n, attn_mask_rows, stride_attn_mask_frame, stride_attn_mask_row,
    ATTN_MASK: tl.constexpr,
):  # fmt: skip
    """Apply the mask of each pair to scaled scores: none (ATTN_MASK=0), bool (1) or additive (2).

    Pairs that may not be attended get -inf.
    """
    if ATTN_MASK != 0:
        o_row = frame * stride_attn_mask_frame + (o_m % attn_mask_rows).to(tl.int64) * stride_attn_mask_row
        p_pair = p_attn_mask + o_row[:, None] + o_n[None, :]
        m_pair = m_m[:, None] & m_n[None, :]
        if ATTN_MASK == 1:
            b_scores = tl.where(tl.load(p_pair, mask=m_pair, other=0) != 0, b_scores, float("-inf"))
        else:
            b_scores += tl.load(p_pair, mask=m_pair, other=0.0).to(tl.float32)
    return b_scores


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_queries,
    p_regions,
    p_position,
    p_mask,
    p_attn_mask,
    p_output,
    p_softmax,
    p_scores,
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
    SCORES: tl.constexpr,
    KEEP_IN_REGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend from one block of rows of a frame to the regions of one split, with an online softmax over tiles.

    Writes the output, normalized over split s alone, to output[s,F,M,C], only the chunks of this channel split; the
    maximum score m of each row and Σ exp(score - m) to softmax[s,F,M,2]; and with SCORES the scores, -inf if masked, to
    scores[F,M,N].
    """
    OWN_CHUNKS: tl.constexpr = CHUNKS // CHANNEL_SPLITS
    channel_split = tl.program_id(0) % CHANNEL_SPLITS
    first = channel_split * OWN_CHUNKS
    split = (tl.program_id(0) // CHANNEL_SPLITS) % splits
    row_blocks = tl.cdiv(M, BLOCK_M)
    row_block = (tl.program_id(0) // (CHANNEL_SPLITS * splits)) % row_blocks
    frame = (tl.program_id(0) // (CHANNEL_SPLITS * splits * row_blocks)).to(tl.int64)
    frames = tl.num_programs(0) // (CHANNEL_SPLITS * splits * row_blocks)

    o_m = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    queries = rows_at(p_queries + frame * stride_query_frame * ALIGN, o_m, m_m, stride_query_row, ALIGN)
    b_q = ()
    if KEEP_IN_REGS:
        b_q = load_rows(queries, C, BLOCK_C, CHUNKS)
    p_regions += frame * stride_region_frame * ALIGN
    if MASK:
        p_mask += frame * stride_mask_frame

    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_output = zeros(OWN_CHUNKS, BLOCK_M, BLOCK_C)

    end = tl.minimum((split + 1) * regions_per_split, N)
    for start in range(split * regions_per_split, end, BLOCK_N):
        o_n, m_n, regions, positions, b_x, mean, rstd = tile_at(
            p_regions, p_position, p_mask, frame, start, end, stride_region, stride_position_frame, stride_position,
            stride_mask, eps, C, BLOCK_N, BLOCK_C, CHUNKS, ALIGN, POSITION, MASK, NORMALIZE, KEEP_IN_REGS,
        )  # fmt: skip
        b_scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if KEEP_IN_REGS:
            for i in tl.static_range(CHUNKS):
                b_key = key(b_x[i], positions, i, POSITION, C, BLOCK_C, CHUNKS)
                b_scores = tl.dot(b_q[i], tl.trans(b_key), b_scores, input_precision=PRECISION)
        else:
            for k in range(CHUNKS):
                b_xk = value(regions, b_x, mean, rstd, 0, k, NORMALIZE, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
                b_key = key(b_xk, positions, k, POSITION, C, BLOCK_C, CHUNKS)
                b_qk = load_chunk(queries, k, C, BLOCK_C, CHUNKS)
                b_scores = tl.dot(b_qk, tl.trans(b_key), b_scores, input_precision=PRECISION)
        b_scores = mask_pairs(
            b_scores * scale, p_attn_mask, frame, o_m, m_m, o_n, m_n, attn_mask_rows, stride_attn_mask_frame,
            stride_attn_mask_row, ATTN_MASK,
        )  # fmt: skip
        b_scores = tl.where(m_n[None, :], b_scores, float("-inf"))
        if SCORES:
            p_row = p_scores + (frame * M + o_m[:, None]) * N + o_n[None, :]
            tl.store(p_row, b_scores, mask=m_m[:, None] & (o_n < end)[None, :] & (channel_split == 0))

        b_highest = tl.maximum(b_max, tl.max(b_scores, 1))
        b_shift = tl.where(b_highest == float("-inf"), 0.0, b_highest)  # all masked so far: 0 instead of inf - inf
        b_weights = tl.exp(b_scores - b_shift[:, None])
        b_decay = tl.exp(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1)
        b_max = b_highest
        b_weights = b_weights.to(p_regions.dtype.element_ty)
        b_next = ()
        for i in tl.static_range(OWN_CHUNKS):
            b_scaled = b_output[i] * b_decay[:, None]
            b_xi = value(regions, b_x, mean, rstd, i, first + i, NORMALIZE, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
            b_next = b_next + (tl.dot(b_weights, b_xi, b_scaled, input_precision=PRECISION),)
        b_output = b_next

    row = (split * frames + frame) * M + o_m  # int64
    output = rows_at(p_output, row, m_m, C, 1)
    b_total = tl.where(b_sum > 0, b_sum, 1.0)  # a fully masked row is zero
    for i in tl.static_range(OWN_CHUNKS):
        store_chunk(output, first + i, b_output[i] / b_total[:, None], C, BLOCK_C, CHUNKS)
    tl.store(p_softmax + 2 * row, b_max, mask=m_m & (channel_split == 0))
    tl.store(p_softmax + 2 * row + 1, b_sum, mask=m_m & (channel_split == 0))


@triton.jit(do_not_specialize=["rows", "splits"])
def combine_kernel(
    p_partial, p_partial_softmax, p_output, p_softmax, rows, splits, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Combine the splits of one row: partial[splits, rows, C] and softmax[splits, rows, 2]."""
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
        weight = tl.exp(tl.load(p_split) - shift) * tl.load(p_split + 1)
        total += weight
        b_output += weight * tl.load(p_partial + (split * rows + row) * C + o_c, mask=o_c < C, other=0.0)
    b_output = tl.where(total > 0, b_output / total, 0.0)
    tl.store(p_output + row * C + o_c, b_output.to(p_output.dtype.element_ty), mask=o_c < C)
    if tl.program_id(1) == 0:
        tl.store(p_softmax + 2 * row, highest)
        tl.store(p_softmax + 2 * row + 1, total)
