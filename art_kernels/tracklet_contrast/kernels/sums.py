"""From the sums of all programs to the three terms; from the gradients of the three terms to those of the inputs."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from art_kernels.tracklet_contrast.kernels.levels import frames_exist


@triton.jit
def _total(p_partial, programs, column, BLOCK: tl.constexpr):
    b_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, programs, BLOCK):
        o_p = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_partial + 4 * o_p.to(tl.int64) + column, mask=o_p < programs, other=0.0)
    return tl.sum(b_sum, 0)


@triton.jit(do_not_specialize=["programs", "tracklet_programs", "K"])
def terms_kernel(p_partial, p_tracklet_partial, p_terms, p_scale, programs, tracklet_programs, K, BLOCK: tl.constexpr):
    """The means, and what the sums are multiplied with to be means: terms[3] and scale[3]. One program."""
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
    p_within,
    p_across,
    p_whole,
    p_grad_terms,
    p_scale,
    p_share,
    p_valid,
    p_grad,
    T,
    stride_valid_video,
    stride_valid_frame,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    VALID: tl.constexpr,
):
    """The gradient of a frame's responses, SIZE = K·C numbers: the scaled sum of those of the three terms.

    WHOLE says what the third is: "none" (aggregated tracklets have it), "frames" (it lies as the others do), or
    "videos" (it is that of the mean over time, of which each valid frame has share[B]).
    """
    blocks: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    o_e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    m_e = o_e < SIZE
    spatial = tl.load(p_grad_terms) * tl.load(p_scale)
    temporal = tl.load(p_grad_terms + 1) * tl.load(p_scale + 1)
    tracklet = tl.load(p_grad_terms + 2) * tl.load(p_scale + 2)
    b_grad = spatial * tl.load(p_within + frame * SIZE + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_grad += temporal * tl.load(p_across + frame * SIZE + o_e, mask=m_e, other=0.0).to(tl.float32)
    if WHOLE == "frames":
        b_grad += tracklet * tl.load(p_whole + frame * SIZE + o_e, mask=m_e, other=0.0).to(tl.float32)
    if WHOLE == "videos":
        video = frame // T
        if VALID:
            p_valid += video * stride_valid_video
        m_t = frames_exist(p_valid, (frame % T).to(tl.int32), True, T, stride_valid_frame, VALID)
        tracklet *= tl.load(p_share + video)
        b_grad += tracklet * tl.load(p_whole + video * SIZE + o_e, mask=m_e & m_t, other=0.0).to(tl.float32)
    tl.store(p_grad + frame * SIZE + o_e, b_grad.to(p_grad.dtype.element_ty), mask=m_e)
