"""The fused passes as PyTorch operators: for autograd, the compiler, export and vmap one opaque call each.

Only the inputs are saved between the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from art_kernels._core.autograd import merge_batch_dim
from art_kernels._core.precision import at_least_float32
from art_kernels.tracklet_pooling import launch, reference


@torch.library.custom_op("art_kernels::pool_tracklets", mutates_args=())
def pool_tracklets_forward(
    responses: Tensor, semantics: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `launch.forward`."""
    return launch.forward(responses, semantics, temperature, valid)


@pool_tracklets_forward.register_fake
def _(responses: Tensor, semantics: Tensor, temperature: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    videos, frames, count, channels = responses.shape
    return responses.new_empty(videos, count, channels), responses.new_empty(videos, frames, count)


@torch.library.custom_op("art_kernels::pool_tracklets_backward", mutates_args=())
def pool_tracklets_backward(
    grad_aggregated: Tensor,
    grad_saliency: Tensor | None,
    responses: Tensor,
    semantics: Tensor,
    temperature: float,
    valid: Tensor | None,
    needs_responses: bool,
    needs_semantics: bool,
) -> tuple[Tensor, Tensor]:
    """See `launch.backward`; in place of None a tensor without elements."""
    gradients = launch.backward(
        grad_aggregated, grad_saliency, responses, semantics, temperature, valid, needs_responses, needs_semantics
    )
    grad_responses, grad_semantics = (responses.new_empty(0) if found is None else found for found in gradients)
    return grad_responses, grad_semantics


@pool_tracklets_backward.register_fake
def _(
    grad_aggregated: Tensor,
    grad_saliency: Tensor | None,
    responses: Tensor,
    semantics: Tensor,
    temperature: float,
    valid: Tensor | None,
    needs_responses: bool,
    needs_semantics: bool,
) -> tuple[Tensor, Tensor]:
    return (
        responses.new_empty(responses.shape if needs_responses else (0,)),
        semantics.new_empty(semantics.shape if needs_semantics else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    responses, semantics, ctx.temperature, valid = inputs
    ctx.save_for_backward(responses, semantics, valid)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_aggregated: Tensor | None, grad_saliency: Tensor | None) -> tuple[Any, ...]:
    responses, semantics, valid = ctx.saved_tensors
    if grad_aggregated is None and grad_saliency is None:
        return (None,) * 4
    if grad_aggregated is None:
        grad_aggregated = responses.new_zeros(responses.shape[0], *responses.shape[2:])
    needs = ctx.needs_input_grad[:2]
    if (
        torch.is_grad_enabled()
    ):  # a gradient of the gradient is to follow: by the definition, which has one of any order
        gradients = _gradients_of_definition(ctx, needs, grad_aggregated, grad_saliency)
    else:
        gradients = pool_tracklets_backward(
            grad_aggregated, grad_saliency, responses, semantics, ctx.temperature, valid, *needs
        )
    kept = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
    return (*kept, None, None)


def _gradients_of_definition(
    ctx: Any, needs: Sequence[bool], grad_aggregated: Tensor, grad_saliency: Tensor | None
) -> list[Tensor | None]:
    responses, semantics, valid = ctx.saved_tensors
    inputs = [tensor for tensor, need in zip((responses, semantics), needs, strict=True) if need]
    computed = reference.pool_tracklets(
        at_least_float32(responses), at_least_float32(semantics), ctx.temperature, valid
    )
    results = [result.to(responses.dtype) for result in computed]
    if grad_saliency is None:
        found = torch.autograd.grad(results[0], inputs, grad_aggregated, create_graph=True)
    else:
        found = torch.autograd.grad(results, inputs, (grad_aggregated, grad_saliency), create_graph=True)
    gradients = iter(found)
    return [next(gradients) if need else None for need in needs]


pool_tracklets_forward.register_autograd(_backward, setup_context=_setup_context)


def _over_videos(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of vmap for an operator whose tensors all have the videos first."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = [
            merge_batch_dim(info, argument, dim) if isinstance(argument, Tensor) else argument
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        unfolded = tuple(
            result.unflatten(0, (info.batch_size, -1)) if result.dim() > 1 else result.expand(info.batch_size, 0)
            for result in operator(*folded)
        )
        return unfolded, (0,) * len(unfolded)

    return rule


for _operator in (pool_tracklets_forward, pool_tracklets_backward):
    torch.library.register_vmap(_operator, _over_videos(_operator))
