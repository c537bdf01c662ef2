"""Reference implementations of assignment and of tracklet linking."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from art_kernels._core.precision import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

#: Most rows whose matchings are enumerated: 8! = 40,320.
MAX_SIZE = 8

METHODS = ("index", "greedy", "optimal")


def optimal_assignment(cost: Float[Tensor, "... k k"], *, maximize: bool = False) -> Int[Tensor, "... k"]:
    """Return the permutation π that minimizes Σ_i cost[i, π(i)], the lexicographically first one of equals."""
    size = cost.shape[-1]
    permutations = torch.tensor(
        [*itertools.permutations(range(size))], dtype=torch.int64, device=cost.device
    )  # [K!, K]
    rows = torch.arange(size, device=cost.device)
    sums = cost.double()[..., rows, permutations].sum(-1)  # [..., K!]
    return permutations[sums.argmax(-1) if maximize else sums.argmin(-1)]


def greedy_assignment(cost: Float[Tensor, "... k k"], *, maximize: bool = False) -> Int[Tensor, "... k"]:
    """Assign the smallest cost first, then the smallest among the remaining rows and columns; the first of equals."""
    size = cost.shape[-1]
    remaining = (-cost if maximize else cost).double().flatten(0, -3).clone()  # [P, K, K]
    columns = torch.empty(remaining.shape[:2], dtype=torch.int64, device=cost.device)
    problems = torch.arange(remaining.shape[0], device=cost.device)  # len() would be a constant in a traced graph
    for _ in range(size):
        smallest = remaining.flatten(1).argmin(1)
        row, column = smallest // size, smallest % size
        columns[problems, row] = column
        remaining[problems, row, :] = remaining[problems, :, column] = torch.inf
    return columns.view(cost.shape[:-1])


def link_tracklets(
    responses: Float[Tensor, "b t k c"], method: str
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"]]:
    """Return the order in which responses continue tracklets, and the cosine of adjacent responses of each tracklet."""
    units = unit_vectors(responses)
    order = torch.arange(responses.shape[2], device=responses.device).expand(responses.shape[:3]).clone()
    if method != "index":
        cosines = (units[:, :-1] @ units[:, 1:].mT).detach()  # [B, T-1, K, K]
        cosines = cosines.masked_fill(~cosines.isfinite(), -2)  # below every cosine
        assign = optimal_assignment if method == "optimal" else greedy_assignment
        matches = assign(cosines, maximize=True)
        for t in range(responses.shape[1] - 1):
            order[:, t + 1] = matches[:, t].gather(1, order[:, t])
    units = units.gather(2, order[..., None].expand_as(units))
    return order, (units[:, :-1] * units[:, 1:]).sum(-1)


def tracklet_ids(
    order: Int[Tensor, "b t k"], similarity: Float[Tensor, "b t-1 k"], min_similarity: float | None
) -> Int[Tensor, "b t k"]:
    """Number the tracklets that start in each video, and assign to each slot the number of its latest start."""
    if min_similarity is None:
        return torch.arange(order.shape[2], device=order.device).expand(order.shape).contiguous()
    ended = ~(similarity >= min_similarity)  # written so that NaN ends a tracklet
    started = torch.cat([ended.new_ones(order[:, :1].shape), ended], 1)  # [B, T, K]
    number = started.flatten(1).cumsum(1).view(started.shape) - 1
    # Numbers increase with time, so the largest one up to frame t is the latest.
    return number.masked_fill(~started, -1).cummax(1).values
