"""What `bench_contrast` measured, as text."""

from __future__ import annotations

from typing import Any

from benchmarks.contrast_shapes import ContrastShape
from benchmarks.table import Column, place, print_missing, print_table

_COLUMNS: tuple[Column, ...] = (
    ("pass", -8, lambda record: record["pass"]),
    ("provider", -23, lambda record: record["provider"]),
    ("ms", 10, lambda record: f"{record['median_ms']:.4g}"),
    ("20-80 %", 19, lambda record: f"{record['p20_ms']:.4g}-{record['p80_ms']:.4g}"),
    ("vs first", 9, lambda record: f"{record['speedup_over_first']:.2f}x"),
    ("MiB", 9, lambda record: f"{record['peak_extra_bytes'] / 2**20:.1f}"),
    ("GB/s", 8, lambda record: f"{record['achieved_gbs']:.2f}"),
    ("TFLOP/s", 8, lambda record: f"{record['achieved_tflops']:.3g}"),
    ("of limit", 8, lambda record: f"{100 * record['share_of_limit']:.1f}%"),
    ("error", 8, lambda record: f"{max(record['errors'].values()):.1e}"),
    ("served by", -9, lambda record: record["served_by"] or ""),
)


def print_records(shape: ContrastShape, dtype: str, records: list[dict[str, Any]]) -> None:
    """The table of one shape in one dtype.

    "vs first" says how many times as fast as the first provider; "MiB" is the peak beyond what was there before; "GB/s"
    is over the bytes that must move, "TFLOP/s" over the operations that cannot be spared; "of limit" is the share of
    copy bandwidth, for `tracklet_nce` of the rate of a large matrix product; "error" is the largest, as a share of the
    largest true element.
    """
    print(f"\n{shape.name}, {dtype}: {shape.operation}, {shape.described()}")
    for record in {record["pass"]: record for record in records}.values():
        print(f"  {record['pass']}: {record['moved_bytes'] / 1e6:.2f} MB and {record['operations'] / 1e9:.3g} GFLOP")
    print_table(_COLUMNS, records)


def print_summary(result: dict[str, Any]) -> None:
    """Where it was measured, and whatever is not in the tables."""
    rates = ", ".join(f"{rate:.3g} TFLOP/s in {dtype}" for dtype, rate in result["matrix_tflops"].items())
    print(f"\n{place(result)}; copies {result['copy_gbs']:.1f} GB/s, multiplies {rates}")
    print_missing(result)
