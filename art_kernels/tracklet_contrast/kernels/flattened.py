"""The tracklet term of flattened tracklets: their dot products are summed over time."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, rows_at, store_chunk
from art_kernels.tracklet_contrast.kernels.levels import SIZES, frames_exist
from art_kernels.tracklet_contrast.kernels.pairs import inverse_norms, repelled, repulsion_gradient


@triton.jit
def _frame(
    p_responses, p_valid, t, o_k, m_k, T, stride_frame, stride_tracklet, stride_valid_frame, ALIGN: tl.constexpr,
    VALID: tl.constexpr,
):  # fmt: skip
    """The rows of frame t; none where it is invalid."""
    m_row = frames_exist(p_valid, tl.zeros_like(o_k) + t, m_k, T, stride_valid_frame, VALID)
    o_row = (tl.zeros_like(o_k) + t).to(tl.int64) * stride_frame + o_k * stride_tracklet
    return rows_at(p_responses, o_row, m_row, 1, ALIGN)


@triton.jit(do_not_specialize=[*SIZES, "parts"])
def flattened_kernel(
    p_responses,
    p_valid,
    p_whole,
    p_partial,
    T,
    K,
    frames_a_block,
    parts,
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
    """One video, of the gradient one part of its frames; each part sums the products of all frames.

    Writes the sum of the cosines and whether the video has a frame to partial[programs,4], numbers 0 and 2, of the
    first part only, zeros of the others; with GRADIENTS the gradient of the sum to whole[B,T,K,C].
    """
    part = tl.program_id(0) % parts
    video = (tl.program_id(0) // parts).to(tl.int64)
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
    tl.store(p_partial, tl.where(part == 0, tl.sum(b_row_cosines, 0), 0.0))
    tl.store(p_partial + 2, tl.where((part == 0) & (frames > 0), 1.0, 0.0))

    if GRADIENTS:
        for t in range(part * frames_a_block, tl.minimum((part + 1) * frames_a_block, T)):
            here = _frame(
                p_responses, p_valid, t, o_k, m_k, T, stride_frame, stride_tracklet, stride_valid_frame, ALIGN, VALID
            )
            whole = rows_at(p_whole, (video * T + t) * K + o_k, m_k, C, 1)
            m_frame = here[1]
            for k in range(CHUNKS):
                b_x = load_chunk(here, k, C, BLOCK_C, CHUNKS)
                b_grad = repulsion_gradient(b_x, b_inverse, b_repelled, b_row_cosines, PRECISION)
                store_chunk(whole, k, tl.where(m_frame, b_grad, 0.0), C, BLOCK_C, CHUNKS)
