"""The passes as PyTorch operators: for autograd, the compiler and export one opaque call each.

Opaque, because a pass blocks by the sizes that come: nothing of that belongs into a graph that is to serve any batch.
Between the passes only the statistics of rows and columns are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from art_kernels.tracklet_nce import reference
from art_kernels.tracklet_nce.passes import Pairs, Statistics

#: By backend: a module with `forward` and `backward`.
passes: dict[str, ModuleType] = {}

_ARGUMENTS = (
    "Tensor anchors, Tensor candidates, Tensor anchor_ids, Tensor candidate_ids, Tensor? excluded, str rule,"
    " Tensor temperature"
)


@torch.library.custom_op(
    "art_kernels::tracklet_nce",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, bool symmetric, str backend) -> (Tensor rows, Tensor columns)",
)
def tracklet_nce_forward(
    anchors: Tensor,
    candidates: Tensor,
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    excluded: Tensor | None,
    rule: str,
    temperature: Tensor,
    symmetric: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """See `passes.Statistics`."""
    pairs = Pairs(anchor_ids, candidate_ids, excluded, rule)
    return passes[backend].forward(anchors, candidates, pairs, temperature, symmetric)


@tracklet_nce_forward.register_fake
def _(
    anchors: Tensor,
    candidates: Tensor,
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    excluded: Tensor | None,
    rule: str,
    temperature: Tensor,
    symmetric: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        temperature.new_empty(3, anchors.shape[0]),
        temperature.new_empty(3, candidates.shape[0] if symmetric else 0),
    )


@torch.library.custom_op(
    "art_kernels::tracklet_nce_backward",
    mutates_args=(),
    schema=f"(Tensor grad_rows, Tensor grad_columns, {_ARGUMENTS}, Tensor rows, Tensor columns,"
    " bool needs_anchors, bool needs_candidates, str backend)"
    " -> (Tensor anchors, Tensor candidates, Tensor temperature)",
)
def tracklet_nce_backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    excluded: Tensor | None,
    rule: str,
    temperature: Tensor,
    rows: Tensor,
    columns: Tensor,
    needs_anchors: bool,
    needs_candidates: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `passes.Gradients`; in place of None a tensor without elements."""
    pairs = Pairs(anchor_ids, candidate_ids, excluded, rule)
    gradients = passes[backend].backward(
        grad_rows, grad_columns, anchors, candidates, pairs, temperature, Statistics(rows, columns),
        needs_anchors, needs_candidates,
    )  # fmt: skip
    grad_anchors, grad_candidates = (
        anchors.new_empty(0) if gradient is None else gradient for gradient in gradients[:2]
    )
    return grad_anchors, grad_candidates, gradients.temperature


@tracklet_nce_backward.register_fake
def _(
    grad_rows: Tensor,
    grad_columns: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    anchor_ids: Tensor,
    candidate_ids: Tensor,
    excluded: Tensor | None,
    rule: str,
    temperature: Tensor,
    rows: Tensor,
    columns: Tensor,
    needs_anchors: bool,
    needs_candidates: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        anchors.new_empty(anchors.shape if needs_anchors else (0,)),
        candidates.new_empty(candidates.shape if needs_candidates else (0,)),
        temperature.new_empty(()),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    anchors, candidates, *ids, ctx.rule, temperature, ctx.symmetric, ctx.backend = inputs
    ctx.save_for_backward(anchors, candidates, *ids, temperature, *output)


def _backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> tuple[Any, ...]:
    anchors, candidates, *ids, temperature, rows, columns = ctx.saved_tensors
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[6])
    if torch.is_grad_enabled():  # a gradient of the gradient is to follow: by the definition, which has one
        gradients = _gradients_of_definition(ctx, needs, grad_rows, grad_columns)
    else:
        gradients = tracklet_nce_backward(
            grad_rows, grad_columns, anchors, candidates, *ids, ctx.rule, temperature, rows, columns,
            needs[0], needs[1], ctx.backend,
        )  # fmt: skip
    of_anchors, of_candidates, of_temperature = (
        gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
    )
    return of_anchors, of_candidates, None, None, None, None, of_temperature, None, None


def _gradients_of_definition(
    ctx: Any, needs: Sequence[bool], grad_rows: Tensor, grad_columns: Tensor
) -> list[Tensor | None]:
    anchors, candidates, anchor_ids, candidate_ids, excluded, temperature, _, _ = ctx.saved_tensors
    pairs = Pairs(anchor_ids, candidate_ids, excluded, ctx.rule)
    inputs = [tensor for tensor, need in zip((anchors, candidates, temperature), needs, strict=True) if need]
    statistics = reference.tracklet_nce(anchors, candidates, pairs, temperature, ctx.symmetric)
    outputs, weights = [statistics.rows], [grad_rows]
    if ctx.symmetric:
        outputs, weights = list(statistics), [grad_rows, grad_columns]
    found = iter(torch.autograd.grad(outputs, inputs, weights, create_graph=True))
    return [next(found) if need else None for need in needs]


tracklet_nce_forward.register_autograd(_backward, setup_context=_setup_context)


def _no_vmap(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> NoReturn:
    raise ValueError(
        "tracklet_nce: vmap is not supported, since each anchor meets all candidates of one batch; "
        "call it for each batch in a loop"
    )


torch.library.register_vmap(tracklet_nce_forward, _no_vmap)
torch.library.register_vmap(tracklet_nce_backward, _no_vmap)
