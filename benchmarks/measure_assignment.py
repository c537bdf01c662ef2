"""Measuring every way to solve a batch of assignment problems: first whether it is right, then its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import assignment_solvers
from benchmarks.assignment_solvers import SCIPY, Solver, as_columns, solvers
from benchmarks.linking_case import Bench, Case, compared, of_limit, served_by
from benchmarks.linking_inputs import draw_costs
from benchmarks.linking_shapes import DTYPES, AssignmentShape, assignment_shape
from benchmarks.linking_truth import NO_JUDGE, best_sums, excess, judge, require_permutations
from benchmarks.memory import peak_extra_bytes
from benchmarks.timing import Timing, time_calls


@dataclass(frozen=True)
class Candidate:
    """A solver that finds the optimum, and what it is timed with.

    Attributes:
        solver: who.
        off: by how much its worst sum of costs is off the best one.
        costs: the problems of one call.
    """

    solver: Solver
    off: float
    costs: Tensor

    @property
    def name(self) -> str:
        """Of the function: a provider may have several."""
        return f"{self.solver.provider}, {self.solver.function}"

    def call(self) -> object:
        """Solve them."""
        return self.solver.solve(self.costs)

    def microseconds(self, timing: Timing) -> float:
        """Time of one problem."""
        return 1e3 * timing.median_ms / len(self.costs)


def measure_assignment(bench: Bench, case: Case) -> None:
    """Measure all providers with the costs of one kind and size."""
    shape = assignment_shape(case["size"], bench.device, quick=bench.quick)
    if judge(shape.size) is None:
        bench.findings.left_out.append({**case, "reason": NO_JUDGE})
        return
    costs = draw_costs(case["kind"], shape.problems, shape.size, bench.device, DTYPES[case["dtype"]])
    candidates = _right_solvers(bench, shape, costs, case)
    timings = time_calls({one.name: one.call for one in candidates}, bench.device, bench.effort)
    fastest = _fastest(candidates, timings)
    microseconds = {provider: one.microseconds(timing) for provider, (one, timing) in fastest.items()}
    bench.findings.records += [
        {
            **_record(bench, shape, case, one, timing),
            **compared(provider, microseconds),
            "served_by": served_by("linear_assignment", provider, costs),
        }
        for provider, (one, timing) in fastest.items()
    ]


def _right_solvers(bench: Bench, shape: AssignmentShape, costs: Tensor, case: Case) -> list[Candidate]:
    """Every function that can be had here and finds the optimum.

    On a GPU problems from all over the batch are compared, and all of its rows must be permutations.
    """
    where = torch.arange(shape.on_host) * shape.problems // shape.on_host
    some = costs[where.to(bench.device)]
    best = best_sums(some)
    found = []
    for provider in assignment_solvers.PROVIDERS:
        if assignment_solvers.refusal(provider, bench.device) is not None:
            continue
        for solver in solvers(provider):
            with bench.findings.recording_failure(**case, provider=provider):
                columns = as_columns(solver.solve(some if solver.on_host else costs))
                require_permutations(columns)
                off = excess(some, columns if solver.on_host else columns.cpu()[where], best)
                found.append(Candidate(solver, off, costs[: _timed(solver, shape)]))
    return found


def _timed(solver: Solver, shape: AssignmentShape) -> int:
    """With how many problems a solver is timed: all, or those of them that it needs time for."""
    if not solver.on_host:
        return shape.problems
    return shape.in_a_loop if solver.provider == SCIPY else shape.on_host


def _fastest(candidates: Sequence[Candidate], timings: Mapping[str, Timing]) -> dict[str, tuple[Candidate, Timing]]:
    """Of each provider the function that takes least."""
    found: dict[str, tuple[Candidate, Timing]] = {}
    for one in candidates:
        best, timing = found.get(one.solver.provider), timings[one.name]
        if best is None or one.microseconds(timing) < best[0].microseconds(best[1]):
            found[one.solver.provider] = (one, timing)
    return found


def _record(bench: Bench, shape: AssignmentShape, case: Case, one: Candidate, timing: Timing) -> dict[str, Any]:
    problems, each = len(one.costs), one.microseconds(timing)
    moved = shape.moved_bytes(one.costs.dtype, problems)
    # On a CPU no allocator of PyTorch's sees what the peers take.
    peak = peak_extra_bytes(one.call, bench.device) if bench.device.type == "cuda" else None
    return {
        **case,
        "size": shape.size,
        "provider": one.solver.provider,
        "function": one.solver.function,
        "problems": problems,
        **asdict(timing),
        "microseconds": each,
        "problems_a_second": 1e6 / each,
        "peak_extra_bytes": peak,
        "moved_bytes": moved,
        **of_limit(bench.limits, timing, moved, 0, case["dtype"]),
        "errors": {"sum": one.off},
    }
