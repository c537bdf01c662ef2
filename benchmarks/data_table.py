"""What `bench_data` measured, as text."""

from __future__ import annotations

from typing import Any

from benchmarks.table import Column, place, print_missing, print_table, times

_DECODE: tuple[Column, ...] = (
    ("provider", -23, lambda record: record["provider"]),
    ("function", -12, lambda record: record["function"]),
    ("clips/s", 8, lambda record: f"{record['clips_per_second']:.3g}"),
    ("core ms", 7, lambda record: f"{record['median_ms']:.4g}"),
    ("20-80 %", 15, lambda record: f"{record['p20_ms']:.4g}-{record['p80_ms']:.4g}"),
    ("vs best other", 13, lambda record: times(record["speedup_over_best_other"])),
    ("first clip, s", 13, lambda record: _seconds(record["first_clip_seconds"])),
    ("MiB", 6, lambda record: _mebibytes(record["peak_bytes"])),
    ("off by", 6, lambda record: f"{record['mean_error']:.2f}"),
)
_LOADER: tuple[Column, ...] = (
    ("workers", 7, lambda record: str(record["workers"])),
    ("first batch, s", 14, lambda record: f"{record['first_batch_seconds']:.2f}"),
    ("clips/s", 8, lambda record: f"{record['clips_per_second']:.3g}"),
)
_WAITING: tuple[Column, ...] = (
    ("workers", 7, lambda record: str(record["workers"])),
    ("step", -10, lambda record: record["step"]),
    ("step, s", 8, lambda record: f"{record['step_seconds']:.3f}"),
    ("waits, s", 8, lambda record: f"{record['waiting_seconds']:.3f}"),
    ("share", 6, lambda record: f"{100 * record['waiting_share']:.0f}%"),
)


def print_records(records: list[dict[str, Any]]) -> None:
    """The table of one file, or of the loader.

    "clips/s" is of one core; "first clip" is in a new process, from the import of the library on, and "MiB" the most
    memory that process took beyond PyTorch and NumPy; "off by" is the mean difference from the frame, of 255 levels.
    """
    for measured, columns in (("decode", _DECODE), ("loader", _LOADER), ("waiting", _WAITING)):
        own = [record for record in records if record["measured"] == measured]
        if own:
            print(f"\n{measured}, {own[0]['case']}: {own[0]['described']}")
            print_table(columns, own)


def print_summary(result: dict[str, Any]) -> None:
    """Where it was measured, the leak, how many times as fast as the best other ours is, and what is missing."""
    print(f"\n{place(result)}")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    leak = result["leak"]
    if leak is not None:
        print(
            f"memory over {leak['decodes']:,} decodes ({leak['failed']:,} of truncated files): grew by "
            f"{leak['growth_bytes'] / 2**20:.2f} MiB from the second quarter to the last, "
            f"{_mebibytes(max(leak['resident_bytes']))} MiB at most"
        )
    for record in result["records"]:
        if record.get("speedup_over_best_other") is not None:
            print(f"  {record['case']}: {times(record['speedup_over_best_other'])} {record['best_other']}")
    print_missing(result)


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
