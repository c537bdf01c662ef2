"""The definitions of assignment and of tracklet linking."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from art_kernels.cosine import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

#: All matchings are listed: 40,320 of eight rows.
MAX_SIZE = 8

METHODS = ("index", "greedy", "optimal")


def optimal_assignment(cost: Float[Tensor, "... k k"], *, maximize: bool = False) -> Int[Tensor, "... k"]:
    """The permutation π with the least Σ_i cost[i, π(i)], the first of them in lexicographic order."""
    size = cost.shape[-1]
    permutations = torch.tensor(
        [*itertools.permutations(range(size))], dtype=torch.int64, device=cost.device
    )  # [K!, K]
    rows = torch.arange(size, device=cost.device)
    sums = cost.double()[..., rows, permutations].sum(-1)  # [..., K!]
    return permutations[sums.argmax(-1) if maximize else sums.argmin(-1)]


def greedy_assignment(cost: Float[Tensor, "... k k"], *, maximize: bool = False) -> Int[Tensor, "... k"]:
    """The least cost first, then the least among the rows and columns that are left; the first where some are equal."""
    size = cost.shape[-1]
    left = (-cost if maximize else cost).double().flatten(0, -3).clone()  # [P, K, K]
    columns = torch.empty(left.shape[:2], dtype=torch.int64, device=cost.device)
    problems = torch.arange(left.shape[0], device=cost.device)  # len() would fix it in a traced graph
    for _ in range(size):
        at = left.flatten(1).argmin(1)
        row, column = at // size, at % size
        columns[problems, row] = column
        left[problems, row, :] = left[problems, :, column] = torch.inf
    return columns.view(cost.shape[:-1])


def link_tracklets(
    responses: Float[Tensor, "b t k c"], method: str
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"]]:
    """The order in which responses continue tracklets, and the cosine of adjacent responses of each."""
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
    """Number the births in each video, then let each slot carry the number of its latest birth."""
    if min_similarity is None:
        return torch.arange(order.shape[2], device=order.device).expand(order.shape).contiguous()
    ended = ~(similarity >= min_similarity)  # written so that NaN ends a tracklet
    born = torch.cat([ended.new_ones(order[:, :1].shape), ended], 1)  # [B, T, K]
    number = born.flatten(1).cumsum(1).view(born.shape) - 1
    # Numbers grow with time, so that the largest up to frame t is the latest.
    return number.masked_fill(~born, -1).cummax(1).values
