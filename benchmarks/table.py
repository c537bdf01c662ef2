"""Tables of measurements as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: Heading, width and content; to the left where the width is negative.
Column = tuple[str, int, Callable[[dict[str, Any]], str]]


def print_table(columns: Sequence[Column], records: Sequence[dict[str, Any]]) -> None:
    """The headings, and a line for each record."""
    widths = [width for _, width, _ in columns]
    print(line([heading for heading, _, _ in columns], widths))
    for record in records:
        print(line([content(record) for _, _, content in columns], widths), flush=True)


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The cells of a row, each in the width of its column: to the left where the width is negative."""
    padded = [cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return ("  " + "  ".join(padded)).rstrip()


def times(value: float | None) -> str:
    """How many times as fast, where there is something to compare with."""
    return "" if value is None else f"{value:.2f}x"


def place(result: dict[str, Any]) -> str:
    """Where and when it was measured."""
    machine = result["machine"]
    return (
        f"{machine['device']}, {machine['threads']} threads, torch {result['torch']}, triton {result['triton']}, "
        f"{result['date']}"
    )


def print_missing(result: dict[str, Any]) -> None:
    """Whatever is not in the tables, and why."""
    for entry in result["left_out"]:
        print(f"left out: {_what(entry)}: {entry['reason']}")
    for entry in result["failures"]:
        print(f"FAILED: {_what(entry)}: {entry['error']}")


def _what(entry: dict[str, Any]) -> str:
    return ", ".join(str(value) for name, value in entry.items() if name not in ("reason", "error"))
