"""The Triton backend: the forward and the backward pass as launches of kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from art_kernels._core.launch import float32_like
from art_kernels._core.launch import device_spec, device_unsupported_reason
from art_kernels.tracklet_contrast import kernels
from art_kernels.tracklet_contrast.calls import Rows, flattened_call, levels_call, mean_call, terms_call, weigh_call
from art_kernels.tracklet_contrast.passes import Forward, Gradients, Options
from art_kernels.tracklet_contrast.tiles import MAX_TRACKLETS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.levels_kernel, triton.runtime.JITFunction)


def unsupported_reason(responses: Tensor) -> str | None:
    """Why the kernels cannot serve `responses`, or None where they can."""
    if responses.dim() == 4 and responses.shape[2] > MAX_TRACKLETS:
        return f"the kernels compare at most {MAX_TRACKLETS} tracklets, and these are {responses.shape[2]}"
    return device_unsupported_reason(responses, INTERPRETED)


def opt_in(responses: Tensor) -> bool:
    """Whether the kernels serve `responses` only when asked for: in Triton's interpreter, which is there for tests."""
    return responses.device.type != "cuda"


def forward(
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None,
    valid: Bool[Tensor, "b t"] | None,
    options: Options,
    gradients: bool,
) -> Forward:
    """The terms, and the gradients of their sums; the responses are read once, twice where they are pooled here."""
    terms, scale = float32_like(responses, 3), float32_like(responses, 3)
    saved = _saved(responses, aggregated, options, gradients)
    if responses.numel() == 0:
        return Forward(terms.zero_(), scale.zero_(), *saved)
    within, across, whole = saved if gradients else (None, None, None)
    rows = Rows(responses, valid, device_spec(responses.device))
    levels, partial = levels_call(rows, options, within, across, temporal=True)
    levels.run()
    if options.flattened:
        tracklets, tracklet_partial = flattened_call(rows, options, whole)
    else:
        tracklets, tracklet_partial = levels_call(_pooled(rows, aggregated), options, whole, None, temporal=False)
    tracklets.run()
    terms_call(partial, tracklet_partial, responses.shape[2], terms, scale).run()
    return Forward(terms, scale, *saved)


def backward(
    grad_terms: Float[Tensor, "3"],
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None,
    valid: Bool[Tensor, "b t"] | None,
    saved: Forward,
    options: Options,
    needs_responses: bool,
    needs_aggregated: bool,
) -> Gradients:
    """Scaled sums of what the forward pass saved."""
    grad_responses = grad_aggregated = None
    if needs_aggregated:
        grad_aggregated = (saved.whole.float() * (grad_terms[2] * saved.scale[2])).to(saved.whole.dtype)
    if needs_responses:
        grad_responses = torch.empty(responses.shape, dtype=responses.dtype, device=responses.device)
        whole = saved.whole if aggregated is None else saved.whole[:0]
        share = None
        if aggregated is None and not options.flattened:
            share = 1 / _frames(responses, valid)
        if responses.numel() > 0:
            weigh_call(grad_terms, saved.scale, saved.within, saved.across, whole, share, valid, grad_responses).run()
    return Gradients(grad_responses, grad_aggregated)


def _saved(responses: Tensor, aggregated: Tensor | None, options: Options, gradients: bool) -> tuple[Tensor, ...]:
    """Buffers for the gradients of the three sums."""
    if not gradients:
        return tuple(responses.new_empty(0) for _ in range(3))
    like_responses = [torch.empty(responses.shape, dtype=responses.dtype, device=responses.device) for _ in range(2)]
    batch, _, count, channels = responses.shape
    if options.flattened:
        return *like_responses, torch.empty_like(like_responses[0])
    dtype = torch.float32 if aggregated is None else aggregated.dtype
    return *like_responses, torch.empty((batch, count, channels), dtype=dtype, device=responses.device)


def _pooled(rows: Rows, aggregated: Tensor | None) -> Rows:
    """The tracklets as rows of one frame, which is there where the video has one."""
    batch, _, count, channels = rows.responses.shape
    if aggregated is None:
        aggregated = float32_like(rows.responses, batch, count, channels)
        mean_call(rows, aggregated).run()
    valid = None if rows.valid is None else rows.valid.any(1, keepdim=True)
    return Rows(aggregated[:, None], valid, rows.device)


def _frames(responses: Tensor, valid: Tensor | None) -> Float[Tensor, " b"]:
    """Valid frames of each video, at least 1."""
    if valid is None:
        return torch.full(responses.shape[:1], responses.shape[1], dtype=torch.float32, device=responses.device)
    return valid.sum(1, dtype=torch.float32).clamp(min=1)
