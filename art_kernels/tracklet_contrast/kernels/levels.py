"""The spatial and the temporal term; with one frame, and no temporal term, that of pooled tracklets."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, rows_at, store_chunk
from art_kernels.tracklet_contrast.kernels.pairs import inverse_norms, repelled, repulsion_gradient

#: What a compiled variant does not depend on.
SIZES = [
    "T", "K", "frames_a_block", "stride_video", "stride_frame", "stride_tracklet", "stride_valid_video",
    "stride_valid_frame",
]  # fmt: skip


@triton.jit
def frames_exist(p_valid, o_t, m_t, T, stride_valid_frame, VALID: tl.constexpr):
    """Which of the frames are there, and valid."""
    m_t = m_t & (o_t >= 0) & (o_t < T)
    if VALID:
        m_t = m_t & (tl.load(p_valid + o_t.to(tl.int64) * stride_valid_frame, mask=m_t, other=0) != 0)
    return m_t


@triton.jit
def _attracted(b_products, b_inverse, b_other_inverse, m_step, margin, ABSOLUTE: tl.constexpr):
    """Of steps to another frame: the cosine, the shortfall, and its derivative by the cosine (with the sign turned)."""
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
    p_within,
    p_across,
    p_partial,
    margin,
    T,
    K,
    frames_a_block,
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
    """Some frames of one video.

    Writes the sums of the spatial and the temporal term, the number of frames and that of steps to partial[programs,4],
    and with GRADIENTS the gradients of the two sums to within and across [B,T,K,C].
    """
    blocks = tl.cdiv(T, frames_a_block)
    video = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * frames_a_block
    o_r = tl.arange(0, BLOCK_R)
    o_t, o_k = first + o_r // K, o_r % K
    m_r = (o_r < frames_a_block * K) & (o_t < T)
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
    m_once = o_k == 0  # of the rows of a frame
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
        within = rows_at(p_within, o_out, m_r, C, 1)
        if TEMPORAL:
            across = rows_at(p_across, o_out, m_r, C, 1)
        for k in range(CHUNKS):
            b_x = load_chunk(here, k, C, BLOCK_C, CHUNKS)
            b_grad = repulsion_gradient(b_x, b_inverse, b_repelled, b_row_cosines, PRECISION)
            store_chunk(within, k, b_grad, C, BLOCK_C, CHUNKS)
            if TEMPORAL:
                b_grad = (b_own * b_inverse)[:, None] * b_x.to(tl.float32)
                b_grad -= b_next_pull[:, None] * load_chunk(following, k, C, BLOCK_C, CHUNKS).to(tl.float32)
                b_grad -= b_last_pull[:, None] * load_chunk(preceding, k, C, BLOCK_C, CHUNKS).to(tl.float32)
                store_chunk(across, k, b_grad * b_inverse[:, None], C, BLOCK_C, CHUNKS)
