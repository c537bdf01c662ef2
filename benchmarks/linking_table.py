"""What `bench_linking` measured, as text."""

from __future__ import annotations

from typing import Any

from benchmarks.linking_shapes import LinkingShape
from benchmarks.table import Column, line, place, print_missing, print_table, times

_COMMON: tuple[Column, ...] = (
    ("ms", 9, lambda record: f"{record['median_ms']:.4g}"),
    ("20-80 %", 16, lambda record: f"{record['p20_ms']:.4g}-{record['p80_ms']:.4g}"),
    ("µs each", 9, lambda record: f"{record['microseconds']:.4g}"),
    ("vs first", 9, lambda record: times(record["speedup_over_first"])),
    ("vs best other", 13, lambda record: times(record["speedup_over_best_other"])),
    ("MiB", 7, lambda record: _mebibytes(record["peak_extra_bytes"])),
    ("GB/s", 7, lambda record: f"{record['achieved_gbs']:.3g}"),
    ("of limit", 8, lambda record: f"{100 * record['share_of_limit']:.1f}%"),
    ("error", 8, lambda record: f"{max(record['errors'].values()):.1e}"),
)
_ASSIGNMENT: tuple[Column, ...] = (
    ("provider", -32, lambda record: record["provider"]),
    ("function", -23, lambda record: record["function"]),
    ("problems", 9, lambda record: f"{record['problems']:,}"),
    *_COMMON,
)
_LINKING: tuple[Column, ...] = (("provider", -37, lambda record: record["provider"]), *_COMMON)


def print_records(records: list[dict[str, Any]]) -> None:
    """The table of one size and kind of costs, or of one shape of responses, in one dtype.

    "µs each" is a problem, or a pair of adjacent frames; "vs first" says how many times as fast as SciPy; "GB/s" is
    over the bytes that must move and "of limit" the share of what the device can do, mostly of its copy bandwidth;
    "error" is by how much a sum of costs is off the best one, as a share of K times the largest cost, or of links.
    """
    first = records[0]
    if first["operation"] == "linear_assignment":
        print(f"\nassignment of {first['size']} rows, {first['kind']}, {first['dtype']}")
        print_table(_ASSIGNMENT, records)
        return
    shape = LinkingShape(first["shape"], first["sizes"])
    print(f"\nlinking, {shape.name}, {first['dtype']}: {shape.described()}")
    print(f"  {first['moved_bytes'] / 1e6:.2f} MB and {first['operations'] / 1e9:.3g} GFLOP")
    print_table(_LINKING, records)


def print_summary(result: dict[str, Any]) -> None:
    """How many times as fast as the best other ours is, where it was measured, and whatever is not in the tables."""
    rates = ", ".join(f"{rate:.3g} TFLOP/s in {dtype}" for dtype, rate in result["matrix_tflops"].items())
    print(f"\n{place(result)}; copies {result['copy_gbs']:.1f} GB/s, multiplies {rates}")
    print(", ".join(f"{name} {version}" for name, version in result["peers"].items()))
    ours = [record for record in result["records"] if record["speedup_over_best_other"] is not None]
    if ours:
        print("times as fast as the best other:")
        for what, cells in _ratios(ours).items():
            print(line([what, *cells], [-48, *(-36 for _ in cells)]))
    print_missing(result)


def _ratios(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """A row for each case, a cell for each of our providers in it."""
    rows: dict[str, list[str]] = {}
    for record in records:
        if record["operation"] == "linear_assignment":
            what = f"assignment, {record['dtype']}, {record['kind']}, {record['size']} rows"
        else:
            what = f"linking, {record['dtype']}, {record['shape']}"
        ratio = f"{times(record['speedup_over_best_other'])} {record['best_other']}"
        rows.setdefault(what, []).append(ratio)
    return rows


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.1f}"
