"""What a benchmark has found: measurements, what it left out and why, and what failed; where it was found."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.machine import provenance
from benchmarks.timing import Effort

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
OUT_OF_TIME = "the time for the benchmarks was spent"


@dataclass
class Findings:
    """What has come out so far.

    Attributes:
        records: one for each measurement.
        left_out: what was not measured, each with its reason.
        failures: what could not be measured though it should have been, each with its error.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def recording_failure(self, **what: str) -> Iterator[None]:
        """An error ends what is measured here and no more; it is shown, and stands in `failures`."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            first_line = (str(error).splitlines() or [""])[0][:300]
            self.failures.append({**what, "error": f"{type(error).__name__}: {first_line}"})

    def result(
        self, benchmark: str, device: torch.device, settings: Any, effort: Effort, **more: object
    ) -> dict[str, Any]:
        """Everything that goes into the file of results: where it was measured, what was asked for, and this.

        Args:
            benchmark: its name.
            device: where.
            settings: a dataclass, what was asked for.
            effort: how often calls were repeated.
            more: what else belongs to it.
        """
        asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
        return {
            "benchmark": benchmark,
            **provenance(device),
            "arguments": {**asked, "effort": asdict(effort)},
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            **more,
            **asdict(self),
        }
