"""The backward pass: gradients of the responses of a tracklet, and its part of those of the semantics."""

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
    total_of,
    weights_of,
)


@triton.jit
def _tile(
    p_responses, p_valid, p_grad_saliency, semantics, gradient, start, T, K, J, stride_frame, stride_valid, scale,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr, VALID: tl.constexpr, GRAD_SALIENCY: tl.constexpr, HOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile as (frames, valid, view, held), its products and norms, its scores, and the gradient of each weight of one
    semantic: that of the saliency over J [BLOCK_T]."""
    o_t, m_t, responses, held = tile_at(
        p_responses, p_valid, start, T, stride_frame, stride_valid, C, BLOCK_T, BLOCK_C, CHUNKS, ALIGN, VALID, HOLD
    )
    b_products, b_r_norms, b_s_norms, b_dw = products(
        responses, held, semantics, gradient, C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, True, HOLD, PRECISION
    )
    if GRAD_SALIENCY:
        b_dw += tl.load(p_grad_saliency + o_t.to(tl.int64) * K, mask=m_t, other=0.0).to(tl.float32)
    b_scores = scores_of(b_products, b_r_norms, b_s_norms, m_t, scale)
    return (o_t, m_t, responses, held), (b_products, b_r_norms, b_s_norms), b_scores, b_dw / J


@triton.jit
def _rounded(b_factors, AXIS: tl.constexpr, DTYPE: tl.constexpr):
    """Factors of a product as DTYPE, and the scale that the product is to be multiplied by.

    In 16 bits the largest of each sum becomes 1: so factors keep within the exponents of float16, whatever the size of
    the gradients.
    """
    b_scale = tl.max(tl.abs(b_factors), AXIS)
    if DTYPE.primitive_bitwidth == 16:
        b_scale = tl.where(b_scale > 0, b_scale, 1.0)
        b_factors = b_factors / tl.expand_dims(b_scale, AXIS)
    else:
        b_scale = tl.full(b_scale.shape, 1.0, tl.float32)
    return b_factors.to(DTYPE), b_scale


@triton.jit
def _gradients_of_tile(
    p_grad_responses, tile, norms, semantics, gradient, grad_semantics, later, b_scores, b_dw, b_max, b_sum, b_delta,
    m_j, T, K, J, scale,
    C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, GRAD_RESPONSES: tl.constexpr,
    GRAD_SEMANTICS: tl.constexpr, HOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile of responses, and add its part to that of the semantics, which has one already where
    the tile is a later one.

    With u = r / |r|, v = s / |s| and the gradient d of a cosine, that of r is Σ_j d (v - cos u) / |r|, that of s
    Σ_t d (u - cos v) / |s|. The factors d are rounded before either term is taken: what d lost to rounding, both lost.
    """
    o_t, m_t, responses, held = tile
    b_products, b_r_norms, b_s_norms = norms
    b_r_inverse, b_s_inverse = 1.0 / b_r_norms, 1.0 / b_s_norms
    DTYPE: tl.constexpr = responses[0].dtype.element_ty
    b_weights, b_saliency = weights_of(b_scores, b_max, b_sum, m_j, J)
    b_d = b_weights * (b_dw[:, None] - b_delta[None, :]) * scale
    b_to_r, b_r_scale = _rounded(b_d * b_s_inverse[None, :], 1, DTYPE)
    b_to_s, b_s_scale = _rounded(b_d * b_r_inverse[:, None], 0, DTYPE)
    b_along_r = tl.sum(b_to_r.to(tl.float32) * b_products, 1) * b_r_scale * b_r_inverse * b_r_inverse
    b_along_s = tl.sum(b_to_s.to(tl.float32) * b_products, 0) * b_s_scale * b_s_inverse * b_s_inverse

    earlier_tiles = semantics
    if GRAD_SEMANTICS:
        earlier_tiles = (grad_semantics[0], grad_semantics[1] & later)
    grad_responses = rows_at(p_grad_responses, o_t, o_t < T, K.to(tl.int64) * C, 1)
    for k in range(CHUNKS):
        b_r = response(responses, held, k, HOLD, C, BLOCK_C, CHUNKS)
        b_s = load_chunk(semantics, k, C, BLOCK_C, CHUNKS)
        if GRAD_RESPONSES:
            b_dr = tl.dot(b_to_r, b_s, input_precision=PRECISION) * b_r_scale[:, None]
            b_dr = (b_dr - b_along_r[:, None] * b_r.to(tl.float32)) * b_r_inverse[:, None]
            b_dr += b_saliency[:, None] * load_chunk(gradient, k, C, BLOCK_C, CHUNKS).to(tl.float32)
            store_chunk(grad_responses, k, tl.where(m_t[:, None], b_dr, 0.0), C, BLOCK_C, CHUNKS)
        if GRAD_SEMANTICS:
            b_ds = tl.dot(tl.trans(b_to_s), b_r, input_precision=PRECISION) * b_s_scale[:, None]
            b_ds = (b_ds - b_along_s[:, None] * b_s.to(tl.float32)) * b_s_inverse[:, None]
            b_ds += load_chunk(earlier_tiles, k, C, BLOCK_C, CHUNKS)
            store_chunk(grad_semantics, k, b_ds, C, BLOCK_C, CHUNKS)
    if GRAD_SEMANTICS:
        tl.debug_barrier()  # the next tile reads what all threads have written


@triton.jit(do_not_specialize=[*SIZES, "tracklets_a_program"])
def backward_kernel(
    p_responses,
    p_semantics,
    p_valid,
    p_grad_aggregated,
    p_grad_saliency,
    p_grad_responses,
    p_grad_semantics,
    scale,
    tracklets_a_program,
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
    GRAD_SALIENCY: tl.constexpr,
    GRAD_RESPONSES: tl.constexpr,
    GRAD_SEMANTICS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some tracklets of one video, number g of G such groups.

    Writes their grad_responses[B,T,K,C], and their part of the gradient of the semantics to grad_semantics[B,G,J,C] in
    float32, where it is added up tile by tile in a place that no other program touches.
    """
    groups = tl.cdiv(K, tracklets_a_program)
    video = (tl.program_id(0) // groups).to(tl.int64)
    first = (tl.program_id(0) % groups) * tracklets_a_program
    o_j = tl.arange(0, BLOCK_J)
    m_j = o_j < J
    semantics = rows_at(p_semantics + video * stride_semantics * ALIGN, o_j, m_j, stride_semantic, ALIGN)
    grad_semantics = semantics
    if GRAD_SEMANTICS:
        grad_semantics = rows_at(p_grad_semantics + tl.program_id(0).to(tl.int64) * J * C, o_j, m_j, C, 1)
    p_responses += video * stride_video * ALIGN
    if GRAD_SALIENCY:
        p_grad_saliency += video * T * K
    if VALID:
        p_valid += video * stride_valid_video

    for tracklet in range(first, tl.minimum(first + tracklets_a_program, K)):
        p_r = p_responses + stride_tracklet.to(tl.int64) * tracklet * ALIGN
        p_grad_r = p_responses
        if GRAD_RESPONSES:
            p_grad_r = p_grad_responses + (video * T * K + tracklet) * C
        p_grad_w = p_responses
        if GRAD_SALIENCY:
            p_grad_w = p_grad_saliency + tracklet
        gradient = one_row(p_grad_aggregated + (video * K + tracklet) * C, True)
        b_max = tl.full([BLOCK_J], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_J], tl.float32)
        if ONE_TILE:
            tile, norms, b_scores, b_dw = _tile(
                p_r, p_valid, p_grad_w, semantics, gradient, 0, T, K, J, stride_frame, stride_valid, scale,
                C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, GRAD_SALIENCY, HOLD, PRECISION,
            )  # fmt: skip
            b_max, b_sum, b_exp, _ = softmax_step(b_scores, b_max, b_sum)
            b_delta = tl.sum(b_exp * b_dw[:, None], 0) / total_of(b_sum)
            _gradients_of_tile(
                p_grad_r, tile, norms, semantics, gradient, grad_semantics, tracklet > first, b_scores, b_dw, b_max,
                b_sum, b_delta, m_j, T, K, J, scale,
                C, BLOCK_C, CHUNKS, GRAD_RESPONSES, GRAD_SEMANTICS, HOLD, PRECISION,
            )  # fmt: skip
        else:
            b_delta = tl.zeros([BLOCK_J], tl.float32)
            for start in range(0, T, BLOCK_T):
                _, _, b_scores, b_dw = _tile(
                    p_r, p_valid, p_grad_w, semantics, gradient, start, T, K, J, stride_frame, stride_valid, scale,
                    C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, GRAD_SALIENCY, HOLD, PRECISION,
                )  # fmt: skip
                b_max, b_sum, b_exp, b_decay = softmax_step(b_scores, b_max, b_sum)
                b_delta = b_delta * b_decay + tl.sum(b_exp * b_dw[:, None], 0)
            b_delta = b_delta / total_of(b_sum)
            for start in range(0, T, BLOCK_T):
                tile, norms, b_scores, b_dw = _tile(
                    p_r, p_valid, p_grad_w, semantics, gradient, start, T, K, J, stride_frame, stride_valid, scale,
                    C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, GRAD_SALIENCY, HOLD, PRECISION,
                )  # fmt: skip
                _gradients_of_tile(
                    p_grad_r, tile, norms, semantics, gradient, grad_semantics, tracklet - first + start > 0, b_scores,
                    b_dw, b_max, b_sum, b_delta, m_j, T, K, J, scale,
                    C, BLOCK_C, CHUNKS, GRAD_RESPONSES, GRAD_SEMANTICS, HOLD, PRECISION,
                )  # fmt: skip
