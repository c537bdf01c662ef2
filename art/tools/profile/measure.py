"""Time and memory of each stage of a model on a device, and the tables of ``art profile``."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from art.model.art_model import ARTModel
from art.model.loading import build_model
from art.model.pretrained import VideoClassifier
from art.model.semantics import TEMPLATES
from art.text import text_width
from art.tools.profile.count import STAGES, count_stages, stage_hooks
from art.train.config import Config, to_dict
from art.train.runtime import autocast, provenance, resolve_device

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs each start and stop

#: "inference" is a forward pass in evaluation mode without gradients.
PASSES = ("inference", "forward", "backward")
DEVICES = ("cpu", "cuda")
_MARK = "art stage "


@dataclass(frozen=True)
class StageMeasure:
    """Measurements of one stage by pass, in milliseconds and bytes; passes without this stage have no entry.

    Attributes:
        stage: one of ``STAGES``.
        ms: the median over the repetitions.
        peak_bytes: peak memory within the stage above that before the pass; for "forward" and "backward", above that
            before the training step.
    """

    stage: str
    ms: dict[str, float]
    peak_bytes: dict[str, int]


def check_device(device: torch.device) -> None:
    """Raise for a device whose memory cannot be measured.

    Raises:
        ValueError: neither a CPU nor a CUDA device.
    """
    if device.type not in DEVICES:
        raise ValueError(f"device: got {device.type!r}, expected cpu or cuda, where memory by stage can be measured")


def measure_stages(
    model: VideoClassifier,
    video: Tensor,
    labels: Tensor,
    *,
    precision: Callable[[], AbstractContextManager[object]],
    repetitions: int = 5,
) -> list[StageMeasure]:
    """Measure an inference pass, and the forward and backward passes of a training step without the optimizer.

    On a CPU, memory is that of PyTorch's allocator, recorded by the profiler in a separate pass; allocations of other
    libraries are not included.

    Args:
        model: on the device to measure; its gradients are cleared.
        video: ``[B, T, 3, H, W]`` on the same device.
        labels: ``[B]`` on the same device.
        precision: returns the context of a forward pass, such as autocast.
        repetitions: of each pass, after one warm-up.
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
    measure_peaks = _peaks_on_cuda if video.device.type == "cuda" else _peaks_on_cpu
    for kind in ("inference", "step"):
        run = functools.partial(_run, kind, model, video, labels, precision)
        peaks |= measure_peaks(run, video.device)

    def by_pass(values: dict[tuple[str, str], Any], stage: str) -> dict[str, Any]:
        return {kind: values[kind, stage] for kind in PASSES if (kind, stage) in values}

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
    """Run a pass and report each stage when it is entered."""
    training = kind == "step"
    model.train(training).zero_grad(set_to_none=True)
    current = "forward" if training else "inference"

    def report(stage: str) -> None:
        enter(current, stage)

    with torch.set_grad_enabled(training), precision(), stage_hooks(model, report):
        output = model(video)
        if not training:
            return
        report("loss")
        loss = model.loss(output, labels).total
    current = "backward"
    report("loss")
    loss.backward()
    model.zero_grad(set_to_none=True)


class _Clock:
    """Milliseconds between marks, by pass and stage; on CUDA by events, without synchronizing."""

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
    """Peak memory between marks, from PyTorch's allocator."""
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
    """Peak of the running sum of the allocations recorded by PyTorch's profiler, between its marks."""

    def enter(kind: str, stage: str) -> None:
        with torch.profiler.record_function(f"{_MARK}{kind} {stage}"):
            pass

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run(enter)
    peaks: dict[tuple[str, str], int] = {}
    key, allocated = None, 0
    for event in _trace(profile):
        if event["name"].startswith(_MARK):
            kind, stage = event["name"].removeprefix(_MARK).split()
            key = (kind, stage)
        elif event["name"] == "[memory]" and event["args"]["Device Type"] == 0:
            allocated += int(event["args"]["Bytes"])
        if key is not None:
            peaks[key] = max(peaks.get(key, 0), allocated)
    return peaks


