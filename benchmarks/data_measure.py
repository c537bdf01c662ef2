"""Measuring who reads frames how fast, the whole loader against a model step, and whether memory stays flat."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from art.data.transforms.sampling import segment_indices
from benchmarks import data_loader, data_providers
from benchmarks.data_fresh import NOT_FRESH, measure_fresh
from benchmarks.data_leak import measure_leak, write_files
from benchmarks.data_loader import ART_STEP, ASLEEP, LoaderShape
from benchmarks.data_providers import OURS, PROVIDERS
from benchmarks.data_truth import check_frames, reference_frames
from benchmarks.data_videos import CASES, FRAMES, VideoCase, write_video
from benchmarks.findings import Findings
from benchmarks.timing import Effort, effort_for, summarize

#: Everything is to take less than five minutes.
EFFORT = Effort(min_rounds=7, min_seconds=1.0, max_seconds=12.0, warmups=1)
SAMPLED = 16
LOADER_CASE = "320p-12"


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda", of the model step; decoding is on the CPU.
        cases: names of `CASES`.
        workers: of the loader, each to be measured; none leaves the loader out.
        steps: seconds of a model step that leaves the CPU alone.
        leak: so many decodes, over which memory must stay flat; 0 leaves that out.
        quick: short videos, few repetitions, to see that it works; the times mean little.
    """

    device: str = "cpu"
    cases: tuple[str, ...] = tuple(CASES)
    workers: tuple[int, ...] = (0, 1, 2)
    steps: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    leak: int = 0
    quick: bool = False

    @property
    def frames(self) -> int:
        """Of a file."""
        return 48 if self.quick else FRAMES

    @property
    def loader(self) -> LoaderShape:
        """What the loader loads."""
        return LoaderShape(clips=6, batch=2, frames=4, frame_size=64) if self.quick else LoaderShape()


Report = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class _Bench:
    settings: Settings
    effort: Effort
    folder: Path
    findings: Findings = field(default_factory=Findings)


