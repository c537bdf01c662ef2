"""Triton kernels of the multilevel tracklet contrastive loss: the terms and the gradient of each, in one pass.

Sizes: B videos, T frames, K tracklets, C channels. The rows of a block are whole frames of one video. All cosines of a
frame come from one small matrix product that stays in registers. The kernels loop over the channels twice, for the
products and for the gradients; the second time they are in cache.

The backward pass reads the gradient of each term's *sum*, so it is a weighted sum for any weights of the terms, and
small gradients do not underflow in 16 bits.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import TINY, load_chunk, rows_at, store_chunk

#: Arguments without value specialization, so that other sizes do not recompile.
SIZES = [
    "T", "K", "frames_per_block", "stride_video", "stride_frame", "stride_tracklet", "stride_valid_video",
    "stride_valid_frame",
]  # fmt: skip


@triton.jit
def frames_exist(p_valid, o_t, m_t, T, stride_valid_frame, VALID: tl.constexpr):
    """Return which frames exist and are valid."""
    m_t = m_t & (o_t >= 0) & (o_t < T)
    if VALID:
        m_t = m_t & (tl.load(p_valid + o_t.to(tl.int64) * stride_valid_frame, mask=m_t, other=0) != 0)
    return m_t


@triton.jit
def inverse_norms(b_squares):
    """Return 1 / norm of each row, and 0 for a zero vector, whose cosines and gradient become 0."""
    return tl.where(b_squares < TINY, 0.0, 1.0 / tl.sqrt(tl.where(b_squares < TINY, 1.0, b_squares)))


@triton.jit
def repelled(b_products, b_inverse, m_pair, CLAMP: tl.constexpr):
    """Return which of the masked pairs repel each other, as 0 or 1 in float32, and the sum of each row's cosines."""
    b_cosines = b_products * b_inverse[:, None] * b_inverse[None, :]
    if CLAMP:
        m_pair = m_pair & (b_cosines > 0)
    return tl.where(m_pair, 1.0, 0.0), tl.sum(tl.where(m_pair, b_cosines, 0.0), 1)


@triton.jit
def repulsion_gradient(b_x, b_inverse, b_repelled, b_row_cosines, PRECISION: tl.constexpr):
    """Return a chunk of the gradient of Σ_i≠j ⟨r_i, r_j⟩: 2 (Σ_j û_j - Σ_j ⟨r_i, r_j⟩ û_i) / |r_i|, û the unit vectors.

    The product uses unit vectors, not responses with 1 / norms in the matrix, which would underflow in 16 bits.
    """
    b_units = b_x.to(tl.float32) * b_inverse[:, None]
    b_sum = tl.dot(b_repelled.to(b_x.dtype), b_units.to(b_x.dtype), input_precision=PRECISION)
    return 2 * b_inverse[:, None] * (b_sum - b_row_cosines[:, None] * b_units)


@triton.jit
def _attracted(b_products, b_inverse, b_other_inverse, m_step, margin, ABSOLUTE: tl.constexpr):
    """Return the cosine with an adjacent frame, the shortfall, and its negative derivative by the cosine."""
    b_cosines = b_products * b_inverse * b_other_inverse
    b_shortfall = margin - b_cosines
    if ABSOLUTE:
        b_pull = tl.where(b_shortfall > 0, 1.0, tl.where(b_shortfall < 0, -1.0, 0.0))
        b_shortfall = tl.abs(b_shortfall)
    else:
        b_pull = tl.where(b_shortfall > 0, 1.0, 0.0)
        b_shortfall = tl.maximum(b_shortfall, 0.0)
    return b_cosines, tl.where(m_step, b_shortfall, 0.0), tl.where(m_step, b_pull, 0.0)


