"""Time and memory of each stage on a device."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from art.model.pretrained import VideoClassifier
from art.tools.profile.stages import STAGES, entering

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports on itself whenever it starts and stops

#: What is measured: "inference" is a forward pass in evaluation mode without gradients.
PASSES = ("inference", "forward", "backward")
DEVICES = ("cpu", "cuda")
_MARK = "art stage "


@dataclass(frozen=True)
class StageMeasure:
    """Of one stage, in milliseconds and bytes by pass; no entry where the stage has no such pass.

    Attributes:
        stage: one of ``STAGES``.
        ms: the median over the repetitions.
        peak_bytes: the most that there was within it, above what there was before the pass; within "forward" and
            "backward", above what there was before the training step.
    """

    stage: str
    ms: dict[str, float]
    peak_bytes: dict[str, int]


def check_device(device: torch.device) -> None:
    """Stop at a device whose memory cannot be looked at.

    Raises:
        ValueError: neither a CPU nor a CUDA device.
    """
    if device.type not in DEVICES:
        raise ValueError(f"device: got {device.type!r}, expected cpu or cuda: memory by stage is not known elsewhere")


def measure_stages(
    model: VideoClassifier,
    video: Tensor,
    labels: Tensor,
    *,
    precision: Callable[[], AbstractContextManager[object]],
    repetitions: int = 5,
) -> list[StageMeasure]:
    """Measure a forward pass, and forward and backward pass of a training step, without the optimizer's.

    On a CPU the memory is that of PyTorch's allocator, which its profiler records in a pass of its own; what a library
    takes from the system for itself is not seen.

    Args:
        model: on the device that is measured; its gradients are dropped.
        video: ``[B, T, 3, H, W]`` on it.
        labels: ``[B]`` on it.
        precision: makes the context of a forward pass, such as autocast.
        repetitions: of each pass, after one that does not count.
    """
    check_device(video.device)
    times: dict[tuple[str, str], list[float]] = {}
    for repetition in range(repetitions + 1):
        for kind in ("inference", "step"):
            clock = _Clock(video.device)
            _run(kind, model, video, labels, precision, clock.enter)
            for key, ms in clock.stop().items():
                times.setdefault(key, []).extend([ms] if repetition else [])
    peaks: dict[tuple[str, str], int] = {}
    for kind in ("inference", "step"):
        look = _peaks_on_cuda if video.device.type == "cuda" else _peaks_on_cpu
        peaks |= look(lambda enter, kind=kind: _run(kind, model, video, labels, precision, enter), video.device)  # type: ignore[misc]

    def by_pass(found: dict[tuple[str, str], Any], stage: str) -> dict[str, Any]:
        return {kind: found[kind, stage] for kind in PASSES if (kind, stage) in found}

    medians = {key: statistics.median(values) for key, values in times.items()}
    return [StageMeasure(stage, by_pass(medians, stage), by_pass(peaks, stage)) for stage in STAGES]


Enter = Callable[[str, str], None]


def _run(
    kind: str,
    model: VideoClassifier,
    video: Tensor,
    labels: Tensor,
    precision: Callable[[], AbstractContextManager[object]],
    enter: Enter,
) -> None:
    """A pass that tells of each stage, with its own name, when it comes there."""
    training = kind == "step"
    model.train(training).zero_grad(set_to_none=True)
    now = "forward" if training else "inference"

    def tell(stage: str) -> None:
        enter(now, stage)

    with torch.set_grad_enabled(training), precision(), entering(model, tell):
        output = model(video)
        if not training:
            return
        tell("loss")
        loss = model.loss(output, labels).total
    now = "backward"
    tell("loss")
    loss.backward()
    model.zero_grad(set_to_none=True)


class _Clock:
    """Milliseconds between marks, by pass and stage; events on a CUDA device, which does not wait for them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[tuple[str, str], Any]] = []

    def enter(self, kind: str, stage: str) -> None:
        self.marks.append(((kind, stage), self._now()))

    def stop(self) -> dict[tuple[str, str], float]:
        ends = [when for _, when in self.marks[1:]] + [self._now()]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[tuple[str, str], float] = {}
        for (key, start), end in zip(self.marks, ends, strict=True):
            ms = start.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - start)
            found[key] = found.get(key, 0.0) + ms
        return found

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _peaks_on_cuda(run: Callable[[Enter], None], device: torch.device) -> dict[tuple[str, str], int]:
    """Peaks by what PyTorch's allocator says of each stretch between marks."""
    peaks: dict[tuple[str, str], int] = {}
    inside: list[tuple[str, str]] = []
    before = torch.cuda.memory_allocated(device)

    def close() -> None:
        if inside:
            peak = torch.cuda.max_memory_allocated(device) - before
            peaks[inside[-1]] = max(peaks.get(inside[-1], 0), peak)
        torch.cuda.reset_peak_memory_stats(device)

    def enter(kind: str, stage: str) -> None:
        close()
        inside.append((kind, stage))

    run(enter)
    close()
    return peaks


def _peaks_on_cpu(run: Callable[[Enter], None], device: torch.device) -> dict[tuple[str, str], int]:
    """Peaks of the running sum of all allocations that PyTorch's profiler records, with the marks among them."""

    def enter(kind: str, stage: str) -> None:
        with torch.profiler.record_function(f"{_MARK}{kind} {stage}"):
            pass

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run(enter)
    peaks: dict[tuple[str, str], int] = {}
    key, held = None, 0
    for event in _trace(profile):
        if event["name"].startswith(_MARK):
            kind, stage = event["name"].removeprefix(_MARK).split()
            key = (kind, stage)
        elif event["name"] == "[memory]" and event["args"]["Device Type"] == 0:
            held += int(event["args"]["Bytes"])
        if key is not None:
            peaks[key] = max(peaks.get(key, 0), held)
    return peaks


def _trace(profile: torch.profiler.profile) -> list[dict[str, Any]]:
    """The events of a profile, in the order in which they happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sorted((e for e in events if "name" in e and "ts" in e), key=lambda event: float(event["ts"]))