def _trace(profile: torch.profiler.profile) -> list[dict[str, Any]]:
    """Return the events of a profile in chronological order."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sorted((e for e in events if "name" in e and "ts" in e), key=lambda event: float(event["ts"]))


def profile(
    config: Config, *, clips: int = 1, classes: int = 100, repetitions: int = 5, measure: bool = True
) -> dict[str, Any]:
    """Count the model of a configuration by stage, and measure it on its device.

    Needs neither data nor checkpoint: clips and bank are random, at the same cost.

    Args:
        config: the configuration of a run.
        clips: B.
        classes: Y; determines the size of heads and bank.
        repetitions: of each timed pass.
        measure: False only counts, which takes seconds for any size.

    Returns:
        "stages", one dict each with the fields of :class:`StageCount` and, if measured, "ms" and "peak_bytes" of
        :class:`StageMeasure`; and "config", "clips", "classes", "device", versions.

    Raises:
        ValueError: a number below 1, fewer classes than tracklets, or a device that is missing or cannot be measured.
    """
    for name, value in (("clips", clips), ("classes", classes), ("repetitions", repetitions)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    device = resolve_device(config.device)
    if measure:
        check_device(device)
    build = model_maker(config, classes)
    precision = functools.partial(autocast, torch.device("cpu"), config.precision)
    stages = [asdict(count) for count in count_stages(build, clips=clips, precision=precision)]
    if measure:
        torch.manual_seed(config.seed)
        model = build().to(device)
        size = model.input_size
        video = torch.rand(clips, config.model.num_frames, 3, size, size, device=device)
        labels = torch.arange(clips, device=device) % classes
        precision = functools.partial(autocast, device, config.precision)
        measures = measure_stages(model, video, labels, precision=precision, repetitions=repetitions)
        stages = [{**count, **asdict(measured)} for count, measured in zip(stages, measures, strict=True)]
    present = [
        stage for stage in stages if any(stage[name] for name in ("parameters", "forward_macs", "activation_bytes"))
    ]
    return {
        "stages": present,
        "clips": clips,
        "classes": classes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "measured": measure,
        **provenance(),
        "config": to_dict(config),
    }


def model_maker(config: Config, classes: int) -> Callable[[], VideoClassifier]:
    """Return a function that creates the model of a configuration with random weights and a random bank.

    The bank has the width of the text encoder; no file is read.
    """
    names = [f"class {index}" for index in range(classes)]
    options = dataclasses.replace(config.model, pretrained=None)
    if config.kind == "backbone":
        return functools.partial(build_model, config.kind, names, options)
    width = text_width(options.text_encoder, **options.text_options)
    bank = torch.randn(len(options.templates or TEMPLATES), classes, width)
    return functools.partial(ARTModel, names, semantics=bank, **vars(options))


def as_table(result: dict[str, Any]) -> str:
    """Format a profile as text."""
    rows = [_HEADINGS[: None if result["measured"] else _COUNTED_COLUMNS]]
    for stage in [*result["stages"], _total(result["stages"])]:
        row = [
            stage["stage"],
            f"{stage['parameters'] / 1e6:,.2f}",
            f"{stage['forward_macs'] / 1e9:,.2f}",
            f"{(stage['forward_macs'] + stage['backward_macs']) / 1e9:,.2f}",
            f"{stage['activation_bytes'] / 2**20:,.1f}",
        ]
        if result["measured"]:
            row += [_number(stage["ms"].get(name)) for name in ("inference", "forward", "backward")]
            row += [_mebibytes(stage["peak_bytes"], ("inference",)), _mebibytes(stage["peak_bytes"], _STEP_PASSES)]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(c.rjust(w) if index else c.ljust(w) for index, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    clips = "1 clip" if result["clips"] == 1 else f"{result['clips']} clips"
    model = result["config"]["model"]
    summary = f"{model['backbone']}, {model['num_frames']} frames, {clips}, {result['config']['precision']}"
    device = f"; measured on {result['device']}, {result['threads']} threads" if result["measured"] else ""
    return "\n".join([summary + device, "GMAC: 10⁹ multiply-adds; kept: saved for the backward pass", *lines, ""])


_STEP_PASSES = ("forward", "backward")
_COUNTED_COLUMNS = 5
_HEADINGS = [
    "stage", "Mparameters", "GMAC", "GMAC, step", "MiB kept",
    "ms, inference", "ms, forward", "ms, backward", "peak MiB, inference", "peak MiB, step",
]  # fmt: skip


def _total(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum over the stages, and the largest of the peaks."""
    total: dict[str, Any] = {
        name: sum(stage[name] for stage in stages)
        for name in ("parameters", "forward_macs", "backward_macs", "activation_bytes")
    }
    for name, reduce in (("ms", sum), ("peak_bytes", max)):
        kinds = {kind for stage in stages for kind in stage.get(name, {})}
        total[name] = {kind: reduce(s[name][kind] for s in stages if kind in s[name]) for kind in kinds}
    return {"stage": "total", **total}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _mebibytes(peaks: dict[str, int], kinds: tuple[str, ...]) -> str:
    found = [peaks[kind] for kind in kinds if kind in peaks]
    return f"{max(found) / 2**20:,.1f}" if found else ""
