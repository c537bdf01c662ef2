"""Reference implementations of assignment and of tracklet linking."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from art_kernels._core.precision import accumulation_dtype, at_least_float32, unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped
    from torch import Tensor

#: Most rows or columns whose matchings are enumerated: 8! = 40,320.
MAX_SIZE = 8

METHODS = ("index", "greedy", "optimal")

#: Advantage of the cosine of responses with the same index when matching, by accumulation dtype. It exceeds the
#: rounding error of a cosine, so that mathematically equal cosines never move a tracklet to another slot.
TIE = {torch.float32: 2.0**-18, torch.float64: 2.0**-44}


def tie_of(dtype: torch.dtype) -> float:
    """Return the advantage in `TIE` for responses of this dtype."""
    return TIE[accumulation_dtype(dtype)]


def optimal_assignment(cost: Shaped[Tensor, "... m n"], *, maximize: bool = False) -> Int[Tensor, "... m"]:
    """Return the matching of the whole smaller side that minimizes the sum of costs, the first one of equals.

    Unmatched rows have -1, and so have all rows of a problem without a finite minimum.
    """
    rows, cols = cost.shape[-2:]
    if cols == 0:
        return torch.full(cost.shape[:-1], -1, dtype=torch.int64, device=cost.device)
    if not cost.is_floating_point():
        cost = to_int64(cost)
    columns = torch.tensor(_matchings(rows, cols), dtype=torch.int64, device=cost.device)  # [P, M]
    pairs = cost[..., torch.arange(rows, device=cost.device), columns.clamp_min(0)]  # [..., P, M]
    pairs = pairs.masked_fill(columns < 0, 0)
    if not cost.is_floating_point():
        return columns[_best_of_integers(pairs, maximize)]
    sums = pairs.double().sum(-1)  # [..., P]
    best, found = sums.max(-1) if maximize else sums.min(-1)
    return columns[found].masked_fill(~best.isfinite()[..., None], -1)


def _matchings(rows: int, cols: int) -> list[list[int]]:
    """Return every matching of the whole smaller side: the column of each row, or -1."""
    if rows <= cols:
        return [list(columns) for columns in itertools.permutations(range(cols), rows)]
    chosen = itertools.permutations(range(rows), cols)
    return [[taken.index(row) if row in taken else -1 for row in range(rows)] for taken in chosen]


def to_int64(cost: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Convert integer costs; those in uint64 minus 2**63, which changes no optimum."""
    if cost.dtype == torch.uint64:
        return cost.contiguous().view(torch.int64) ^ torch.iinfo(torch.int64).min
    return cost.long()


def _best_of_integers(pairs: Int[Tensor, "... p m"], maximize: bool) -> Int[Tensor, "..."]:
    """Return the index p of the best sum; sums of the upper and lower 32 bits cannot overflow."""
    lower = (pairs & 0xFFFFFFFF).sum(-1)
    upper = (pairs >> 32).sum(-1) + (lower >> 32)
    lower = lower & 0xFFFFFFFF
    if maximize:
        return lower.masked_fill(upper < upper.amax(-1, keepdim=True), -1).argmax(-1)
    return lower.masked_fill(upper > upper.amin(-1, keepdim=True), 1 << 33).argmin(-1)


def greedy_assignment(cost: Float[Tensor, "... k k"], *, maximize: bool = False) -> Int[Tensor, "... k"]:
    """Assign the smallest cost first, then the smallest among the remaining rows and columns; the first of equals."""
    size = cost.shape[-1]
    remaining = (-cost if maximize else cost).double().flatten(0, -3).clone()  # [P, K, K]
    columns = remaining.new_empty(remaining.shape[:2], dtype=torch.int64)
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
    finite = responses.detach().square().sum(-1).isfinite()
    units = unit_vectors(responses.masked_fill(~finite[..., None], 0))  # without a gradient for the others
    defined = finite[:, :-1, :, None] & finite[:, 1:, None, :]  # [B, T-1, K, K]
    order = torch.arange(responses.shape[2], device=responses.device).expand(responses.shape[:3]).clone()
    if method != "index":
        wide = at_least_float32(units.detach())
        cosines = (wide[:, :-1] @ wide[:, 1:].mT).masked_fill(~defined, -2).double()  # below every cosine
        cosines.diagonal(dim1=-2, dim2=-1).add_(tie_of(responses.dtype))
        assign = optimal_assignment if method == "optimal" else greedy_assignment
        matches = assign(cosines, maximize=True)
        frames = [order[:, 0]]
        for t in range(responses.shape[1] - 1):
            frames.append(matches[:, t].gather(1, frames[t]))
        order = torch.stack(frames, 1)  # not written in place, which `torch.func` does not support
    units = units.gather(2, order[..., None].expand_as(units))
    finite = finite.gather(2, order)
    similarity = (units[:, :-1] * units[:, 1:]).sum(-1)
    return order, similarity.masked_fill(~(finite[:, :-1] & finite[:, 1:]), torch.nan)


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
