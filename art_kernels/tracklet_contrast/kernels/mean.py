"""Tracklets pooled by their mean over time."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, rows_at, store_chunk
from art_kernels.tracklet_contrast.kernels.levels import frames_exist


@triton.jit(
    do_not_specialize=[
        "T",
        "K",
        "stride_video",
        "stride_frame",
        "stride_tracklet",
        "stride_valid_video",
        "stride_valid_frame",
    ]
)
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
    """A chunk of one tracklet, mean[B,K,C] in float32 over its valid frames, 0 without any."""
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
