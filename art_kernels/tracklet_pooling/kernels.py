"""Triton kernels of text-guided tracklet pooling: similarity, softmax over time, mean over semantics, and sum.

Sizes: B videos, T frames, K tracklets, J semantics, C channels. A program processes one tracklet of one video (the
backward kernel, possibly several in sequence) in tiles of [BLOCK_T, C] responses, each against all J semantics of the
video. C is split into CHUNKS of BLOCK_C channels. Products use the vectors as stored; they are divided by the norms
afterwards, so no normalized vector is rounded to 16 bits.

If one tile holds all frames (ONE_TILE), the softmax is computed in it. Otherwise the kernel makes two passes: the first
computes the maximum score of each semantic and the sum of exponentials, the second the weights. Chunks of responses are
reread from cache for the weighted sum, except that a tile of a single chunk stays in registers (KEEP_IN_REGS).

The forward pass saves nothing: the backward pass recomputes the scores, and so differentiates the softmax of exactly
the scores whose gradients it writes.

Naming and strides: see :mod:`art_kernels._core.rows`.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import TINY, load_chunk, rows_at, store_chunk

#: Arguments without value specialization, so that other batch sizes and clip lengths do not recompile.
SIZES = [
    "T", "K", "J", "stride_video", "stride_frame", "stride_tracklet", "stride_semantics", "stride_semantic",
    "stride_valid_video", "stride_valid",
]  # fmt: skip


@triton.jit
def one_row(p_row, m_row):
    """Return a view of a single row, for `load_chunk` and `store_chunk`."""
    return rows_at(p_row, tl.zeros([1], tl.int32), tl.full([1], m_row, tl.int1), 0, 1)


@triton.jit
def tile_at(
    p_responses, p_valid, start, T, stride_frame, stride_valid,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, ALIGN: tl.constexpr,
    VALID: tl.constexpr, KEEP_IN_REGS: tl.constexpr,
):  # fmt: skip
    """Return the tile of frames at `start`: their indices, which are valid, a view of the responses, and their only
    chunk if KEEP_IN_REGS."""
    o_t = start + tl.arange(0, BLOCK_T)
    m_t = o_t < T
    if VALID:
        m_t = tl.load(p_valid + o_t.to(tl.int64) * stride_valid, mask=m_t, other=0) != 0
    responses = rows_at(p_responses, o_t, m_t, stride_frame, ALIGN)
    kept = 0.0
    if KEEP_IN_REGS:
        kept = load_chunk(responses, 0, C, BLOCK_C, CHUNKS)
    return o_t, m_t, responses, kept


@triton.jit
def response(
    responses, kept, k, KEEP_IN_REGS: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Return chunk k of a tile."""
    if KEEP_IN_REGS:
        b_r = kept
    else:
        b_r = load_chunk(responses, k, C, BLOCK_C, CHUNKS)
    return b_r


@triton.jit
def _norms(b_squares):
    """Return norms from squared norms; infinite for zero vectors, as in `cosine_norms`."""
    return tl.sqrt_rn(tl.where(b_squares < TINY, float("inf"), b_squares))


