"""The fused passes as PyTorch operators: for autograd, the compiler, export and vmap one opaque call each.

Opaque, because a pass allocates, splits and blocks by the sizes that come: nothing of that belongs into a graph that is
to serve any number of frames. No map is saved between the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from art_kernels._core.autograd import merge_batch_dim
from art_kernels.region_attention import reference
from art_kernels.region_attention.passes import Forward

#: By backend: a module with `forward` and `backward`.
passes: dict[str, ModuleType] = {}

#: The backends whose backward pass reads the results of the forward pass; the others compute them again.
_BACKWARD_READS_RESULTS = ("triton",)

_ARGUMENTS = "Tensor queries, Tensor regions, Tensor? key_position, Tensor? region_mask"


@torch.library.custom_op(
    "art_kernels::region_attention",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, float scale, float? layer_norm_eps, bool return_map, str backend)"
    " -> (Tensor output, Tensor softmax, Tensor map)",
)
def region_attention_forward(
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    scale: float,
    layer_norm_eps: float | None,
    return_map: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `passes.Forward`."""
    return passes[backend].forward(queries, regions, key_position, region_mask, scale, layer_norm_eps, return_map)


@region_attention_forward.register_fake
def _(
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    scale: float,
    layer_norm_eps: float | None,
    return_map: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    frames, rows, _ = queries.shape
    return (
        queries.new_empty(queries.shape),
        queries.new_empty((frames, rows, 2) if backend in _BACKWARD_READS_RESULTS else (0,), dtype=torch.float32),
        queries.new_empty((frames, rows, regions.shape[1]) if return_map else (0,)),
    )


@torch.library.custom_op(
    "art_kernels::region_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, Tensor? grad_map, {_ARGUMENTS}, Tensor output, Tensor softmax, Tensor map,"
    " float scale, float? layer_norm_eps, bool needs_regions, bool needs_position, str backend)"
    " -> (Tensor queries, Tensor regions, Tensor key_position)",
)
def region_attention_backward(
    grad_output: Tensor,
    grad_map: Tensor | None,
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    output: Tensor,
    softmax: Tensor,
    weights: Tensor,
    scale: float,
    layer_norm_eps: float | None,
    needs_regions: bool,
    needs_position: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `passes.Gradients`; in place of None a tensor without elements."""
    gradients = passes[backend].backward(
        grad_output, grad_map, queries, regions, key_position, region_mask, Forward(output, softmax, weights),
        scale, layer_norm_eps, needs_regions, needs_position,
    )  # fmt: skip
    grad_queries, *others = gradients
    grad_regions, grad_position = (queries.new_empty(0) if gradient is None else gradient for gradient in others)
    return grad_queries, grad_regions, grad_position


@region_attention_backward.register_fake
def _(
    grad_output: Tensor,
    grad_map: Tensor | None,
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    output: Tensor,
    softmax: Tensor,
    weights: Tensor,
    scale: float,
    layer_norm_eps: float | None,
    needs_regions: bool,
    needs_position: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        queries.new_empty(queries.shape),
        regions.new_empty(regions.shape if needs_regions else (0,)),
        regions.new_empty(regions.shape[1:] if needs_position else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, regions, key_position, region_mask, ctx.scale, ctx.layer_norm_eps, ctx.return_map, ctx.backend = inputs
    _, softmax, _ = output
    # Results that are not read again are not kept alive; `softmax`, then without elements, stands in for each.
    results = output if ctx.backend in _BACKWARD_READS_RESULTS else (softmax,) * 3
    ctx.save_for_backward(queries, regions, key_position, region_mask, *results)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, _: Tensor | None, grad_map: Tensor | None) -> tuple[Any, ...]:
    queries, regions, key_position, region_mask, output, softmax, weights = ctx.saved_tensors
    if not ctx.return_map:
        grad_map = None
    if grad_output is None and grad_map is None:
        return (None,) * 8
    if grad_output is None:
        grad_output = torch.zeros_like(queries)
    needs = ctx.needs_input_grad[:3]
    if (
        torch.is_grad_enabled()
    ):  # a gradient of the gradient is to follow: by the definition, which has one of any order
        gradients = _gradients_of_definition(ctx, needs, grad_output, grad_map)
    else:
        gradients = region_attention_backward(
            grad_output, grad_map, queries, regions, key_position, region_mask, output, softmax, weights,
            ctx.scale, ctx.layer_norm_eps, needs[1], needs[2], ctx.backend,
        )  # fmt: skip
    kept = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
    return (*kept, None, None, None, None, None)


def _gradients_of_definition(
    ctx: Any, needs: Sequence[bool], grad_output: Tensor, grad_map: Tensor | None
) -> list[Tensor | None]:
    queries, regions, key_position, region_mask, *_ = ctx.saved_tensors
    inputs = [tensor for tensor, need in zip((queries, regions, key_position), needs, strict=True) if need]
    output, weights = reference.region_attention(
        queries, regions, ctx.scale, key_position, region_mask, ctx.layer_norm_eps
    )
    if grad_map is None:
        found = torch.autograd.grad(output, inputs, grad_output, create_graph=True)
    else:
        found = torch.autograd.grad((output, weights), inputs, (grad_output, grad_map), create_graph=True)
    gradients = iter(found)
    return [next(gradients) if need else None for need in needs]


region_attention_forward.register_autograd(_backward, setup_context=_setup_context)


def _over_frames(operator: Callable[..., Any], shared: int) -> Callable[..., Any]:
    """The rule of vmap for an operator whose tensors all have frames, save number `shared`, which all share."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        if in_dims[shared] is not None:
            raise ValueError(
                "region_attention: key_position is mapped over by vmap, expected one for all; "
                "keep it out of in_dims, or add it to the regions first"
            )
        folded = [
            merge_batch_dim(info, argument, dim) if isinstance(argument, Tensor) and index != shared else argument
            for index, (argument, dim) in enumerate(zip(arguments, in_dims, strict=True))
        ]
        results = operator(*folded)
        unfolded = tuple(
            result.unflatten(0, (info.batch_size, -1)) if result.dim() > 1 else result.expand(info.batch_size, 0)
            for result in results
        )
        return unfolded, (0,) * len(unfolded)

    return rule


torch.library.register_vmap(region_attention_forward, _over_frames(region_attention_forward, 2))


def _backward_rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
    if arguments[12]:
        raise ValueError(
            "region_attention: vmap over the gradient of key_position, which frames share, is not supported; "
            "call it for each sample, or keep key_position from requiring a gradient"
        )
    return _over_frames(region_attention_backward, 4)(info, in_dims, *arguments)


torch.library.register_vmap(region_attention_backward, _backward_rule)
