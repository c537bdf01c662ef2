"""Measuring every way to compute a cross-attention: first whether it is right, then its time and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.attention_passes import errors, pass_call, require_exact, truth, values_and_gradients
from benchmarks.attention_providers import BASELINE, PROVIDERS, Inputs, build, draw_inputs, refusal, served_by
from benchmarks.attention_routes import measure_crossing
from benchmarks.attention_shapes import PASSES, SHAPES, AttentionShape, floor
from benchmarks.bandwidth import copy_bandwidth_gbs
from benchmarks.findings import DTYPES, OUT_OF_TIME, Findings
from benchmarks.memory import peak_extra_bytes
from benchmarks.timing import REHEARSAL, Effort, Timing, effort_for, time_calls


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda".
        shapes: names of `SHAPES`.
        dtypes: names of `DTYPES`.
        passes: of `PASSES`.
        quick: few repetitions and an eighth of the frames, to see that it works; the times mean little.
        crossing: also measure over the number of queries where the two routes cross, in the first dtype.
        rehearsal: as little of everything as runs each step, on a CPU.
    """

    device: str = "cpu"
    shapes: tuple[str, ...] = tuple(SHAPES)
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = PASSES
    quick: bool = False
    crossing: bool = False
    rehearsal: bool = False


@dataclass(frozen=True)
class Case:
    """One shape in one dtype on one device, with the providers that compute it rightly."""

    shape: AttentionShape
    dtype: torch.dtype
    device: torch.device
    inputs: Inputs
    modules: dict[str, nn.Module]
    errors: dict[str, dict[str, float]]


Report = Callable[[AttentionShape, str, list[dict[str, Any]]], None]


def run(settings: Settings, *, deadline: float | None = None, report: Report | None = None) -> dict[str, Any]:
    """Measure everything that `settings` ask for.

    Args:
        settings: what.
        deadline: of `time.monotonic()`, in seconds, after which nothing new is begun; what is left then is named in
            "left_out".
        report: called with shape, dtype and records whenever a shape is done.

    Returns:
        Where it was measured, the settings, the copy bandwidth, "records", "left_out", "failures", and "crossing" or
        None, all of it fit for JSON.
    """
    device = torch.device(settings.device)
    effort = REHEARSAL if settings.rehearsal else effort_for(device, quick=settings.quick)
    copy_gbs = copy_bandwidth_gbs(device, effort)
    findings = Findings()
    reasons = {provider: refusal(provider, device) for provider in PROVIDERS}
    findings.left_out += [{"provider": name, "reason": reason} for name, reason in reasons.items() if reason]
    for dtype in settings.dtypes:
        for name in settings.shapes:
            shape, before = _sized(name, settings), len(findings.records)
            with findings.recording_failure(shape=name, dtype=dtype):
                _measure_shape(shape, dtype, settings, effort, copy_gbs, deadline, findings)
            if report is not None and len(findings.records) > before:
                report(shape, dtype, findings.records[before:])
            if device.type == "cuda":
                torch.cuda.empty_cache()
    crossing = None
    if settings.crossing:
        with findings.recording_failure(shape="crossing", dtype=settings.dtypes[0]):
            crossing = measure_crossing(
                device,
                DTYPES[settings.dtypes[0]],
                effort,
                quick=settings.quick,
                rehearsal=settings.rehearsal,
                deadline=deadline,
            )
            if crossing["queries_left_out"]:
                findings.left_out.append({"shape": "crossing", "dtype": settings.dtypes[0], "reason": OUT_OF_TIME})
    return findings.result("region_attention", device, settings, effort, copy_bandwidth_gbs=copy_gbs, crossing=crossing)


def _sized(name: str, settings: Settings) -> AttentionShape:
    return (
        SHAPES[name].tiny()
        if settings.rehearsal
        else SHAPES[name].on(torch.device(settings.device), quick=settings.quick)
    )


def _measure_shape(
    shape: AttentionShape,
    dtype: str,
    settings: Settings,
    effort: Effort,
    copy_gbs: float,
    deadline: float | None,
    findings: Findings,
) -> None:
    case = None
    for pass_name in settings.passes:
        if deadline is not None and time.monotonic() > deadline:
            what = {"shape": shape.name, "dtype": dtype, "pass": pass_name}
            findings.left_out.append({**what, "reason": OUT_OF_TIME})
            continue
        case = case or _prepare(shape, dtype, torch.device(settings.device), findings)
        findings.records += _measure_pass(case, pass_name, effort, copy_gbs)


def _prepare(shape: AttentionShape, dtype: str, device: torch.device, findings: Findings) -> Case:
    """Build every provider that can be built here and check its values and gradients."""
    inputs = draw_inputs(shape, device, DTYPES[dtype])
    case = Case(shape, DTYPES[dtype], device, inputs, {}, {})
    true_values = truth(shape, inputs)
    for provider in (BASELINE, *(name for name in PROVIDERS if name != BASELINE)):
        what = {"shape": shape.name, "dtype": dtype, "provider": provider}
        if refusal(provider, device) is not None:
            continue
        with findings.recording_failure(**what):
            module = build(provider, shape, inputs)
            found = errors(values_and_gradients(module, inputs), true_values)
            require_exact(found, case.errors.get(BASELINE, found))
            case.modules[provider], case.errors[provider] = module, found
    if BASELINE not in case.modules:
        raise RuntimeError(f"{BASELINE}, against which the others are measured, could not be run")
    return case


def _measure_pass(case: Case, pass_name: str, effort: Effort, copy_gbs: float) -> list[dict[str, Any]]:
    calls = {name: pass_call(pass_name, case.modules[name], case.inputs) for name in PROVIDERS if name in case.modules}
    timings = time_calls(calls, case.device, effort)
    return [
        _record(case, pass_name, provider, timings, peak_extra_bytes(call, case.device), copy_gbs)
        for provider, call in calls.items()
    ]


def _record(
    case: Case, pass_name: str, provider: str, timings: dict[str, Timing], peak_bytes: int, copy_gbs: float
) -> dict[str, Any]:
    timing = timings[provider]
    least = floor(case.shape, case.dtype, pass_name)
    achieved_gbs = least.bytes / (timing.median_ms * 1e6)
    others = [other.median_ms for name, other in timings.items() if name != provider]
    sizes = asdict(case.shape)
    del sizes["name"], sizes["cpu_frames"]
    return {
        "shape": case.shape.name,
        **sizes,
        "dtype": str(case.dtype).removeprefix("torch."),
        "pass": pass_name,
        "provider": provider,
        "served_by": served_by(provider, case.shape, case.inputs.regions),
        **asdict(timing),
        "speedup_over_mha": timings[BASELINE].median_ms / timing.median_ms,
        "speedup_over_best_other": min(others) / timing.median_ms if others else None,
        "peak_extra_bytes": peak_bytes,
        "floor_bytes": least.bytes,
        "folded_operations": least.operations,
        "achieved_gbs": achieved_gbs,
        "share_of_copy": achieved_gbs / copy_gbs,
        "errors": case.errors[provider],
    }