def run(settings: Settings, *, report: Report | None = None) -> dict[str, Any]:
    """Measure everything that `settings` ask for.

    Args:
        settings: what.
        report: called with the records of a case whenever it is done.

    Returns:
        Where it was measured, the settings, the versions of the libraries, "records", "leak" (None where it was not
        asked for), "left_out" and "failures", fit for JSON.
    """
    device = torch.device(settings.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # scaling by PyTorch is to have one core too
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench(settings, effort_for(torch.device("cpu"), quick=True) if settings.quick else EFFORT,
                           Path(folder))  # fmt: skip
            leak = _measure_leak(bench)
            _name_what_is_missing(bench)
            for name in settings.cases:
                _reporting(bench, report, _measure_case, CASES[name])
            torch.set_num_threads(threads)
            _reporting(bench, report, _measure_loader, device)
    finally:
        torch.set_num_threads(threads)
    return bench.findings.result(
        "data", device, settings, bench.effort, versions=data_providers.versions(), leak=leak,
        video={"frames": settings.frames, "sampled": SAMPLED}, loader=vars(settings.loader),
    )  # fmt: skip


def _reporting(bench: _Bench, report: Report | None, measure: Callable[..., None], *arguments: Any) -> None:
    before = len(bench.findings.records)
    measure(bench, *arguments)
    if report is not None and len(bench.findings.records) > before:
        report(bench.findings.records[before:])


def _name_what_is_missing(bench: _Bench) -> None:
    if bench.settings.quick:
        reason = f"videos cut to {bench.settings.frames} frames, nothing measured in new processes: --quick"
        bench.findings.left_out.append({"measured": "decode", "reason": reason})
    for provider in PROVIDERS if bench.settings.cases else ():
        reason = data_providers.refusal(provider)
        if reason is not None:
            bench.findings.left_out.append({"measured": "decode", "provider": provider, "reason": reason})


def _measure_leak(bench: _Bench) -> dict[str, Any] | None:
    if not bench.settings.leak:
        return None
    folder = bench.folder / "leak"
    folder.mkdir()
    with bench.findings.recording_failure(measured="leak"):
        return measure_leak(bench.settings.leak, write_files(folder))
    return None


def _measure_case(bench: _Bench, case: VideoCase) -> None:
    """All providers on one file: whether their frames are right, their rate, their first clip and their memory."""
    path = bench.folder / f"{case.height}p-{case.keyframe_every}.mp4"
    if not path.exists():
        write_video(path, case, bench.settings.frames)
    indices = segment_indices(bench.settings.frames, SAMPLED).tolist()
    size = None if case.short_side is None else case.result
    reference = reference_frames(path)
    errors, calls = {}, {}
    for provider in (name for name in PROVIDERS if data_providers.refusal(name) is None):
        with bench.findings.recording_failure(measured="decode", case=case.name, provider=provider):
            function, errors[provider] = _fastest(provider, str(path), indices, size, reference)
            read = data_providers.build(provider, function)
            calls[provider, function] = lambda read=read: read(str(path), indices, size)
    del reference
    timings = {key: summarize(seconds) for key, seconds in cpu_rounds(calls, bench.effort).items()}
    rates = {provider: 1e3 / timing.median_ms for (provider, _), timing in timings.items()}
    for (provider, function), timing in timings.items():
        with bench.findings.recording_failure(measured="decode", case=case.name, provider=provider):
            bench.findings.records.append({
                "measured": "decode", "case": case.name, "described": case.described(), "provider": provider,
                "function": function, "file_bytes": path.stat().st_size, "clips_per_second": rates[provider],
                **compared(provider, rates), "mean_error": errors[provider], **vars(timing),
                **(NOT_FRESH if bench.settings.quick else measure_fresh(provider, function, path, indices, size)),
            })  # fmt: skip


def cpu_rounds(calls: Mapping[Any, Callable[[], Any]], effort: Effort) -> dict[Any, list[float]]:
    """Seconds that the cores spend on each call of each round, all threads of the process together: what several
    processes beside each other are limited by, whatever else runs on the machine.

    Each round runs every call once, every other round in reverse order.
    """
    for call in calls.values():
        call()
    seconds: dict[Any, list[float]] = {key: [] for key in calls}
    start, rounds = time.perf_counter(), 0
    while rounds < effort.min_rounds or (
        time.perf_counter() - start < effort.max_seconds and min(map(sum, seconds.values())) < effort.min_seconds
    ):
        for key, call in list(calls.items())[:: 1 if rounds % 2 == 0 else -1]:
            before = time.process_time()
            result = call()
            seconds[key].append(time.process_time() - before)
            del result
        rounds += 1
    return seconds


def _fastest(
    provider: str, path: str, indices: Sequence[int], size: tuple[int, int] | None, reference: Sequence[Any]
) -> tuple[str, float]:
    """The fastest function of a provider that gives the right frames, and by how much those are off."""
    found: dict[str, tuple[float, float]] = {}
    wrong: ArithmeticError | None = None
    for function in PROVIDERS[provider]:
        read = data_providers.build(provider, function)
        try:
            error = check_frames(data_providers.as_frames(read(path, indices, size)), indices, reference)
        except ArithmeticError as problem:
            wrong = problem
            continue
        start = time.process_time()
        read(path, indices, size)
        found[function] = time.process_time() - start, error
    if not found:
        raise wrong or ArithmeticError("has no function")
    best = min(found, key=lambda function: found[function][0])
    return best, found[best][1]


def compared(provider: str, rates: dict[str, float]) -> dict[str, Any]:
    """Ours beside the fastest of the others: its name, and how many times as fast ours is."""
    others = [name for name in rates if not name.startswith(OURS)]
    if provider != OURS or not others:
        return {"best_other": None, "speedup_over_best_other": None}
    best = max(others, key=lambda name: rates[name])
    return {"best_other": best, "speedup_over_best_other": rates[provider] / rates[best]}


def _measure_loader(bench: _Bench, device: torch.device) -> None:
    settings, shape = bench.settings, bench.settings.loader
    if not settings.workers:
        return
    case = CASES[LOADER_CASE]
    video = write_video(bench.folder / "loaded.mp4", case, settings.frames)
    clips = data_loader.clip_set(bench.folder / "clips", video, shape.clips)
    common = {"case": case.name, "described": case.described()}
    for workers in settings.workers:
        what = {"measured": "loader", "workers": workers}
        with bench.findings.recording_failure(**{name: str(value) for name, value in what.items()}):
            measured = data_loader.measure_loader(clips, shape, workers)
            bench.findings.records.append({**what, **common, **measured})
    lengths = settings.steps[:1] if settings.quick else settings.steps
    steps = {(ASLEEP, seconds): data_loader.asleep(seconds) for seconds in lengths}
    for workers in settings.workers:
        for step in [*steps, (ART_STEP, None)]:
            what = {"measured": "waiting", "workers": workers, "step": step[0]}
            with bench.findings.recording_failure(**{name: str(value) for name, value in what.items()}):
                run_step = steps[step] if step in steps else data_loader.art_step(shape, device)
                measured = data_loader.measure_waiting(clips, shape, workers, run_step)
                bench.findings.records.append({**what, **common, **measured})
