"""Who solves batches of assignment problems: what a user finds on PyPI, and art_kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_kernels import backends, linear_assignment

SCIPY, LAPX, LAPCPP = "scipy", "lapx", "lapcpp"
TORCH_LINEAR_ASSIGNMENT = "torch-linear-assignment"
OURS = "art_kernels"
#: The result is copied to the host, where it is waited for.
TO_HOST = ", to host"
#: The one that the others are compared with first.
PROVIDERS = (
    SCIPY,
    LAPX,
    LAPCPP,
    TORCH_LINEAR_ASSIGNMENT,
    OURS,
    TORCH_LINEAR_ASSIGNMENT + TO_HOST,
    OURS + TO_HOST,
)

#: The functions of lapx that solve batches in threads of their own; the faster one counts. Its `lapjvx_batch` and
#: `lapjvs_batch` hand each problem to a Python thread, which alone takes 40 microseconds, and are left out.
LAPX_FUNCTIONS = ("lapjvr_batch", "lapjvh_batch")
#: Of each provider the module, and the function of it that must be there.
_NEEDS = {
    SCIPY: ("scipy.optimize", "linear_sum_assignment"),
    LAPX: ("lap", LAPX_FUNCTIONS[0]),
    LAPCPP: ("lapcpp", "lapjv_batch"),
    TORCH_LINEAR_ASSIGNMENT: ("torch_linear_assignment", "batch_linear_assignment"),
}
#: Below this the package takes SciPy instead of its kernels.
_LEAST_CAPABILITY = (8, 0)

Found = Tensor | list[np.ndarray]


@dataclass(frozen=True)
class Solver:
    """One function of a provider.

    Attributes:
        provider: of `PROVIDERS`.
        function: its name, where the provider has several.
        on_host: whether it solves on the host, from costs copied there and with columns copied back.
        solve: from costs [N,K,K] on the device to columns in the form in which it gives them.
    """

    provider: str
    function: str
    on_host: bool
    solve: Callable[[Tensor], Found]


def solvers(provider: str) -> list[Solver]:
    """The functions of a provider that can be had here (see `refusal`)."""
    base = provider.removesuffix(TO_HOST)
    if base == OURS:
        return [Solver(provider, "linear_assignment", False, _returned(provider, linear_assignment))]
    module, name = _NEEDS[base]
    package = importlib.import_module(module)
    if base == TORCH_LINEAR_ASSIGNMENT:
        return [Solver(provider, name, False, _returned(provider, getattr(package, name)))]
    if base == SCIPY:
        return [Solver(provider, name, True, _from_host(_loop(getattr(package, name))))]
    functions = LAPX_FUNCTIONS if base == LAPX else (name,)
    return [Solver(provider, name, True, _from_host(_in_threads(getattr(package, name)))) for name in functions]


def refusal(provider: str, device: torch.device) -> str | None:
    """Why a provider is left out on a device, or None."""
    base = provider.removesuffix(TO_HOST)
    if provider != base and device.type == "cpu":
        return "on a CPU the result is on the host"
    if base == OURS:
        return backends.refusal("linear_assignment", "native", torch.empty(0, device=device))
    if base == TORCH_LINEAR_ASSIGNMENT and device.type == "cpu":
        return "on a CPU it is a loop over SciPy"
    module, name = _NEEDS[base]
    try:
        found = hasattr(importlib.import_module(module), name)
    except ImportError as error:
        return f"it cannot be imported ({error}): pip install {base}"
    if not found:
        return f"its module {module} has no {name}: pip install --upgrade {base}"
    if base == TORCH_LINEAR_ASSIGNMENT and torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return "its kernels need compute capability 8.0; below it is a loop over SciPy"
    return None


def as_columns(found: Found) -> Tensor:
    """What a solver gave, as columns [N,K]: on the device of the costs."""
    return found if isinstance(found, Tensor) else torch.from_numpy(_stacked(found))


def versions() -> dict[str, str]:
    """Of the packages that are there."""
    there = {}
    for package in (SCIPY, LAPX, LAPCPP, TORCH_LINEAR_ASSIGNMENT):
        try:
            there[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return there


def _loop(one: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], list[np.ndarray]]:
    return lambda costs: [one(cost)[1] for cost in costs]


def _in_threads(batch: Callable[..., Any]) -> Callable[[np.ndarray], list[np.ndarray]]:
    # Pairs are the faster of the two outputs: one array a problem, and not one of rows and one of columns.
    return lambda costs: batch(costs, return_cost=False, n_threads=torch.get_num_threads(), output="pairs")


def _from_host(solve: Callable[[np.ndarray], list[np.ndarray]]) -> Callable[[Tensor], Found]:
    """From and to the device of the costs; on a CPU the list of small arrays stays what it is, to no one's loss."""

    def run(costs: Tensor) -> Found:
        found = solve(costs.cpu().numpy())
        return found if costs.device.type == "cpu" else torch.from_numpy(_stacked(found)).to(costs.device)

    return run


def _returned(provider: str, solve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Found]:
    return (lambda costs: solve(costs).cpu()) if provider.endswith(TO_HOST) else solve


def _stacked(found: Iterable[np.ndarray]) -> np.ndarray:
    """Arrays of columns [K], or of pairs [K,2], as columns [N,K]."""
    stacked = np.stack(list(found))
    return np.ascontiguousarray(stacked[..., 1]) if stacked.ndim == 3 else stacked
