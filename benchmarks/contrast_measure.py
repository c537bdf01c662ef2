"""Measuring every way to compute a contrast: first whether it is right, then its time and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.contrast_providers import OURS_REPLAYED, PROVIDERS, Loss, build, draw_inputs, refusal, served_by, truth
from benchmarks.contrast_shapes import PASSES, SHAPES, ContrastShape
from benchmarks.findings import DTYPES, OUT_OF_TIME, Findings
from benchmarks.limits import Limits, measure_limits
from benchmarks.memory import peak_extra_bytes
from benchmarks.replay import replay
from benchmarks.timing import REHEARSAL, Effort, Timing, effort_for, time_calls

#: An error so many times that of the first provider in the same dtype is a mistake, and no rounding.
WORST_ERROR_RATIO = 20.0
#: On a CPU all shapes together are to take less than three minutes.
CPU_EFFORT = Effort(min_rounds=5, min_seconds=0.3, max_seconds=6.0, warmups=1)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda".
        shapes: names of `SHAPES`.
        dtypes: names of `DTYPES`.
        passes: of `PASSES`.
        quick: few repetitions and an eighth of the sizes, to see that it works; the times mean little.
        rehearsal: as little of everything as runs each step, on a CPU.
    """

    device: str = "cpu"
    shapes: tuple[str, ...] = tuple(SHAPES)
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = PASSES
    quick: bool = False
    rehearsal: bool = False


Report = Callable[[ContrastShape, str, list[dict[str, Any]]], None]


def run(settings: Settings, *, deadline: float | None = None, report: Report | None = None) -> dict[str, Any]:
    """Measure everything that `settings` ask for.

    Args:
        settings: what.
        deadline: of `time.monotonic()`, in seconds, after which nothing new is begun; what is left then is named in
            "left_out".
        report: called with shape, dtype and records whenever a shape is done.

    Returns:
        Where it was measured, the settings, the limits, "records", "left_out" and "failures", fit for JSON.
    """
    device = torch.device(settings.device)
    effort = CPU_EFFORT if device.type == "cpu" and not settings.quick else effort_for(device, quick=settings.quick)
    if settings.rehearsal:
        effort = REHEARSAL
    limits = measure_limits(device, {name: DTYPES[name] for name in settings.dtypes}, effort)
    findings = Findings()
    for dtype in settings.dtypes:
        for name in settings.shapes:
            shape, before = SHAPES[name].on(device, quick=settings.quick), len(findings.records)
            if settings.rehearsal:
                shape = SHAPES[name].tiny()
            if shape is None:
                findings.left_out.append({"shape": name, "dtype": dtype, "reason": "it would take minutes on a CPU"})
                continue
            if shape.sizes != SHAPES[name].sizes:
                cut = f"cut to {shape.described()} from {SHAPES[name].sizes[0]}"
                findings.left_out.append({"shape": name, "dtype": dtype, "reason": cut})
            with findings.recording_failure(shape=name, dtype=dtype):
                _measure_shape(shape, dtype, settings, effort, limits, deadline, findings)
            if report is not None and len(findings.records) > before:
                report(shape, dtype, findings.records[before:])
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return findings.result("contrast", device, settings, effort, **asdict(limits))


def _measure_shape(
    shape: ContrastShape,
    dtype: str,
    settings: Settings,
    effort: Effort,
    limits: Limits,
    deadline: float | None,
    findings: Findings,
) -> None:
    device = torch.device(settings.device)
    inputs = draw_inputs(shape, device, DTYPES[dtype])
    losses = _right_losses(shape, dtype, inputs, findings)
    for pass_name in settings.passes:
        if deadline is not None and time.monotonic() > deadline:
            what = {"shape": shape.name, "dtype": dtype, "pass": pass_name}
            findings.left_out.append({**what, "reason": OUT_OF_TIME})
            continue
        calls = {}
        for provider, (loss, _) in losses.items():
            if provider != OURS_REPLAYED:
                calls[provider] = pass_call(pass_name, loss, inputs)
            elif pass_name == "both":
                calls[provider] = replay(pass_call(pass_name, loss, inputs))
        timings = time_calls(calls, device, effort)
        findings.records += [
            _record(shape, dtype, pass_name, provider, inputs, losses[provider][1], timings, call, limits)
            for provider, call in calls.items()
        ]


