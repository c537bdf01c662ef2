"""Measuring every way to link responses, and to solve the assignment problems in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import assignment_solvers, linking_providers
from benchmarks.findings import Findings
from benchmarks.limits import measure_limits
from benchmarks.linking_case import Bench, Report
from benchmarks.linking_shapes import DTYPES, KINDS, SHAPES, SIZES
from benchmarks.linking_truth import judge
from benchmarks.measure_assignment import measure_assignment
from benchmarks.measure_linking import measure_linking
from benchmarks.timing import Effort, effort_for

#: On a CPU everything together is to take less than three minutes, and on a GPU less than two.
EFFORTS = {
    "cpu": Effort(min_rounds=5, min_seconds=0.3, max_seconds=3.5, warmups=1),
    "cuda": Effort(min_rounds=5, min_seconds=0.05, max_seconds=0.8, warmups=1),
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda".
        sizes: of assignment problems, some of `SIZES`.
        kinds: of their costs, some of `KINDS`.
        shapes: of responses to link, names of `SHAPES`.
        dtypes: names of `DTYPES`.
        quick: few repetitions, few problems and videos, to see that it works; the times mean little.
    """

    device: str = "cpu"
    sizes: tuple[str, ...] = SIZES
    kinds: tuple[str, ...] = KINDS
    shapes: tuple[str, ...] = tuple(SHAPES)
    dtypes: tuple[str, ...] = ("float32",)
    quick: bool = False


def run(settings: Settings, *, deadline: float | None = None, report: Report | None = None) -> dict[str, Any]:
    """Measure everything that `settings` ask for.

    Args:
        settings: what.
        deadline: of `time.monotonic()`, in seconds, after which nothing new is begun; what is left then is named in
            "left_out".
        report: called with the records of a case whenever it is done.

    Returns:
        Where it was measured, the settings, the limits, the versions of the peers and whose optimum was the measure,
        "records", "left_out" and "failures", fit for JSON.
    """
    device = torch.device(settings.device)
    effort = effort_for(device, quick=True) if settings.quick else EFFORTS[device.type]
    limits = measure_limits(device, {name: DTYPES[name] for name in settings.dtypes}, effort)
    bench = Bench(device, settings.quick, effort, limits, deadline, Findings(), report)
    _name_what_is_missing(bench, settings)
    for dtype in settings.dtypes:
        for shape in settings.shapes:
            bench.case(measure_linking, operation="link_tracklets", shape=shape, dtype=dtype)
        for kind in settings.kinds:
            for size in settings.sizes:
                bench.case(measure_assignment, operation="linear_assignment", kind=kind, size=size, dtype=dtype)
    return bench.findings.result(
        "linking", device, settings, effort, **asdict(limits),
        peers=assignment_solvers.versions(), optimum_of=_judges(settings),
    )  # fmt: skip


def _judges(settings: Settings) -> list[str]:
    """Whose optimum was the measure."""
    sizes = [*map(int, settings.sizes), *(SHAPES[name].sizes[2] for name in settings.shapes)]
    return sorted({solver.provider for solver in map(judge, sizes) if solver is not None})


def _name_what_is_missing(bench: Bench, settings: Settings) -> None:
    """Providers that cannot be had here, and what `quick` leaves of the sizes."""
    asked = {
        "linear_assignment": (assignment_solvers, settings.sizes and settings.kinds),
        "link_tracklets": (linking_providers, settings.shapes),
    }
    for operation, (module, wanted) in asked.items():
        reasons = {provider: module.refusal(provider, bench.device) for provider in module.PROVIDERS if wanted}
        bench.findings.left_out += [
            {"operation": operation, "provider": provider, "reason": reason}
            for provider, reason in reasons.items()
            if reason is not None
        ]
        if wanted and bench.quick:
            share = {"linear_assignment": "a sixteenth of the problems", "link_tracklets": "an eighth of the videos"}
            bench.findings.left_out.append({"operation": operation, "reason": f"cut to {share[operation]}: --quick"})
