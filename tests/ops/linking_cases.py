"""Costs of many kinds, and a certificate of optimality that needs no other solver."""

import numpy as np
import torch
from torch import Tensor

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 64]


def costs(kind: str, count: int, size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[count, size, size] on the CPU."""
    uniform = torch.rand(count, size, size, dtype=torch.float64)
    grid = torch.arange(size, dtype=torch.float64)
    made = {
        "uniform": lambda: uniform,
        "normal": lambda: torch.randn_like(uniform),
        "tied": lambda: (3 * uniform).floor(),
        "equal": lambda: torch.ones_like(uniform),
        "huge": lambda: (uniform - 0.5) * (1e30 if dtype in (torch.float32, torch.bfloat16) else 6e4),
        "tiny": lambda: uniform * (1e-30 if dtype in (torch.float32, torch.bfloat16) else 1e-6),
        "largest": lambda: (2 * uniform - 1) * torch.finfo(dtype).max,
        "many magnitudes": lambda: 10 ** (8 * uniform - 4),
        "nearly identity": lambda: 1 - torch.eye(size, dtype=torch.float64) + uniform * 1e-3,
        # What greed begins with is the worst of all matchings, and shortest paths are long (Machol and Wien).
        "products": lambda: ((grid[:, None] + 1) * (grid + 1)).expand(count, -1, -1).clone(),
    }[kind]()
    return made.to(dtype)


KINDS = [
    "uniform",
    "normal",
    "tied",
    "equal",
    "huge",
    "tiny",
    "largest",
    "many magnitudes",
    "nearly identity",
    "products",
]


def assert_optimal(cost: Tensor, columns: Tensor, *, maximize: bool = False) -> None:
    """That no cycle of exchanges lowers the sum: a matching without one is optimal.

    A step from row i to row k is what i pays to take the column of k in place of its own. Bellman's and Ford's rounds
    settle on the lengths of the shortest ways, which are dual variables, if and only if no cycle is negative.
    """
    cost, columns = cost.double().cpu() * (-1 if maximize else 1), columns.cpu()
    size = cost.shape[-1]
    cost = cost * 2.0**-12  # sums of the largest numbers would overflow
    assert torch.equal(columns.sort(-1).values, torch.arange(size).expand_as(columns)), "no permutation"
    taken = cost.gather(-1, columns[..., None, :].expand_as(cost))  # [..., i, k]: row i in the column of k
    steps = taken - taken.diagonal(dim1=-2, dim2=-1)[..., None]
    tolerance = 1e-14 * cost.abs().amax((-2, -1), keepdim=True)
    way = torch.zeros(cost.shape[:-1], dtype=torch.float64)
    for _ in range(size + 1):
        shorter = (way[..., :, None] + steps).amin(-2)
        if (shorter >= way - tolerance[..., 0]).all():
            return
        way = torch.minimum(way, shorter)
    raise AssertionError("a cycle of exchanges lowers the sum")


def sums(cost: Tensor, columns: Tensor) -> np.ndarray:
    """Σ_i cost[i, columns[i]] in float64."""
    return cost.double().cpu().gather(-1, columns.cpu()[..., None])[..., 0].sum(-1).numpy()
