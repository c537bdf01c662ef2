"""The forward pass: the saliency of one tracklet, and its responses summed by it."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, rows_at, store_chunk
from art_kernels.tracklet_pooling.kernels.tile import (
    SIZES,
    one_row,
    products,
    response,
    scores_of,
    softmax_step,
    tile_at,
    weights_of,
)


@triton.jit
def _scored_tile(
    p_responses, p_valid, semantics, start, T, stride_frame, stride_valid, scale,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr, VALID: tl.constexpr, HOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    o_t, m_t, responses, held = tile_at(
        p_responses, p_valid, start, T, stride_frame, stride_valid, C, BLOCK_T, BLOCK_C, CHUNKS, ALIGN, VALID, HOLD
    )
    b_products, b_r_norms, b_s_norms, _ = products(
        responses, held, semantics, responses, C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, False, HOLD, PRECISION
    )
    return o_t, responses, held, scores_of(b_products, b_r_norms, b_s_norms, m_t, scale)


@triton.jit
def _pool_tile(
    p_saliency, p_aggregated, o_t, responses, held, b_scores, b_max, b_sum, m_j, start, T, K, J,
    C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, ONE_TILE: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """Write the saliency of a tile, and add its responses to the aggregated tracklet."""
    _, b_saliency = weights_of(b_scores, b_max, b_sum, m_j, J)
    tl.store(p_saliency + o_t.to(tl.int64) * K, b_saliency.to(p_saliency.dtype.element_ty), mask=o_t < T)
    aggregated = one_row(p_aggregated, True)
    earlier_tiles = aggregated
    if not ONE_TILE:
        earlier_tiles = one_row(p_aggregated, start > 0)
    for k in range(CHUNKS):
        b_r = response(responses, held, k, HOLD, C, BLOCK_C, CHUNKS)
        b_sum_r = tl.sum(b_r.to(tl.float32) * b_saliency[:, None], 0)[None, :]
        if not ONE_TILE:
            b_sum_r += load_chunk(earlier_tiles, k, C, BLOCK_C, CHUNKS)
        store_chunk(aggregated, k, b_sum_r, C, BLOCK_C, CHUNKS)
    if not ONE_TILE:
        tl.debug_barrier()  # the next tile reads what all threads have written


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_responses,
    p_semantics,
    p_valid,
    p_aggregated,
    p_saliency,
    scale,
    T,
    K,
    J,
    stride_video,
    stride_frame,
    stride_tracklet,
    stride_semantics,
    stride_semantic,
    stride_valid_video,
    stride_valid,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr,
    VALID: tl.constexpr,
    ONE_TILE: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tracklet: writes saliency[B,T,K] and aggregated[B,K,C], in float32 where there are several tiles."""
    video = (tl.program_id(0) // K).to(tl.int64)
    tracklet = (tl.program_id(0) % K).to(tl.int64)
    p_responses += (video * stride_video + tracklet * stride_tracklet) * ALIGN
    p_saliency += video * T * K + tracklet
    p_aggregated += (video * K + tracklet) * C
    if VALID:
        p_valid += video * stride_valid_video
    o_j = tl.arange(0, BLOCK_J)
    m_j = o_j < J
    semantics = rows_at(p_semantics + video * stride_semantics * ALIGN, o_j, m_j, stride_semantic, ALIGN)

    b_max = tl.full([BLOCK_J], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_J], tl.float32)
    if ONE_TILE:
        o_t, responses, held, b_scores = _scored_tile(
            p_responses, p_valid, semantics, 0, T, stride_frame, stride_valid, scale,
            C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, HOLD, PRECISION,
        )  # fmt: skip
        b_max, b_sum, _, _ = softmax_step(b_scores, b_max, b_sum)
        _pool_tile(
            p_saliency, p_aggregated, o_t, responses, held, b_scores, b_max, b_sum, m_j, 0, T, K, J,
            C, BLOCK_C, CHUNKS, ONE_TILE, HOLD,
        )  # fmt: skip
    else:
        for start in range(0, T, BLOCK_T):
            _, _, _, b_scores = _scored_tile(
                p_responses, p_valid, semantics, start, T, stride_frame, stride_valid, scale,
                C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, HOLD, PRECISION,
            )  # fmt: skip
            b_max, b_sum, _, _ = softmax_step(b_scores, b_max, b_sum)
        for start in range(0, T, BLOCK_T):
            o_t, responses, held, b_scores = _scored_tile(
                p_responses, p_valid, semantics, start, T, stride_frame, stride_valid, scale,
                C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, HOLD, PRECISION,
            )  # fmt: skip
            _pool_tile(
                p_saliency, p_aggregated, o_t, responses, held, b_scores, b_max, b_sum, m_j, start, T, K, J,
                C, BLOCK_C, CHUNKS, ONE_TILE, HOLD,
            )  # fmt: skip
