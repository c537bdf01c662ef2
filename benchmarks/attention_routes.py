"""From how many queries projecting the regions is faster than folding the projections: measured, and by the rule."""

from __future__ import annotations

import time
from typing import Any

import torch

from art_kernels.region_attention.routes import ROUTES, cheaper_route
from benchmarks.attention_passes import pass_call
from benchmarks.attention_providers import RegionAttention, draw_inputs
from benchmarks.attention_shapes import AttentionShape
from benchmarks.timing import Effort, time_calls

REGIONS, CHANNELS, HEADS = 196, 256, 8
QUERIES = (1, 2, 4, 8, 16, 20, 24, 28, 30, 31, 32, 36, 40, 48, 64, 96, 128, 192, 256)
QUICK_QUERIES = (1, 16, 64)
REHEARSED_QUERIES = (1, 3)
FRAMES = {"cpu": 16, "cuda": 128}
PASSES = ("forward", "both")


def measure_crossing(
    device: torch.device,
    dtype: torch.dtype,
    effort: Effort,
    *,
    quick: bool = False,
    rehearsal: bool = False,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Both routes over the number of queries K, at N=196, C=E=256, 8 heads.

    Args:
        device: where.
        dtype: of everything.
        effort: of each measurement.
        quick: three numbers of queries and two frames.
        rehearsal: two numbers of queries and one frame.
        deadline: of `time.monotonic()`, in seconds, after which no other K is begun.

    Returns:
        The sizes; "rule_turns_at", the least K for which `cheaper_route` says "projected"; "points", one for each K,
        pass and route with its time in ms; "measured", for each pass what `judge` says of them; and
        "queries_left_out", the K for which no time was left.
    """
    frames = 1 if rehearsal else 2 if quick else FRAMES[device.type]
    points: list[dict[str, Any]] = []
    left_out = []
    for queries in REHEARSED_QUERIES if rehearsal else QUICK_QUERIES if quick else QUERIES:
        if deadline is not None and time.monotonic() > deadline:
            left_out.append(queries)
        else:
            points += _points(queries, frames, device, dtype, effort)
    return {
        "frames": frames,
        "regions": REGIONS,
        "region_dim": CHANNELS,
        "embed_dim": CHANNELS,
        "num_heads": HEADS,
        "dtype": str(dtype).removeprefix("torch."),
        "rule_turns_at": next(count for count in range(1, 10**6) if rule(count) == "projected"),
        "points": points,
        "measured": {name: judge([point for point in points if point["pass"] == name]) for name in PASSES},
        "queries_left_out": left_out,
    }


def rule(queries: int) -> str:
    """The route that `cheaper_route` takes for K queries."""
    return cheaper_route(queries=queries, regions=REGIONS, region_dim=CHANNELS, embed_dim=CHANNELS, num_heads=HEADS)


def judge(points: list[dict[str, Any]]) -> dict[str, Any]:
    """How the rule does on the points of one pass.

    Returns:
        "turns_at": the least measured K from which on "projected" is always the faster, None where there is none;
        "largest_loss": the greatest time of the rule's choice over that of the faster route, and "at_queries", where.
    """
    by_queries: dict[int, dict[str, float]] = {}
    for point in points:
        by_queries.setdefault(point["queries"], {})[point["route"]] = point["ms"]
    folded_wins = [count for count, ms in by_queries.items() if ms["folded"] <= ms["projected"]]
    projected_wins = [count for count in sorted(by_queries) if count > max(folded_wins, default=0)]
    losses = {count: ms[rule(count)] / min(ms.values()) for count, ms in by_queries.items()}
    worst = max(losses, key=lambda count: losses[count], default=None)
    return {
        "turns_at": projected_wins[0] if projected_wins else None,
        "largest_loss": None if worst is None else losses[worst],
        "at_queries": worst,
    }


def _points(
    queries: int, frames: int, device: torch.device, dtype: torch.dtype, effort: Effort
) -> list[dict[str, Any]]:
    shape = AttentionShape("crossing", frames, frames, queries, REGIONS, CHANNELS, CHANNELS, HEADS)
    inputs = draw_inputs(shape, device, dtype)
    modules = {route: RegionAttention(shape, device, dtype, route=route) for route in ROUTES}
    for module in modules.values():
        module.attention.load_state_dict(inputs.weights)
    points = []
    for name in PASSES:
        calls = {route: pass_call(name, module, inputs) for route, module in modules.items()}
        for route, timing in time_calls(calls, device, effort).items():
            points.append({"queries": queries, "pass": name, "route": route, "ms": timing.median_ms})
    return points
