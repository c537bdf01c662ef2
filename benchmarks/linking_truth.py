"""Whether matchings are optimal and links what they say they are."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from art_kernels import linear_assignment
from benchmarks.assignment_solvers import LAPCPP, LAPX, SCIPY, Solver, as_columns, refusal, solvers

#: A sum of costs may be off by so many rounding errors, in the dtype of the costs, of a row's largest cost, and a
#: cosine by so many of 1.
ROUNDING = 64
CPU = torch.device("cpu")
#: It lists all matchings of every problem: 24 of four rows.
_DEFINITION_ROWS = 4
NO_JUDGE = "there is nobody to compare with: pip install scipy"


def judge(size: int) -> Solver | None:
    """Whose optimum all must reach in problems of so many rows: SciPy's; where that is not installed, a peer's; where
    there is no peer, that of the definition, of a few rows only. None: nothing could be compared."""
    for provider in (SCIPY, LAPX, LAPCPP):
        if refusal(provider, CPU) is None:
            return solvers(provider)[0]
    definition = partial(linear_assignment, backend="reference")
    return Solver("definition", "linear_assignment", True, definition) if size <= _DEFINITION_ROWS else None


def best_sums(costs: Tensor) -> Tensor:
    """The least sum of each problem [N,K,K], in float64, where there is a judge."""
    costs = costs.cpu()
    solver = judge(costs.shape[-1])
    assert solver is not None
    return sums(costs, as_columns(solver.solve(costs)))


def require_permutations(columns: Tensor) -> None:
    """Check that every row takes a column of its own.

    Raises:
        ArithmeticError: a problem's columns are no permutation.
    """
    rows = torch.arange(columns.shape[-1], device=columns.device)
    if not torch.equal(columns.sort(-1).values, rows.expand_as(columns)):
        raise ArithmeticError("the columns of a problem are no permutation")


def sums(costs: Tensor, columns: Tensor) -> Tensor:
    """The sum of the costs at the columns of each problem, in float64 on the CPU."""
    require_permutations(columns)
    return costs.cpu().double().gather(-1, columns.cpu()[..., None])[..., 0].sum(-1)


def excess(costs: Tensor, columns: Tensor, best: Tensor) -> float:
    """By how much the sum of a problem is off the best one at most, as a share of K times its largest cost.

    Raises:
        ArithmeticError: it is more than rounding.
    """
    scale = costs.shape[-1] * costs.cpu().double().abs().amax((-2, -1))
    found = ((sums(costs, columns) - best).abs() / scale).max().item()
    _require(found, costs.dtype, "the sum of a problem is off the best one")
    return found


def link_errors(responses: Tensor, order: Tensor, similarity: Tensor) -> dict[str, float]:
    """By how much links fall short of the best ones, and similarities of the cosines, at most.

    Raises:
        ArithmeticError: it is more than rounding, or the order is none.
    """
    units = F.normalize(responses.cpu().double(), dim=-1)
    order, similarity = order.cpu(), similarity.cpu()
    if not torch.equal(order[:, 0], torch.arange(order.shape[-1]).expand_as(order[:, 0])):
        raise ArithmeticError("the first frame is not in order")
    costs = -(units[:, :-1] @ units[:, 1:].mT).flatten(0, 1)
    # Row order[t, k] goes to column order[t + 1, k].
    columns = torch.zeros_like(order[:, 1:]).scatter(-1, order[:, :-1], order[:, 1:]).flatten(0, 1)
    short = (sums(costs, columns) - best_sums(costs)).abs().max().item() / costs.shape[-1]
    _require(short, responses.dtype, "the sum of a frame's links is off the best one")
    linked = units.gather(2, order[..., None].expand_as(units))
    off = ((linked[:, :-1] * linked[:, 1:]).sum(-1) - similarity.double()).abs().max().item()
    _require(off, responses.dtype, "a similarity is off the cosine")
    return {"links": short, "similarity": off}


def _require(found: float, dtype: torch.dtype, what: str) -> None:
    most = ROUNDING * torch.finfo(dtype).eps
    if not found <= most:  # written so that NaN is found
        raise ArithmeticError(f"{what} by {found:.2g}, where rounding gives {most:.2g} at most")
