"""A trace of a few steps: what ran when, on the processor and on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class StepTrace:
    """Traces steps with torch.profiler into a file that https://ui.perfetto.dev or chrome://tracing opens.

    Args:
        folder: gets ``steps-<first>-<last>.json.gz``, or with several ranks ``steps-<first>-<last>-rank-<rank>``.
        steps: the first and the last step to trace, counted from 1; None: none, and nothing is done.
        device: whose work is traced beside the processor's.
        rank: of this process, where there are several.
    """

    def __init__(
        self, folder: Path, steps: Sequence[int] | None, device: torch.device, rank: int | None = None
    ) -> None:
        self._folder, self._steps, self._device, self._rank = folder, steps, device, rank
        self._profile: profile | None = None
        self._first = self._last = 0

    def before(self, step: int) -> None:
        """To be called before the batch of a step is asked for."""
        if self._steps is None or self._profile is not None or not self._steps[0] <= step <= self._steps[1]:
            return
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()
        self._first = step

    def after(self, step: int) -> None:
        """To be called when a step is done."""
        self._last = step
        if self._steps is not None and step >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Writes the steps so far, where there are any that are not written yet."""
        running, self._profile = self._profile, None
        if running is None:
            return
        running.stop()
        if self._last < self._first:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        of_rank = "" if self._rank is None else f"-rank-{self._rank}"
        path = self._folder / f"steps-{self._first}-{self._last}{of_rank}.json.gz"
        incoming = path.with_name(f".incoming-{path.name}")  # the profiler compresses by the ending of the name
        running.export_chrome_trace(str(incoming))
        incoming.replace(path)
