"""What measuring assignment and measuring linking have in common: where, by when, and what a time means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from art_kernels import backends
from benchmarks.assignment_solvers import OURS, TO_HOST
from benchmarks.findings import OUT_OF_TIME, Findings
from benchmarks.limits import Limits
from benchmarks.timing import Effort, Timing

Report = Callable[[list[dict[str, Any]]], None]
#: By these words a case is known in records, in what was left out and in failures.
Case = Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured, by when, and what has come out.

    Attributes:
        device: where.
        quick: as in `Settings`.
        effort: how often calls are repeated.
        limits: of the device.
        deadline: of `time.monotonic()`, after which nothing new is begun; None: never.
        findings: what has come out.
        report: is given the records of a case when it is done.
    """

    device: torch.device
    quick: bool
    effort: Effort
    limits: Limits
    deadline: float | None
    findings: Findings
    report: Report | None

    def case(self, measure: Callable[[Bench, Case], None], **what: str) -> None:
        """Measure one case, unless it is too late; an error ends this case alone."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.findings.left_out.append({**what, "reason": OUT_OF_TIME})
            return
        before = len(self.findings.records)
        with self.findings.recording_failure(**what):
            measure(self, what)
        if self.report is not None and len(self.findings.records) > before:
            self.report(self.findings.records[before:])
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def compared(provider: str, times: Mapping[str, float]) -> dict[str, Any]:
    """How many times as fast as the first provider; and ours, as the best of the others with a result in that place."""
    best = None
    if provider.startswith(OURS):
        others = [
            name for name in times if not name.startswith(OURS) and name.endswith(TO_HOST) == provider.endswith(TO_HOST)
        ]
        best = min(others, key=lambda name: times[name], default=None)
    return {
        "speedup_over_first": next(iter(times.values())) / times[provider],
        "best_other": best,
        "speedup_over_best_other": None if best is None else times[best] / times[provider],
    }


def of_limit(limits: Limits, timing: Timing, moved: int, operations: int, dtype: str) -> dict[str, float]:
    """How near the time is to that in which the device moves these bytes, or if that takes longer, multiplies."""
    seconds = 1e-3 * timing.median_ms
    least = max(moved / (1e9 * limits.copy_gbs), operations / (1e12 * limits.matrix_tflops[dtype]))
    return {"achieved_gbs": moved / seconds / 1e9, "share_of_limit": least / seconds}


def served_by(operation: str, provider: str, tensor: Tensor) -> str | None:
    """The backend, of ours."""
    return backends.choose(operation, tensor) if provider.startswith(OURS) else None