def _right_losses(
    shape: ContrastShape, dtype: str, inputs: Sequence[Tensor], findings: Findings
) -> dict[str, tuple[Loss, dict[str, float]]]:
    """Every provider that can be had here and computes the same, with its errors."""
    true_values = truth(shape, inputs)
    found: dict[str, tuple[Loss, dict[str, float]]] = {}
    for provider in PROVIDERS[shape.operation]:
        what = {"shape": shape.name, "dtype": dtype, "provider": provider}
        reason = refusal(provider, shape, inputs[0].device)
        if reason is not None:
            findings.left_out.append({**what, "reason": reason})
            continue
        with findings.recording_failure(**what):
            loss = build(provider, shape)
            value = loss(*inputs)
            values = [value.detach(), *torch.autograd.grad(value, inputs)]
            own = errors(values, true_values)
            require_exact(own, next(iter(found.values()))[1] if found else own)
            found[provider] = (loss, own)
    return found


def errors(values: Sequence[Tensor], true_values: Sequence[Tensor]) -> dict[str, float]:
    """The largest error of any element, as a share of the largest true one, of the loss and of each gradient."""
    names = ("loss", *(f"grad_{index}" for index in range(len(values) - 1)))
    return {
        name: ((value.double() - true).abs().max() / true.abs().max()).item()
        for name, value, true in zip(names, values, true_values, strict=True)
    }


def require_exact(own: dict[str, float], first: dict[str, float]) -> None:
    """Check the errors of a provider against those of the first one.

    Raises:
        ArithmeticError: one is more than `WORST_ERROR_RATIO` times the other (or a millionth), or not a number.
    """
    for kind, error in own.items():
        if not error <= WORST_ERROR_RATIO * max(first[kind], 1e-6):
            raise ArithmeticError(f"{kind} errs by {error:.2g} of its largest element, the first by {first[kind]:.2g}")


def pass_call(pass_name: str, loss: Loss, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """A call that runs one pass: "forward" without a graph, "backward" of a graph that is kept, or "both"."""
    if pass_name == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return loss(*inputs)

        return forward
    if pass_name == "backward":
        value = loss(*inputs)
        return lambda: torch.autograd.grad(value, inputs, retain_graph=True)
    return lambda: torch.autograd.grad(loss(*inputs), inputs)


def _record(
    shape: ContrastShape,
    dtype: str,
    pass_name: str,
    provider: str,
    inputs: Sequence[Tensor],
    found_errors: dict[str, float],
    timings: dict[str, Timing],
    call: Callable[[], object],
    limits: Limits,
) -> dict[str, Any]:
    timing = timings[provider]
    seconds = 1e-3 * timing.median_ms
    moved, operations = shape.moved_bytes(DTYPES[dtype], pass_name), shape.operations(pass_name)
    gbs, tflops = moved / seconds / 1e9, operations / seconds / 1e12
    of_copy, of_matrix = gbs / limits.copy_gbs, tflops / limits.matrix_tflops[dtype]
    others = [other.median_ms for name, other in timings.items() if name != provider]
    return {
        "shape": shape.name,
        "operation": shape.operation,
        "sizes": list(shape.sizes),
        "dtype": dtype,
        "pass": pass_name,
        "provider": provider,
        "served_by": served_by(provider, shape, inputs),
        **asdict(timing),
        "speedup_over_first": next(iter(timings.values())).median_ms / timing.median_ms,
        "speedup_over_best_other": min(others) / timing.median_ms if others else None,
        "peak_extra_bytes": peak_extra_bytes(call, inputs[0].device),
        "moved_bytes": moved,
        "operations": operations,
        "achieved_gbs": gbs,
        "achieved_tflops": tflops,
        "share_of_limit": of_matrix if shape.operation == "tracklet_nce" else of_copy,
        "errors": found_errors,
    }
