"""The passes as PyTorch operators: for autograd, the compiler, export and vmap one opaque call each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from art_kernels._core.precision import accumulation_dtype, at_least_float32
from art_kernels.tracklet_contrast import reference
from art_kernels.tracklet_contrast.passes import Forward, Options

#: By backend: a module with `forward` and `backward`.
passes: dict[str, ModuleType] = {}

_INPUTS = "Tensor responses, Tensor? aggregated, Tensor? valid"
_OPTIONS = "float margin, bool absolute, bool clamp, bool flattened"


@torch.library.custom_op(
    "art_kernels::mtc_loss",
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTIONS}, bool gradients, str backend)"
    " -> (Tensor terms, Tensor scale, Tensor within, Tensor across, Tensor whole)",
)
def mtc_loss_forward(
    responses: Tensor,
    aggregated: Tensor | None,
    valid: Tensor | None,
    margin: float,
    absolute: bool,
    clamp: bool,
    flattened: bool,
    gradients: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `passes.Forward`."""
    options = Options(margin, absolute, clamp, flattened)
    return tuple(passes[backend].forward(responses, aggregated, valid, options, gradients))


@mtc_loss_forward.register_fake
def _(
    responses: Tensor,
    aggregated: Tensor | None,
    valid: Tensor | None,
    margin: float,
    absolute: bool,
    clamp: bool,
    flattened: bool,
    gradients: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    batch, frames, count, channels = responses.shape
    wide = accumulation_dtype(responses.dtype)
    terms = (responses.new_empty(3, dtype=wide), responses.new_empty(3, dtype=wide))
    if backend == "triton":
        like_responses = responses.new_empty(responses.shape if gradients else (0,))
        if flattened or not gradients:
            return *terms, like_responses, torch.empty_like(like_responses), torch.empty_like(like_responses)
        dtype = torch.float32 if aggregated is None else aggregated.dtype
        whole = responses.new_empty((batch, count, channels), dtype=dtype)
        return *terms, like_responses, torch.empty_like(like_responses), whole
    return (
        *terms,
        responses.new_empty((batch, frames, count, count) if gradients else (0,), dtype=wide),
        responses.new_empty((2, batch, frames, count) if gradients else (0,), dtype=wide),
        responses.new_empty((batch, count, count) if gradients else (0,), dtype=wide),
    )


@torch.library.custom_op(
    "art_kernels::mtc_loss_backward",
    mutates_args=(),
    schema=f"(Tensor grad_terms, {_INPUTS}, Tensor terms, Tensor scale, Tensor within, Tensor across, Tensor whole,"
    f" {_OPTIONS}, bool needs_responses, bool needs_aggregated, str backend) -> (Tensor responses, Tensor aggregated)",
)
def mtc_loss_backward(
    grad_terms: Tensor,
    responses: Tensor,
    aggregated: Tensor | None,
    valid: Tensor | None,
    terms: Tensor,
    scale: Tensor,
    within: Tensor,
    across: Tensor,
    whole: Tensor,
    margin: float,
    absolute: bool,
    clamp: bool,
    flattened: bool,
    needs_responses: bool,
    needs_aggregated: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """See `passes.Gradients`; in place of None a tensor without elements."""
    gradients = passes[backend].backward(
        grad_terms.contiguous(), responses, aggregated, valid, Forward(terms, scale, within, across, whole),
        Options(margin, absolute, clamp, flattened), needs_responses, needs_aggregated,
    )  # fmt: skip
    of_responses, of_aggregated = (responses.new_empty(0) if given is None else given for given in gradients)
    return of_responses, of_aggregated


@mtc_loss_backward.register_fake
def _(
    grad_terms: Tensor,
    responses: Tensor,
    aggregated: Tensor | None,
    valid: Tensor | None,
    terms: Tensor,
    scale: Tensor,
    within: Tensor,
    across: Tensor,
    whole: Tensor,
    margin: float,
    absolute: bool,
    clamp: bool,
    flattened: bool,
    needs_responses: bool,
    needs_aggregated: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        responses.new_empty(responses.shape if needs_responses else (0,)),
        responses.new_empty(aggregated.shape if aggregated is not None and needs_aggregated else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    responses, aggregated, valid, margin, absolute, clamp, flattened, ctx.prepared, ctx.backend = inputs
    ctx.options = Options(margin, absolute, clamp, flattened)
    ctx.save_for_backward(responses, aggregated, valid, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_terms: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    others = (None,) * 7  # of the mask and the options
    if grad_terms is None:
        return (None, None, *others)
    needs = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled() or not ctx.prepared:  # a gradient of the gradient is to follow: by the definition
        gradients = _gradients_of_definition(ctx, needs, grad_terms)
    else:
        gradients = mtc_loss_backward(grad_terms, *ctx.saved_tensors, *ctx.options, *needs, ctx.backend)
    kept = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
    return (*kept, *others)


def _gradients_of_definition(ctx: Any, needs: Sequence[bool], grad_terms: Tensor) -> list[Tensor | None]:
    create_graph = torch.is_grad_enabled()
    responses, aggregated, valid, *_ = ctx.saved_tensors
    inputs = [tensor for tensor, need in zip((responses, aggregated), needs, strict=True) if need]
    with torch.enable_grad():
        terms = definition(
            at_least_float32(responses),
            None if aggregated is None else at_least_float32(aggregated),
            valid,
            ctx.options,
        )
        found = iter(torch.autograd.grad(
            terms, inputs, grad_terms.unbind(), create_graph=create_graph, allow_unused=True, materialize_grads=True
        ))  # fmt: skip
    return [next(found) if need else None for need in needs]


def definition(
    responses: Tensor, aggregated: Tensor | None, valid: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms as defined."""
    return reference.mtc_loss(
        responses,
        aggregated,
        options.margin,
        valid,
        "absolute" if options.absolute else "hinge",
        options.clamp,
        "flattened" if options.flattened else "pooled",
    )


mtc_loss_forward.register_autograd(_backward, setup_context=_setup_context)


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of vmap: each sample has means of its own, so one call each."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        def of_sample(sample: int) -> tuple[Tensor, ...]:
            return operator(*(
                argument.select(dim, sample) if isinstance(argument, Tensor) and dim is not None else argument
                for argument, dim in zip(arguments, in_dims, strict=True)
            ))  # fmt: skip

        results = tuple(map(torch.stack, zip(*map(of_sample, range(info.batch_size)), strict=True)))
        return results, (0,) * len(results)

    return rule


torch.library.register_vmap(mtc_loss_forward, _one_by_one(mtc_loss_forward))
torch.library.register_vmap(mtc_loss_backward, _one_by_one(mtc_loss_backward))
