"""A tile of the responses of one tracklet, its scores against the semantics, and their softmax over time."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels._core.rows import load_chunk, rows_at

#: What a compiled variant does not depend on: no recompilation where a batch, or a clip, has another length.
SIZES = [
    "T", "K", "J", "stride_video", "stride_frame", "stride_tracklet", "stride_semantics", "stride_semantic",
    "stride_valid_video", "stride_valid",
]  # fmt: skip


@triton.jit
def one_row(p_row, m_row):
    """A view of a single row, for `load_chunk` and `store_chunk`."""
    return rows_at(p_row, tl.zeros([1], tl.int32), tl.full([1], m_row, tl.int1), 0, 1)


@triton.jit
def tile_at(
    p_responses, p_valid, start, T, stride_frame, stride_valid,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, ALIGN: tl.constexpr,
    VALID: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """The tile of frames that begins at `start`: their numbers, which of them are valid, a view of the responses, and
    with HOLD their one chunk."""
    o_t = start + tl.arange(0, BLOCK_T)
    m_t = o_t < T
    if VALID:
        m_t = tl.load(p_valid + o_t.to(tl.int64) * stride_valid, mask=m_t, other=0) != 0
    responses = rows_at(p_responses, o_t, m_t, stride_frame, ALIGN)
    held = 0.0
    if HOLD:
        held = load_chunk(responses, 0, C, BLOCK_C, CHUNKS)
    return o_t, m_t, responses, held


@triton.jit
def response(
    responses, held, k, HOLD: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Chunk k of a tile."""
    if HOLD:
        b_r = held
    else:
        b_r = load_chunk(responses, k, C, BLOCK_C, CHUNKS)
    return b_r


@triton.jit
def _norms(b_squares):
    """Norms from squared norms; infinite where the vector counts as zero, as in `art_kernels.cosine`."""
    return tl.sqrt_rn(tl.where(b_squares < 1.1754943508222875e-38, float("inf"), b_squares))


@triton.jit
def products(
    responses, held, semantics, gradient,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    GRADIENT: tl.constexpr, HOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile r: r sᵀ [BLOCK_T, BLOCK_J]; |r| and |s|; with GRADIENT r · gradient [BLOCK_T]."""
    b_products = tl.zeros([BLOCK_T, BLOCK_J], tl.float32)
    b_r_squares = tl.zeros([BLOCK_T], tl.float32)
    b_s_squares = tl.zeros([BLOCK_J], tl.float32)
    b_grad = tl.zeros([BLOCK_T], tl.float32)
    for k in range(CHUNKS):
        b_r = response(responses, held, k, HOLD, C, BLOCK_C, CHUNKS)
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
    """Cosine · scale, -inf in frames that take no part."""
    # Exact divisions: where the scores are large, each rounding of one frame and not of the others weighs.
    b_scores = tl.div_rn(b_products * tl.div_rn(scale, b_s_norms)[None, :], b_r_norms[:, None])
    return tl.where(m_t[:, None], b_scores, float("-inf"))


@triton.jit
def exponentials(b_scores, b_max):
    """exp(score - highest of its semantic); 0 and not exp(inf - inf) where no frame takes part."""
    return tl.exp(b_scores - tl.where(b_max == float("-inf"), 0.0, b_max)[None, :])


@triton.jit
def softmax_step(b_scores, b_max, b_sum):
    """One more tile for the softmax over time: the highest score of each semantic, the sum of exponentials, those of
    the tile, and what sums over earlier tiles are to be multiplied by."""
    b_highest = tl.maximum(b_max, tl.max(b_scores, 0))
    b_exp = exponentials(b_scores, b_highest)
    b_decay = tl.exp(b_max - tl.where(b_highest == float("-inf"), 0.0, b_highest))
    return b_highest, b_sum * b_decay + tl.sum(b_exp, 0), b_exp, b_decay


@triton.jit
def total_of(b_sum):
    """The sum of exponentials as a divisor: 1 where no frame takes part, for zeros and not 0 / 0."""
    return tl.where(b_sum == 0, 1.0, b_sum)


@triton.jit
def weights_of(b_scores, b_max, b_sum, m_j, J):
    """The softmax over time of each semantic [BLOCK_T, BLOCK_J], and the mean over them: the saliency [BLOCK_T]."""
    b_total = total_of(b_sum)
    b_weights = tl.where(m_j[None, :], exponentials(b_scores, b_max) / b_total[None, :], 0.0)
    return b_weights, tl.sum(b_weights, 1) / J
