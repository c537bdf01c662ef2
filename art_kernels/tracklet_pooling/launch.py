"""The Triton backend: the forward and the backward pass as launches of kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from art_kernels._core.launch import device_spec, device_unsupported_reason
from art_kernels.tracklet_pooling import kernels
from art_kernels.tracklet_pooling.calls import Inputs, backward_call, forward_call
from art_kernels.tracklet_pooling.tiles import MAX_SEMANTICS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)


def unsupported_reason(semantics: Tensor) -> str | None:
    """Why the kernels cannot serve `semantics` [B,J,C], and responses like them, or None where they can."""
    count = semantics.shape[1] if semantics.dim() > 1 else 0  # the report on all backends has a tensor of one dimension
    if count > MAX_SEMANTICS:
        return f"the kernels take at most {MAX_SEMANTICS} semantics a video, and these are {count}"
    return device_unsupported_reason(semantics, INTERPRETED)


def opt_in(semantics: Tensor) -> bool:
    """Whether the kernels serve `semantics` only when asked for: in Triton's interpreter, which is there for tests."""
    return semantics.device.type != "cuda"


def forward(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    temperature: float,
    valid: Bool[Tensor, "b t"] | None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """The aggregated tracklets and the saliency, in the dtype of the responses; the arguments are checked already."""
    videos, frames, count, channels = responses.shape
    saliency = responses.new_empty(videos, frames, count)
    if saliency.numel() == 0:
        return responses.new_empty(videos, count, channels), saliency
    inputs = Inputs(responses, semantics, temperature, valid)
    call, aggregated = forward_call(inputs, inputs.tiles("forward", device_spec(responses.device)), saliency)
    call.run()
    return aggregated.to(responses.dtype), saliency


def backward(
    grad_aggregated: Float[Tensor, "b k c"],
    grad_saliency: Float[Tensor, "b t k"] | None,
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    temperature: float,
    valid: Bool[Tensor, "b t"] | None,
    needs_responses: bool,
    needs_semantics: bool,
) -> tuple[Float[Tensor, "b t k c"] | None, Float[Tensor, "b j c"] | None]:
    """The gradients of responses and semantics, None where they are not needed."""
    grad_responses = None
    if needs_responses:
        grad_responses = torch.empty(responses.shape, dtype=responses.dtype, device=responses.device)
    if responses.numel() == 0:
        return grad_responses, torch.zeros_like(semantics) if needs_semantics else None
    if grad_saliency is not None:
        grad_saliency = grad_saliency.contiguous()
    inputs = Inputs(responses, semantics, temperature, valid)
    call, parts = backward_call(
        inputs, inputs.tiles("backward", device_spec(responses.device)), grad_aggregated.contiguous(), grad_saliency,
        grad_responses, needs_semantics,
    )  # fmt: skip
    call.run()
    return grad_responses, None if parts is None else parts.sum(1).to(semantics.dtype)
