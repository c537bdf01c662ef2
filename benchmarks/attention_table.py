"""What was measured, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.attention_shapes import SHAPES, AttentionShape, floor, projected_operations
from benchmarks.table import Column, place, print_missing, print_table, times

_COLUMNS: tuple[Column, ...] = (
    ("pass", -8, lambda record: record["pass"]),
    ("provider", -21, lambda record: record["provider"]),
    ("ms", 9, lambda record: f"{record['median_ms']:.3f}"),
    ("20-80 %", 17, lambda record: f"{record['p20_ms']:.3f}-{record['p80_ms']:.3f}"),
    ("vs MHA", 7, lambda record: f"{record['speedup_over_mha']:.2f}x"),
    ("vs best other", 13, lambda record: times(record["speedup_over_best_other"])),
    ("MiB", 8, lambda record: f"{record['peak_extra_bytes'] / 2**20:.1f}"),
    ("GB/s", 8, lambda record: f"{record['achieved_gbs']:.2f}"),
    ("of copy", 7, lambda record: f"{100 * record['share_of_copy']:.1f}%"),
    ("error", 8, lambda record: f"{max(record['errors'].values()):.1e}"),
    ("served by", -17, lambda record: record["served_by"] or ""),
)


def print_records(shape: AttentionShape, dtype: str, records: list[dict[str, Any]]) -> None:
    """The table of one shape in one dtype.

    "vs" columns say how many times as fast the provider is; "MiB" is the peak beyond what was there before; "GB/s" is
    over the bytes that must move and "of copy" its share of copy bandwidth; "error" is the largest, as a share of the
    largest true element.
    """
    normalised = " normalised" if shape.norm_regions else ""
    print(
        f"\n{shape.name}, {dtype}: {shape.frames} frames, {shape.queries} queries of {shape.embed_dim}, "
        f"{shape.regions} regions of {shape.region_dim}{normalised}, {shape.num_heads} heads"
    )
    for record in {record["pass"]: record for record in records}.values():
        print(
            f"  {record['pass']} must move {record['floor_bytes'] / 1e6:.1f} MB; "
            f"folded it is {record['folded_operations'] / 1e9:.2f} GFLOP"
        )
    print_table(_COLUMNS, records)


def print_summary(result: dict[str, Any]) -> None:
    """Where it was measured, the crossing, and whatever is not in the tables."""
    print(f"\n{place(result)}; copies {result['copy_bandwidth_gbs']:.1f} GB/s")
    if result["crossing"] is not None:
        _print_crossing(result["crossing"])
    print_missing(result)


def _print_crossing(crossing: dict[str, Any]) -> None:
    print(f"routes: by the rule projected from {crossing['rule_turns_at']} queries a frame")
    for pass_name, found in crossing["measured"].items():
        if found["at_queries"] is None:
            continue
        turns = "folded is faster to the last" if found["turns_at"] is None else f"projected from {found['turns_at']}"
        print(
            f"  {pass_name}: measured {turns}; the rule's choice takes at most {found['largest_loss']:.2f} times as "
            f"long as the faster one, at {found['at_queries']}"
        )


def print_floor(names: Sequence[str], device: str, dtypes: Sequence[str]) -> None:
    """A Markdown table: what forward and backward of each shape must move and compute, before any device is asked."""
    print("| shape | frames | dtype | MB forward | MB backward | GFLOP folded | GFLOP projected | folded FLOP a byte |")
    print("| --- " * 8 + "|")
    for name in names:
        shape = SHAPES[name].on(torch.device(device))
        for dtype in dtypes:
            forward, backward = (floor(shape, getattr(torch, dtype), kind) for kind in ("forward", "backward"))
            operations = forward.operations + backward.operations
            intensity = operations / (forward.bytes + backward.bytes)
            print(
                f"| {name} | {shape.frames} | {dtype} | {forward.bytes / 1e6:.1f} | {backward.bytes / 1e6:.1f} "
                f"| {operations / 1e9:.2f} | {3 * projected_operations(shape) / 1e9:.2f} | {intensity:.0f} |"
            )