@triton.jit
def products(
    responses, kept, semantics, gradient,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    GRADIENT: tl.constexpr, KEEP_IN_REGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return, for a tile r, r sᵀ [BLOCK_T, BLOCK_J], |r|, |s|, and with GRADIENT r · gradient [BLOCK_T]."""
    b_products = tl.zeros([BLOCK_T, BLOCK_J], tl.float32)
    b_r_squares = tl.zeros([BLOCK_T], tl.float32)
    b_s_squares = tl.zeros([BLOCK_J], tl.float32)
    b_grad = tl.zeros([BLOCK_T], tl.float32)
    for k in range(CHUNKS):
        b_r = response(responses, kept, k, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
        b_s = load_chunk(semantics, k, C, BLOCK_C, CHUNKS)
        b_products = tl.dot(b_r, tl.trans(b_s), b_products, input_precision=PRECISION)
        b_r = b_r.to(tl.float32)
        b_s = b_s.to(tl.float32)
        b_r_squares += tl.sum(b_r * b_r, 1)
        b_s_squares += tl.sum(b_s * b_s, 1)
        if GRADIENT:
            b_grad += tl.sum(b_r * load_chunk(gradient, k, C, BLOCK_C, CHUNKS).to(tl.float32), 1)
    return b_products, _norms(b_r_squares), _norms(b_s_squares), b_grad


@triton.jit
def scores_of(b_products, b_r_norms, b_s_norms, m_t, scale):
    """Return cosine · scale, and -inf in invalid frames."""
    # Exact divisions: for large scores, a rounding error in one frame changes the softmax noticeably.
    b_scores = tl.div_rn(b_products * tl.div_rn(scale, b_s_norms)[None, :], b_r_norms[:, None])
    return tl.where(m_t[:, None], b_scores, float("-inf"))


@triton.jit
def exponentials(b_scores, b_max):
    """Return exp(score - maximum of its semantic); 0, not exp(inf - inf), if no frame is valid."""
    return tl.exp(b_scores - tl.where(b_max == float("-inf"), 0.0, b_max)[None, :])


@triton.jit
def softmax_step(b_scores, b_max, b_sum):
    """Add a tile to the softmax over time. Returns the maximum score of each semantic, the sum of exponentials, the
    exponentials of the tile, and the factor for sums over earlier tiles."""
    b_highest = tl.maximum(b_max, tl.max(b_scores, 0))
    b_exp = exponentials(b_scores, b_highest)
    b_decay = tl.exp(b_max - tl.where(b_highest == float("-inf"), 0.0, b_highest))
    return b_highest, b_sum * b_decay + tl.sum(b_exp, 0), b_exp, b_decay


@triton.jit
def total_of(b_sum):
    """Return the sum of exponentials as a divisor; 1 if no frame is valid, to avoid 0 / 0."""
    return tl.where(b_sum == 0, 1.0, b_sum)


@triton.jit
def weights_of(b_scores, b_max, b_sum, m_j, J):
    """Return the softmax over time per semantic [BLOCK_T, BLOCK_J], and its mean, the saliency [BLOCK_T]."""
    b_total = total_of(b_sum)
    b_weights = tl.where(m_j[None, :], exponentials(b_scores, b_max) / b_total[None, :], 0.0)
    return b_weights, tl.sum(b_weights, 1) / J


@triton.jit
def _scored_tile(
    p_responses, p_valid, semantics, start, T, stride_frame, stride_valid, scale,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr, VALID: tl.constexpr, KEEP_IN_REGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    o_t, m_t, responses, kept = tile_at(
        p_responses,
        p_valid,
        start,
        T,
        stride_frame,
        stride_valid,
        C,
        BLOCK_T,
        BLOCK_C,
        CHUNKS,
        ALIGN,
        VALID,
        KEEP_IN_REGS,
    )
    b_products, b_r_norms, b_s_norms, _ = products(
        responses, kept, semantics, responses, C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, False, KEEP_IN_REGS, PRECISION
    )
    return o_t, responses, kept, scores_of(b_products, b_r_norms, b_s_norms, m_t, scale)


@triton.jit
def _pool_tile(
    p_saliency, p_aggregated, o_t, responses, kept, b_scores, b_max, b_sum, m_j, start, T, K, J,
    C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, ONE_TILE: tl.constexpr, KEEP_IN_REGS: tl.constexpr,
):  # fmt: skip
    """Store the saliency of a tile, and add its weighted responses to the aggregated tracklet."""
    _, b_saliency = weights_of(b_scores, b_max, b_sum, m_j, J)
    tl.store(p_saliency + o_t.to(tl.int64) * K, b_saliency.to(p_saliency.dtype.element_ty), mask=o_t < T)
    aggregated = one_row(p_aggregated, True)
    earlier_tiles = aggregated
    if not ONE_TILE:
        earlier_tiles = one_row(p_aggregated, start > 0)
    for k in range(CHUNKS):
        b_r = response(responses, kept, k, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
        b_sum_r = tl.sum(b_r.to(tl.float32) * b_saliency[:, None], 0)[None, :]
        if not ONE_TILE:
            b_sum_r += load_chunk(earlier_tiles, k, C, BLOCK_C, CHUNKS)
        store_chunk(aggregated, k, b_sum_r, C, BLOCK_C, CHUNKS)
    if not ONE_TILE:
        tl.debug_barrier()  # the next tile reads values written by other threads


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
    KEEP_IN_REGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute saliency[B,T,K] and aggregated[B,K,C] (in float32 if there are several tiles) of one tracklet."""
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
        o_t, responses, kept, b_scores = _scored_tile(
            p_responses, p_valid, semantics, 0, T, stride_frame, stride_valid, scale,
            C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, KEEP_IN_REGS, PRECISION,
        )  # fmt: skip
        b_max, b_sum, _, _ = softmax_step(b_scores, b_max, b_sum)
        _pool_tile(
            p_saliency, p_aggregated, o_t, responses, kept, b_scores, b_max, b_sum, m_j, 0, T, K, J,
            C, BLOCK_C, CHUNKS, ONE_TILE, KEEP_IN_REGS,
        )  # fmt: skip
    else:
        for start in range(0, T, BLOCK_T):
            _, _, _, b_scores = _scored_tile(
                p_responses, p_valid, semantics, start, T, stride_frame, stride_valid, scale,
                C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, KEEP_IN_REGS, PRECISION,
            )  # fmt: skip
            b_max, b_sum, _, _ = softmax_step(b_scores, b_max, b_sum)
        for start in range(0, T, BLOCK_T):
            o_t, responses, kept, b_scores = _scored_tile(
                p_responses, p_valid, semantics, start, T, stride_frame, stride_valid, scale,
                C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, KEEP_IN_REGS, PRECISION,
            )  # fmt: skip
            _pool_tile(
                p_saliency, p_aggregated, o_t, responses, kept, b_scores, b_max, b_sum, m_j, start, T, K, J,
                C, BLOCK_C, CHUNKS, ONE_TILE, KEEP_IN_REGS,
            )  # fmt: skip


@triton.jit
def _tile(
    p_responses, p_valid, p_grad_saliency, semantics, gradient, start, T, K, J, stride_frame, stride_valid, scale,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    ALIGN: tl.constexpr, VALID: tl.constexpr, GRAD_SALIENCY: tl.constexpr, KEEP_IN_REGS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return a tile (frames, valid, view, chunk), its products and norms, its scores, and the gradient of the weights
    of one semantic, which is the gradient of the saliency divided by J [BLOCK_T]."""
    o_t, m_t, responses, kept = tile_at(
        p_responses,
        p_valid,
        start,
        T,
        stride_frame,
        stride_valid,
        C,
        BLOCK_T,
        BLOCK_C,
        CHUNKS,
        ALIGN,
        VALID,
        KEEP_IN_REGS,
    )
    b_products, b_r_norms, b_s_norms, b_dw = products(
        responses, kept, semantics, gradient, C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, True, KEEP_IN_REGS, PRECISION
    )
    if GRAD_SALIENCY:
        b_dw += tl.load(p_grad_saliency + o_t.to(tl.int64) * K, mask=m_t, other=0.0).to(tl.float32)
    b_scores = scores_of(b_products, b_r_norms, b_s_norms, m_t, scale)
    return (o_t, m_t, responses, kept), (b_products, b_r_norms, b_s_norms), b_scores, b_dw / J


@triton.jit
def _rounded(b_factors, AXIS: tl.constexpr, DTYPE: tl.constexpr):
    """Round factors of a product to DTYPE, and return them with the scale to multiply the product by.

    In 16 bits, the largest factor of each sum is scaled to 1, so that gradients of any size fit the range of float16.
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
    GRAD_SEMANTICS: tl.constexpr, KEEP_IN_REGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the gradient of a tile of responses, and add its contribution to the gradient of the semantics (to the
    stored value if this is not the first tile).

    With u = r / |r|, v = s / |s| and the gradient d of a cosine, the gradient of r is Σ_j d (v - cos u) / |r|, and that
    of s is Σ_t d (u - cos v) / |s|. The factors d are rounded first, so that both terms have the same rounding errors.
    """
    o_t, m_t, responses, kept = tile
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
        b_r = response(responses, kept, k, KEEP_IN_REGS, C, BLOCK_C, CHUNKS)
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
        tl.debug_barrier()  # the next tile reads values written by other threads


@triton.jit(do_not_specialize=[*SIZES, "tracklets_per_program"])
def backward_kernel(
    p_responses,
    p_semantics,
    p_valid,
    p_grad_aggregated,
    p_grad_saliency,
    p_grad_responses,
    p_grad_semantics,
    scale,
    tracklets_per_program,
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
    KEEP_IN_REGS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of a group of tracklets of one video, one of G groups.

    Writes grad_responses[B,T,K,C], and the group's contribution to the gradient of the semantics to
    grad_semantics[B,G,J,C] in float32, where it accumulates tile by tile without access by other programs.
    """
    groups = tl.cdiv(K, tracklets_per_program)
    video = (tl.program_id(0) // groups).to(tl.int64)
    first = (tl.program_id(0) % groups) * tracklets_per_program
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

    for tracklet in range(first, tl.minimum(first + tracklets_per_program, K)):
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
                C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, GRAD_SALIENCY, KEEP_IN_REGS, PRECISION,
            )  # fmt: skip
            b_max, b_sum, b_exp, _ = softmax_step(b_scores, b_max, b_sum)
            b_delta = tl.sum(b_exp * b_dw[:, None], 0) / total_of(b_sum)
            _gradients_of_tile(
                p_grad_r, tile, norms, semantics, gradient, grad_semantics, tracklet > first, b_scores, b_dw, b_max,
                b_sum, b_delta, m_j, T, K, J, scale,
                C, BLOCK_C, CHUNKS, GRAD_RESPONSES, GRAD_SEMANTICS, KEEP_IN_REGS, PRECISION,
            )  # fmt: skip
        else:
            b_delta = tl.zeros([BLOCK_J], tl.float32)
            for start in range(0, T, BLOCK_T):
                _, _, b_scores, b_dw = _tile(
                    p_r, p_valid, p_grad_w, semantics, gradient, start, T, K, J, stride_frame, stride_valid, scale,
                    C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, GRAD_SALIENCY, KEEP_IN_REGS, PRECISION,
                )  # fmt: skip
                b_max, b_sum, b_exp, b_decay = softmax_step(b_scores, b_max, b_sum)
                b_delta = b_delta * b_decay + tl.sum(b_exp * b_dw[:, None], 0)
            b_delta = b_delta / total_of(b_sum)
            for start in range(0, T, BLOCK_T):
                tile, norms, b_scores, b_dw = _tile(
                    p_r, p_valid, p_grad_w, semantics, gradient, start, T, K, J, stride_frame, stride_valid, scale,
                    C, BLOCK_T, BLOCK_J, BLOCK_C, CHUNKS, ALIGN, VALID, GRAD_SALIENCY, KEEP_IN_REGS, PRECISION,
                )  # fmt: skip
                _gradients_of_tile(
                    p_grad_r, tile, norms, semantics, gradient, grad_semantics, tracklet - first + start > 0, b_scores,
                    b_dw, b_max, b_sum, b_delta, m_j, T, K, J, scale,
                    C, BLOCK_C, CHUNKS, GRAD_RESPONSES, GRAD_SEMANTICS, KEEP_IN_REGS, PRECISION,
                )  # fmt: skip
