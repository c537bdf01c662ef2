"""Cells and rows of Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping


def head(*titles: str) -> list[str]:
    """The first two lines of a table whose first column has no title."""
    return [row("", *titles), row(*["---"] * (len(titles) + 1))]


def row(*cells: str) -> str:
    """One line of a table."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def percent(spread: Mapping[str, float | None] | None, *, signed: bool = False, extremes: bool = True) -> str:
    """Shares as :func:`.outcomes.spread` gives them, in per cent: mean ± deviation (least … greatest).

    Args:
        spread: None or no values: an empty cell.
        signed: write the sign of what is not below 0, too.
        extremes: write least and greatest.
    """
    if spread is None or spread["mean"] is None:
        return ""
    form = "+.2f" if signed else ".2f"
    mean, std, least, most = (100 * (spread[name] or 0.0) for name in ("mean", "std", "min", "max"))
    deviation = "" if spread["std"] is None else f" ± {std:.2f}"
    return f"{mean:{form}}{deviation}" + (f" ({least:{form}} … {most:{form}})" if extremes else "")


def seconds(value: float | None) -> str:
    """A time, or a dash."""
    return "-" if value is None else f"{value:.3g}"
