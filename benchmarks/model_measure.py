"""Measuring each model: first whether it says the same, then its operations, its time and its memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from art.model.pretrained import VideoClassifier
from art.tools.profile import count_stages
from benchmarks.findings import DTYPES, OUT_OF_TIME, Findings
from benchmarks.memory import peak_extra_bytes
from benchmarks.model_peers import (
    ART_OURS,
    ART_PUBLISHED,
    MODELS,
    OURS,
    PROVIDERS,
    PUBLISHED,
    Model,
    build,
    build_all,
)
from benchmarks.timing import REHEARSAL, Effort, effort_for, summarize, time_rounds

PASSES = ("forward", "both")
#: Logits may differ so much, as a share of the largest.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
#: Both passes of B/16 with 8 frames are to take less than four minutes.
CPU_EFFORT = Effort(min_rounds=7, min_seconds=0.0, max_seconds=60.0, warmups=1)
GPU_EFFORT = Effort(min_rounds=20, min_seconds=0.0, max_seconds=20.0, warmups=3)
#: The size for which the paper gives operations: 1,332 GMAC for the backbone, 1,429 for ART on it.
COUNTED = "l14-16"


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda".
        models: names of `MODELS`.
        dtypes: names of `TOLERANCE`; "bfloat16" is mixed precision.
        passes: of `PASSES`.
        quick: few repetitions, and nothing large is counted.
        rehearsal: hardly any repetition.
    """

    device: str = "cpu"
    models: tuple[str, ...] = ("b16-8",)
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = PASSES
    quick: bool = False
    rehearsal: bool = False


Report = Callable[[Model, str, list[dict[str, Any]]], None]


def run(settings: Settings, *, deadline: float | None = None, report: Report | None = None) -> dict[str, Any]:
    """Measure everything that `settings` ask for.

    Args:
        settings: what.
        deadline: of `time.monotonic()`, in seconds, after which nothing new is begun; what is left then is named in
            "left_out".
        report: called with model, dtype and records whenever a model is done.

    Returns:
        Where it was measured, the settings, "records", "counts", "left_out" and "failures", fit for JSON.
    """
    device = torch.device(settings.device)
    effort = CPU_EFFORT if device.type == "cpu" else GPU_EFFORT
    if settings.quick:
        effort = REHEARSAL if settings.rehearsal else effort_for(device, quick=True)
    findings = Findings()
    counts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in dict.fromkeys((*settings.models, *(() if settings.quick else (COUNTED,)))):
        with findings.recording_failure(model=name, what="counts"):
            counts[name] = {provider: count(provider, MODELS[name]) for provider in PROVIDERS}
    for dtype in settings.dtypes:
        for name in settings.models:
            before = len(findings.records)
            with findings.recording_failure(model=name, dtype=dtype):
                _measure_model(MODELS[name], dtype, settings, effort, counts[name], deadline, findings)
            if report is not None and len(findings.records) > before:
                report(MODELS[name], dtype, findings.records[before:])
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return findings.result("model", device, settings, effort, counts=counts)


def count(provider: str, model: Model) -> list[dict[str, Any]]:
    """Parameters, multiply-adds and activations by stage, for one clip, in float32."""
    return [asdict(stage) for stage in count_stages(partial(build, provider, model), precision=nullcontext)]


def macs(stages: list[dict[str, Any]], pass_name: str = "forward") -> int:
    """Multiply-adds of a pass."""
    kinds = ("forward_macs",) if pass_name == "forward" else ("forward_macs", "backward_macs")
    outside = ("loss",) if pass_name == "forward" else ()
    return sum(stage[kind] for stage in stages if stage["stage"] not in outside for kind in kinds)


def _measure_model(
    model: Model,
    dtype: str,
    settings: Settings,
    effort: Effort,
    counts: dict[str, list[dict[str, Any]]],
    deadline: float | None,
    findings: Findings,
) -> None:
    device = torch.device(settings.device)
    models = build_all(model, device)
    size = models[ART_OURS].input_size
    video = torch.rand(model.clips, model.frames, 3, size, size, device=device)
    labels = torch.arange(model.clips, device=device)
    differences = compare(models, video, dtype)
    for pass_name in settings.passes:
        if deadline is not None and time.monotonic() > deadline:
            findings.left_out.append({"model": model.name, "dtype": dtype, "pass": pass_name, "reason": OUT_OF_TIME})
            continue
        for each in models.values():
            each.train(pass_name == "both")
        calls = {name: pass_call(pass_name, each, video, labels, dtype) for name, each in models.items()}
        rounds = time_rounds(calls, device, effort)
        peaks = {name: peak_extra_bytes(call, device) for name, call in calls.items()}
        for name in models:
            findings.records.append(
                {
                    "model": model.name,
                    "described": model.described(),
                    "dtype": dtype,
                    "pass": pass_name,
                    "provider": name,
                    **asdict(summarize(rounds.seconds[name], rounds.host_seconds[name])),
                    **ratios(rounds.seconds, name),
                    "peak_extra_bytes": peaks[name],
                    "peak_ratio": peaks[name] / peaks[PUBLISHED],
                    "macs": model.clips * macs(counts[name], pass_name),
                    "difference": differences[name],
                }
            )


def ratios(seconds: Mapping[str, list[float]], name: str) -> dict[str, float]:
    """Time as a multiple of the published backbone's of the same round: the median, and a fifth on either side."""
    found = [own / other for own, other in zip(seconds[name], seconds[PUBLISHED], strict=True)]
    fifths = statistics.quantiles(found, n=5, method="inclusive")
    return {"ratio": statistics.median(found), "ratio_p20": fifths[0], "ratio_p80": fifths[-1]}


def compare(models: Mapping[str, VideoClassifier], video: Tensor, dtype: str) -> dict[str, float]:
    """How far the logits on x_cls are from those of the published backbone, and ART's from ART's on that.

    Raises:
        ArithmeticError: more than `TOLERANCE` of the largest.
    """
    heads = {}
    with torch.no_grad(), _precision(video.device, dtype):
        for name, model in models.items():
            output = model.eval()(video)
            heads[name] = torch.cat([getattr(output, "video_logits", output.logits), output.logits]).float()
    found = {}
    for name, logits in heads.items():
        # Which classes query may turn on a rounding, and ART's logits with them: those of one backbone are compared.
        other = heads[PUBLISHED if name in (PUBLISHED, OURS) else ART_PUBLISHED]
        found[name] = ((logits - other).abs().max() / other.abs().max()).item()
        if not found[name] <= TOLERANCE[dtype]:
            raise ArithmeticError(f"{name}: logits differ by {found[name]:.2g} of the largest from those as published")
    return found


def pass_call(
    pass_name: str, model: VideoClassifier, video: Tensor, labels: Tensor, dtype: str
) -> Callable[[], object]:
    """A call that runs "forward" without a graph, or "both" passes of a training step, loss included."""
    if pass_name == "forward":

        def forward() -> object:
            with torch.no_grad(), _precision(video.device, dtype):
                return model(video).logits

        return forward

    def both() -> None:
        with _precision(video.device, dtype):
            loss = model.loss(model(video), labels).total
        loss.backward()
        model.zero_grad(set_to_none=True)

    return both


def _precision(device: torch.device, dtype: str) -> Any:
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, DTYPES[dtype])