@triton.jit(do_not_specialize=SIZES)
def levels_kernel(
    p_responses,
    p_valid,
    p_spatial_grad,
    p_temporal_grad,
    p_partial,
    margin,
    T,
    K,
    frames_per_block,
    stride_video,
    stride_frame,
    stride_tracklet,
    stride_valid_video,
    stride_valid_frame,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr,
    VALID: tl.constexpr,
    TEMPORAL: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    CLAMP: tl.constexpr,
    GRADIENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the spatial and temporal terms of a block of frames; with T = 1, the tracklet term of pooled tracklets.

    Writes the sums of the spatial and the temporal term, the number of frames and of pairs of frames to
    partial[programs,4], and with GRADIENTS the gradients of the two sums to spatial_grad and temporal_grad [B,T,K,C].
    """
    blocks = tl.cdiv(T, frames_per_block)
    video = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * frames_per_block
    o_r = tl.arange(0, BLOCK_R)
    o_t, o_k = first + o_r // K, o_r % K
    m_r = (o_r < frames_per_block * K) & (o_t < T)
    if VALID:
        p_valid += video * stride_valid_video
    m_here = frames_exist(p_valid, o_t, m_r, T, stride_valid_frame, VALID)
    p_responses += video * stride_video * ALIGN
    o_here = o_t.to(tl.int64) * stride_frame + o_k * stride_tracklet
    here = rows_at(p_responses, o_here, m_here, 1, ALIGN)
    if TEMPORAL:
        m_next = frames_exist(p_valid, o_t + 1, m_here, T, stride_valid_frame, VALID)
        m_last = frames_exist(p_valid, o_t - 1, m_here, T, stride_valid_frame, VALID)
        following = rows_at(p_responses, o_here + stride_frame, m_next, 1, ALIGN)
        preceding = rows_at(p_responses, o_here - stride_frame, m_last, 1, ALIGN)

    b_products = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    b_squares = tl.zeros([BLOCK_R], tl.float32)
    b_next, b_next_squares = tl.zeros([BLOCK_R], tl.float32), tl.zeros([BLOCK_R], tl.float32)
    b_last, b_last_squares = tl.zeros([BLOCK_R], tl.float32), tl.zeros([BLOCK_R], tl.float32)
    for k in range(CHUNKS):
        b_x = load_chunk(here, k, C, BLOCK_C, CHUNKS)
        b_products = tl.dot(b_x, tl.trans(b_x), b_products, input_precision=PRECISION)
        b_x = b_x.to(tl.float32)
        b_squares += tl.sum(b_x * b_x, 1)
        if TEMPORAL:
            b_y = load_chunk(following, k, C, BLOCK_C, CHUNKS).to(tl.float32)
            b_next += tl.sum(b_x * b_y, 1)
            b_next_squares += tl.sum(b_y * b_y, 1)
            b_y = load_chunk(preceding, k, C, BLOCK_C, CHUNKS).to(tl.float32)
            b_last += tl.sum(b_x * b_y, 1)
            b_last_squares += tl.sum(b_y * b_y, 1)

    b_inverse = inverse_norms(b_squares)
    m_pair = (o_t[:, None] == o_t[None, :]) & (o_k[:, None] != o_k[None, :]) & m_here[:, None] & m_here[None, :]
    b_repelled, b_row_cosines = repelled(b_products, b_inverse, m_pair, CLAMP)
    m_once = o_k == 0  # one row per frame
    p_partial += 4 * tl.program_id(0).to(tl.int64)
    tl.store(p_partial, tl.sum(b_row_cosines, 0))
    tl.store(p_partial + 2, tl.sum(tl.where(m_here & m_once, 1.0, 0.0), 0))
    if TEMPORAL:
        b_next_inverse, b_last_inverse = inverse_norms(b_next_squares), inverse_norms(b_last_squares)
        b_next, b_shortfall, b_next_pull = _attracted(b_next, b_inverse, b_next_inverse, m_next, margin, ABSOLUTE)
        b_last, _, b_last_pull = _attracted(b_last, b_inverse, b_last_inverse, m_last, margin, ABSOLUTE)
        b_own = b_next_pull * b_next + b_last_pull * b_last
        b_next_pull, b_last_pull = b_next_pull * b_next_inverse, b_last_pull * b_last_inverse
        tl.store(p_partial + 1, tl.sum(b_shortfall, 0))
        tl.store(p_partial + 3, tl.sum(tl.where(m_next & m_once, 1.0, 0.0), 0))

    if GRADIENTS:
        o_out = (video * T + o_t) * K + o_k
        spatial_grad = rows_at(p_spatial_grad, o_out, m_r, C, 1)
        if TEMPORAL:
            temporal_grad = rows_at(p_temporal_grad, o_out, m_r, C, 1)
        for k in range(CHUNKS):
            b_x = load_chunk(here, k, C, BLOCK_C, CHUNKS)
            b_grad = repulsion_gradient(b_x, b_inverse, b_repelled, b_row_cosines, PRECISION)
            store_chunk(spatial_grad, k, b_grad, C, BLOCK_C, CHUNKS)
            if TEMPORAL:
                b_grad = (b_own * b_inverse)[:, None] * b_x.to(tl.float32)
                b_grad -= b_next_pull[:, None] * load_chunk(following, k, C, BLOCK_C, CHUNKS).to(tl.float32)
                b_grad -= b_last_pull[:, None] * load_chunk(preceding, k, C, BLOCK_C, CHUNKS).to(tl.float32)
                store_chunk(temporal_grad, k, b_grad * b_inverse[:, None], C, BLOCK_C, CHUNKS)


@triton.jit
def _frame(
    p_responses, p_valid, t, o_k, m_k, T, stride_frame, stride_tracklet, stride_valid_frame, ALIGN: tl.constexpr,
    VALID: tl.constexpr,
):  # fmt: skip
    """Return the rows of frame t; all masked if it is invalid."""
    m_row = frames_exist(p_valid, tl.zeros_like(o_k) + t, m_k, T, stride_valid_frame, VALID)
    o_row = (tl.zeros_like(o_k) + t).to(tl.int64) * stride_frame + o_k * stride_tracklet
    return rows_at(p_responses, o_row, m_row, 1, ALIGN)


@triton.jit(do_not_specialize=[*SIZES, "splits"])
def flattened_kernel(
    p_responses,
    p_valid,
    p_tracklet_grad,
    p_partial,
    T,
    K,
    frames_per_block,
    splits,
    stride_video,
    stride_frame,
    stride_tracklet,
    stride_valid_video,
    stride_valid_frame,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr,
    VALID: tl.constexpr,
    CLAMP: tl.constexpr,
    GRADIENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the tracklet term of one video's flattened tracklets, and the gradient of one split of its frames.

    The dot products of flattened tracklets are summed over time, by every split. The first split writes the sum of the
    cosines and whether the video has a valid frame to columns 0 and 2 of partial[programs,4]; the others write zeros.
    With GRADIENTS, writes the gradient of the sum to tracklet_grad[B,T,K,C].
    """
    split = tl.program_id(0) % splits
    video = (tl.program_id(0) // splits).to(tl.int64)
    o_k = tl.arange(0, BLOCK_R)
    m_k = o_k < K
    if VALID:
        p_valid += video * stride_valid_video
    p_responses += video * stride_video * ALIGN

    b_products = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    b_squares = tl.zeros([BLOCK_R], tl.float32)
    frames = 0.0
    for t in range(T):
        here = _frame(
            p_responses, p_valid, t, o_k, m_k, T, stride_frame, stride_tracklet, stride_valid_frame, ALIGN, VALID
        )
        frames += tl.max(tl.where(here[1], 1.0, 0.0))
        for k in range(CHUNKS):
            b_x = load_chunk(here, k, C, BLOCK_C, CHUNKS)
            b_products = tl.dot(b_x, tl.trans(b_x), b_products, input_precision=PRECISION)
            b_x = b_x.to(tl.float32)
            b_squares += tl.sum(b_x * b_x, 1)

    b_inverse = inverse_norms(b_squares)
    m_pair = (o_k[:, None] != o_k[None, :]) & m_k[:, None] & m_k[None, :]
    b_repelled, b_row_cosines = repelled(b_products, b_inverse, m_pair, CLAMP)
    p_partial += 4 * tl.program_id(0).to(tl.int64)
    tl.store(p_partial, tl.where(split == 0, tl.sum(b_row_cosines, 0), 0.0))
    tl.store(p_partial + 2, tl.where((split == 0) & (frames > 0), 1.0, 0.0))

    if GRADIENTS:
        for t in range(split * frames_per_block, tl.minimum((split + 1) * frames_per_block, T)):
            here = _frame(
                p_responses, p_valid, t, o_k, m_k, T, stride_frame, stride_tracklet, stride_valid_frame, ALIGN, VALID
            )
            tracklet_grad = rows_at(p_tracklet_grad, (video * T + t) * K + o_k, m_k, C, 1)
            m_frame = here[1]
            for k in range(CHUNKS):
                b_x = load_chunk(here, k, C, BLOCK_C, CHUNKS)
                b_grad = repulsion_gradient(b_x, b_inverse, b_repelled, b_row_cosines, PRECISION)
                store_chunk(tracklet_grad, k, tl.where(m_frame, b_grad, 0.0), C, BLOCK_C, CHUNKS)


@triton.jit(do_not_specialize=[name for name in SIZES if name != "frames_per_block"])
def mean_kernel(
    p_responses,
    p_valid,
    p_mean,
    T,
    K,
    stride_video,
    stride_frame,
    stride_tracklet,
    stride_valid_video,
    stride_valid_frame,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr,
    VALID: tl.constexpr,
):
    """Compute a chunk of one tracklet's mean over its valid frames, mean[B,K,C] in float32; 0 without valid frames."""
    chunk = tl.program_id(0) % CHUNKS
    row = tl.program_id(0) // CHUNKS
    video, tracklet = (row // K).to(tl.int64), row % K
    if VALID:
        p_valid += video * stride_valid_video
    p_responses += video * stride_video * ALIGN
    b_sum = tl.zeros([BLOCK_C], tl.float32)
    frames = 0.0
    for start in range(0, T, BLOCK_T):
        o_t = start + tl.arange(0, BLOCK_T)
        m_t = frames_exist(p_valid, o_t, o_t < T, T, stride_valid_frame, VALID)
        rows = rows_at(p_responses, o_t.to(tl.int64) * stride_frame + tracklet * stride_tracklet, m_t, 1, ALIGN)
        b_sum += tl.sum(load_chunk(rows, chunk, C, BLOCK_C, CHUNKS).to(tl.float32), 0)
        frames += tl.sum(tl.where(m_t, 1.0, 0.0), 0)
    b_mean = b_sum / tl.maximum(frames, 1.0)
    o_one = tl.zeros([1], tl.int64)
    mean = rows_at(p_mean, o_one + row, o_one == 0, C, 1)
    store_chunk(mean, chunk, b_mean[None, :], C, BLOCK_C, CHUNKS)


@triton.jit
def _total(p_partial, programs, column, BLOCK: tl.constexpr):
    b_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, programs, BLOCK):
        o_p = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_partial + 4 * o_p.to(tl.int64) + column, mask=o_p < programs, other=0.0)
    return tl.sum(b_sum, 0)


@triton.jit(do_not_specialize=["programs", "tracklet_programs", "K"])
def terms_kernel(p_partial, p_tracklet_partial, p_terms, p_scale, programs, tracklet_programs, K, BLOCK: tl.constexpr):
    """Compute the means terms[3] and the factors scale[3] of the sums; a single program."""
    pairs = (K * (K - 1)).to(tl.float32)
    for term in tl.static_range(3):
        if term < 2:
            total = _total(p_partial, programs, term, BLOCK)
            count = _total(p_partial, programs, 2 + term, BLOCK)
        else:
            total = _total(p_tracklet_partial, tracklet_programs, 0, BLOCK)
            count = _total(p_tracklet_partial, tracklet_programs, 2, BLOCK)
        count *= K.to(tl.float32) if term == 1 else pairs
        scale = 1.0 / tl.maximum(count, 1.0)
        tl.store(p_scale + term, scale)
        tl.store(p_terms + term, total / tl.maximum(count, 1.0))


@triton.jit(do_not_specialize=["T", "stride_valid_video", "stride_valid_frame"])
def weigh_kernel(
    p_spatial_grad,
    p_temporal_grad,
    p_tracklet_grad,
    p_grad_terms,
    p_scale,
    p_frame_weight,
    p_valid,
    p_grad,
    T,
    stride_valid_video,
    stride_valid_frame,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    TRACKLET_GRAD: tl.constexpr,
    VALID: tl.constexpr,
):
    """Compute the gradient of a frame's responses, SIZE = K·C values: the weighted sum of the terms' gradients.

    TRACKLET_GRAD is the layout of the third one: "none" (it goes to `aggregated`), "frames" (like the others), or
    "videos" (the gradient of the mean over time, weighted by frame_weight[B] in each valid frame).
    """
    blocks: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    o_e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    m_e = o_e < SIZE
    spatial = tl.load(p_grad_terms) * tl.load(p_scale)
    temporal = tl.load(p_grad_terms + 1) * tl.load(p_scale + 1)
    tracklet = tl.load(p_grad_terms + 2) * tl.load(p_scale + 2)
    b_grad = spatial * tl.load(p_spatial_grad + frame * SIZE + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_grad += temporal * tl.load(p_temporal_grad + frame * SIZE + o_e, mask=m_e, other=0.0).to(tl.float32)
    if TRACKLET_GRAD == "frames":
        b_grad += tracklet * tl.load(p_tracklet_grad + frame * SIZE + o_e, mask=m_e, other=0.0).to(tl.float32)
    if TRACKLET_GRAD == "videos":
        video = frame // T
        if VALID:
            p_valid += video * stride_valid_video
        m_t = frames_exist(p_valid, (frame % T).to(tl.int32), True, T, stride_valid_frame, VALID)
        tracklet *= tl.load(p_frame_weight + video)
        b_grad += tracklet * tl.load(p_tracklet_grad + video * SIZE + o_e, mask=m_e & m_t, other=0.0).to(tl.float32)
    tl.store(p_grad + frame * SIZE + o_e, b_grad.to(p_grad.dtype.element_ty), mask=m_e)
