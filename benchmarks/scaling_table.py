"""What `bench_scaling` says, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import place, print_missing

SHOWN_RANKS = (1, 8, 64, 256, 1024)
PARTS = {
    "computing": "computing", "sending": "sending", "updating": "updating", "notes": "notes", "slowest": "slowest",
    "decoding": "decoding", "failing": "failures",
}  # fmt: skip
NAMES = {"b16": "B/16", "l14": "L/14", "h100": "H100", "a40": "A40", "cpu": "this CPU", "ddp": "DDP", "fsdp": "FSDP2"}


def tables(result: dict[str, Any]) -> dict[str, str]:
    """By name: "measured" with where it was, "ranks", "growing", "divided", "limits"; those for which there is
    something."""
    made = {
        "measured": _measured(result), "ranks": _ranks(result), "growing": _growing(result),
        "divided": _divided(result), "limits": _limits(result),
    }  # fmt: skip
    return {name: table for name, table in made.items() if table}


def print_result(result: dict[str, Any]) -> None:
    """All tables, and whatever is not in them."""
    for name, table in tables(result).items():
        print(f"\n{name}\n\n{table}")
    print_missing(result)


def update_page(page: Path, result: dict[str, Any]) -> None:
    """Put the tables where ``<!-- table NAME -->`` and ``<!-- end -->`` stand around the older ones.

    Raises:
        ValueError: the page has no place for one of them.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables(result).items():
        before, mark, rest = text.partition(f"<!-- table {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"{page}: expected a place for a table, <!-- table {name} --> and <!-- end -->")
        text = f"{before}{mark}\n{table}\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def _measured(result: dict[str, Any]) -> str:
    ceiling = result["ceilings"]["matrix_tflops"]
    rows = [
        [
            NAMES[record["recipe"]], record["precision"], str(record["clips"]),
            _ms(record["passes"]["median_ms"] / 1e3), _ms(record["update"]["median_ms"] / 1e3),
            f"{record['tflops']:.3g}", f"{100 * record['tflops'] / ceiling:.0f} %",
        ]
        for record in result["records"]
    ]  # fmt: skip
    headings = ["model", "precision", "clips", "passes, ms", "update, ms", "10¹² operations/s", "of a matrix product's"]
    return f"{markdown(headings, rows)}\n{place(result)}.\n" if rows else ""


def _ranks(result: dict[str, Any]) -> str:
    found = result["ranks"]
    if found is None:
        return ""
    names = ("computing", "all_reduce", "predicted", "measured")
    row = [NAMES[found["recipe"]], str(found["frames"]), *(f"{found[name]:.3g}" for name in names)]
    headings = ["model", "frames", "computing, s", "all-reduce alone, s", "step, predicted, s", "step, measured, s"]
    return markdown(headings, [row])


def _growing(result: dict[str, Any]) -> str:
    rows = [
        [
            NAMES[row["recipe"]], NAMES[row["machine"]], NAMES[row["strategy"]], f"{row['ranks']:,}",
            _ms(row["seconds"]), *(_ms(row[part]) for part in PARTS), f"{100 * row['efficiency']:.0f} %",
            f"{row['ranks'] * row['clips'] / row['seconds']:,.3g}" if row["seconds"] else "",
        ]
        for row in result["growing"]
        if row["ranks"] in SHOWN_RANKS and (row["strategy"] == "ddp" or row["ranks"] in (8, 1024))
    ]  # fmt: skip
    headings = ["model", "machine", "", "ranks", "step, ms", *PARTS.values(), "efficiency", "clips/s"]
    return markdown(headings, rows)


def _divided(result: dict[str, Any]) -> str:
    rows = [
        [NAMES[row["recipe"]], NAMES[row["machine"]], str(row["ranks"]), str(row["clips"]), _ms(row["seconds"]),
         f"{row['speedup']:.1f}", row["limit"] if row["ranks"] > 1 else ""]
        for row in result["divided"] if row["machine"] != "cpu"
    ]  # fmt: skip
    headings = ["model", "machine", "ranks", "clips a rank", "step, ms", "times as fast as 1", "most beside computing"]
    return markdown(headings, rows)


def _limits(result: dict[str, Any]) -> str:
    rows = [
        [
            NAMES[row["recipe"]], NAMES[row["machine"]], f"{row['clips_per_second']:.3g}",
            f"{row['decoded_per_second']:.3g}", f"{row['cores_wanted']:.1f}",
            f"{100 * row['share_where_decoding_limits']:.0f} %", _ms(row["all_reduce_seconds"]),
            f"{row['clips_that_hide_sending']:.1f}", f"{row['network_gbs_that_hides']:.1f}",
            f"{row['storage_gbs']:.0f}",
        ]
        for row in result["limits"]
    ]  # fmt: skip
    headings = [
        "model", "machine", "computed, clips/s", "decoded, clips/s", "cores wanted", "share where decoding limits",
        "all-reduce, ms", "clips that hide it", "network that hides it, GB/s", "read by 1,024, GB/s",
    ]  # fmt: skip
    return markdown(headings, rows)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column stands to the left and the others to the right."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, marks, *rows)) + "\n"


def _ms(seconds: float) -> str:
    """Three significant digits of milliseconds."""
    value = 1e3 * seconds
    return "0" if value == 0 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
