"""Measuring every way to link responses: first whether it is right, then its time and its memory."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import linking_providers
from benchmarks.linking_case import Bench, Case, compared, of_limit, served_by
from benchmarks.linking_inputs import draw_responses
from benchmarks.linking_providers import OURS_REPLAYED, Link, build
from benchmarks.linking_shapes import DTYPES, SHAPES
from benchmarks.linking_truth import NO_JUDGE, judge, link_errors
from benchmarks.memory import peak_extra_bytes
from benchmarks.replay import replay
from benchmarks.timing import time_calls


def measure_linking(bench: Bench, case: Case) -> None:
    """Measure all providers with the responses of one shape."""
    shape = SHAPES[case["shape"]].on(quick=bench.quick)
    if judge(shape.sizes[2]) is None:
        bench.findings.left_out.append({**case, "reason": NO_JUDGE})
        return
    generator = torch.Generator(bench.device).manual_seed(0)
    responses = draw_responses(*shape.sizes, generator, bench.device).to(DTYPES[case["dtype"]])
    right = _right_links(bench, responses, case)
    calls = {provider: partial(link, responses) for provider, (link, _) in right.items()}
    timings = time_calls(calls, bench.device, bench.effort)
    milliseconds = {provider: timing.median_ms for provider, timing in timings.items()}
    moved, operations = shape.moved_bytes(responses.dtype), shape.operations()
    bench.findings.records += [
        {
            **case,
            "sizes": list(shape.sizes),
            "provider": provider,
            "served_by": served_by("link_tracklets", provider, responses),
            **asdict(timing),
            "microseconds": 1e3 * timing.median_ms / shape.pairs,
            **compared(provider, milliseconds),
            "peak_extra_bytes": peak_extra_bytes(calls[provider], bench.device),
            "moved_bytes": moved,
            "operations": operations,
            **of_limit(bench.limits, timing, moved, operations, case["dtype"]),
            "errors": right[provider][1],
        }
        for provider, timing in timings.items()
    ]


def _right_links(bench: Bench, responses: Tensor, case: Case) -> dict[str, tuple[Link, dict[str, float]]]:
    """Every provider that can be had here and links best, with its errors."""
    found = {}
    for provider in linking_providers.PROVIDERS:
        if linking_providers.refusal(provider, bench.device) is not None:
            continue
        with bench.findings.recording_failure(**case, provider=provider):
            link = build(provider)
            if provider == OURS_REPLAYED:
                link = _replayed(link, responses)
            found[provider] = (link, link_errors(responses, *link(responses)))
    return found


def _replayed(link: Link, responses: Tensor) -> Link:
    """Captured with these responses, which it then always links."""
    again: Any = replay(partial(link, responses))
    return lambda responses: again()
