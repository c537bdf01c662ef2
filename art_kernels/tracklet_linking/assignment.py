"""`linear_assignment`: the public operation, its checks and its choice of backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from art_kernels import backends
from art_kernels.checks import check_flag, check_floating
from art_kernels.tracklet_linking import extension, reference
from art_kernels.tracklet_linking.registration import assign

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

_NAME = "linear_assignment"


def _definition(cost: Tensor, maximize: bool, check: bool) -> Tensor:
    if not bool(cost.isfinite().all()):
        raise ValueError(f"{_NAME}: cost holds NaN or inf, expected finite numbers")
    return reference.optimal_assignment(cost, maximize=maximize)


def _too_large(cost: Tensor) -> str | None:
    fits = cost.shape[-1] <= reference.MAX_SIZE
    return None if fits else f"the definition lists all matchings, of at most {reference.MAX_SIZE} rows"


backends.register(_NAME, "native", assign, extension.refusal)
backends.register(_NAME, "reference", _definition, _too_large, by_name_only=lambda cost: True)


def linear_assignment(
    cost: Float[Tensor, "... k k"], *, maximize: bool = False, check: bool = False, backend: str | None = None
) -> Int[Tensor, "... k"]:
    """The exact optimum of many small square assignment problems.

    Each row of a problem takes one column, and each column goes to one row, so that the sum of the costs is the least.
    Solved by comparing all matchings up to K = 4, and beyond by shortest augmenting paths (Jonker and Volgenant,
    Computing 38, 1987), with sums and dual variables in float64. Where several matchings are optimal, one of them is
    returned, the same in every run. The result has no gradient.

    Args:
        cost: [...,K,K] with K up to 256; float16, bfloat16, float32 or float64, each number finite.
        maximize: seek the greatest sum instead.
        check: on a GPU, wait for the result and raise where a number is not finite. Without it nothing is waited for,
            and a problem with such a number gets -1 for every row. On a CPU it is always checked.
        backend: "native", "reference", or None to choose (`art_kernels.backends`); the reference lists all matchings
            and is taken by name only.

    Returns:
        [...,K] int64 on the device of `cost`: the column of each row.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape; K above 256; NaN or inf, with the index of the first such problem; a backend that
            cannot serve this tensor.

    Examples:
        >>> import torch
        >>> from art_kernels import linear_assignment
        >>> cost = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
        >>> columns = linear_assignment(cost)
        >>> columns.tolist(), cost.gather(1, columns[:, None]).sum().item()
        ([1, 0, 2], 5.0)
        >>> linear_assignment(torch.rand(1000, 8, 8)).shape
        torch.Size([1000, 8])
    """
    check_floating(_NAME, "cost", cost, "[...,K,K]")
    if cost.shape[-1] != cost.shape[-2]:
        raise ValueError(
            f"{_NAME}: cost has shape {list(cost.shape)}, expected [...,K,K]; "
            "pad a matrix that is not square with a large number"
        )
    if cost.shape[-1] > extension.MAX_SIZE:
        raise ValueError(
            f"{_NAME}: cost has shape {list(cost.shape)}, expected [...,K,K] with K at most {extension.MAX_SIZE}; "
            "solve one problem of such a size with scipy.optimize.linear_sum_assignment"
        )
    check_flag(_NAME, "maximize", maximize)
    check_flag(_NAME, "check", check)
    return backends.implementation(_NAME, cost, backend)(cost.detach(), maximize, check)
