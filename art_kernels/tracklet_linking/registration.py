"""Assignment and linking by similarity as PyTorch operators: for the compiler, export and vmap one opaque call each.

A matching has no gradient. The similarity of its links has one, that of a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from art_kernels.cosine import cosine_norms
from art_kernels.mapped import fold
from art_kernels.precision import accumulation_dtype, at_least_float32
from art_kernels.tracklet_linking import extension, native


@torch.library.custom_op("art_kernels::linear_assignment", mutates_args=())
def assign(cost: Tensor, maximize: bool, check: bool) -> Tensor:
    """The columns [...,K] that the rows of cost [...,K,K] take."""
    problems = cost.flatten(0, -3) if cost.dim() > 2 else cost[None]
    columns, first_bad = extension.solve(problems, maximize=maximize, greedy=False)
    if first_bad is None and check and (bad := columns[:, 0] < 0).any():
        first_bad = int(bad.int().argmax())
    if first_bad is not None and first_bad >= 0:
        problem = first_problem(first_bad, cost.shape[:-2])
        raise ValueError(
            f"linear_assignment: cost{problem} holds NaN or inf, expected finite numbers; "
            "write a large number where a row must not take a column"
        )
    return columns.view(cost.shape[:-1])


def first_problem(index: int, sizes: Sequence[int]) -> str:
    """Where problem `index` of a batch of `sizes` stands, such as "[3, 1]"."""
    where: list[int] = []
    for size in reversed(sizes):
        where.insert(0, index % size)
        index //= size
    return str(where) if where else ""


@assign.register_fake
def _(cost: Tensor, maximize: bool, check: bool) -> Tensor:
    return cost.new_empty(cost.shape[:-1], dtype=torch.int64)


@torch.library.register_vmap(assign)
def _(info: Any, in_dims: Sequence[int | None], cost: Tensor, maximize: bool, check: bool) -> tuple[Tensor, int]:
    assert in_dims[0] is not None
    return assign(cost.movedim(in_dims[0], 0), maximize, check), 0


@torch.library.custom_op("art_kernels::link_tracklets", mutates_args=())
def link(responses: Tensor, greedy: bool, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity [B,T-1,K], order [B,T,K] and tracklet ids [B,T,K]."""
    order, similarity, tracklet_id = native.link_by_similarity(responses, greedy=greedy, min_similarity=min_similarity)
    return similarity, order, tracklet_id


@link.register_fake
def _(responses: Tensor, greedy: bool, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    videos, frames, size, _ = responses.shape
    dtype = accumulation_dtype(responses.dtype)
    return (
        responses.new_empty((videos, frames - 1, size), dtype=dtype),
        responses.new_empty((videos, frames, size), dtype=torch.int64),
        responses.new_empty((videos, frames, size), dtype=torch.int64),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, bool, float | None], output: tuple[Tensor, Tensor, Tensor]) -> None:
    similarity, order, tracklet_id = output
    ctx.save_for_backward(inputs[0], order, similarity)
    ctx.mark_non_differentiable(order, tracklet_id)


def _backward(ctx: Any, grad_similarity: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
    """With unit vectors a and b, the gradient of a · b to the first vector is (b - (a · b) a) / its norm."""
    responses, order, similarity = ctx.saved_tensors
    index = order[..., None].expand_as(responses)
    linked = at_least_float32(responses).gather(2, index)
    norms = cosine_norms(linked.square().sum(-1, keepdim=True))
    units, cosines, grad = linked / norms, similarity[..., None], grad_similarity[..., None]
    first, second = units[:, :-1], units[:, 1:]
    none = torch.zeros_like(units[:, :1])
    to_first = torch.cat([grad * (second - cosines * first), none], 1)
    to_second = torch.cat([none, grad * (first - cosines * second)], 1)
    grad_linked = (to_first + to_second) / norms
    # A frame's slots hold each of its responses once: nothing is added up.
    return torch.zeros_like(grad_linked).scatter(2, index, grad_linked).to(responses.dtype), None, None


link.register_autograd(_backward, setup_context=_setup_context)


@torch.library.register_vmap(link)
def _(
    info: Any, in_dims: Sequence[int | None], responses: Tensor, greedy: bool, min_similarity: float | None
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    folded = fold(info, responses, in_dims[0])
    assert folded is not None
    results = link(folded, greedy, min_similarity)
    return tuple(result.unflatten(0, (info.batch_size, -1)) for result in results), (0, 0, 0)
