"""Ablations: a panel for each table, a line for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from art.eval.report.style import GRID, INK, LINE_COLOURS, MUTED, new_figure, quiet_axes

_LINE = 0.3  # inches
_AROUND = 0.75


def ablation_figure(
    tables: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], *, value: str = "top1"
) -> Figure:
    """Each run a dot, in per cent, the mean of each row a bar with its number; all panels have one scale.

    Args:
        tables: dicts with "title" and "rows", each row with "title" and "run", the name of its runs.
        runs: dicts with "run", "seed" and ``value`` (a share, 0..1).
        value: what is compared.

    Raises:
        ValueError: there is no table, or a row without a run.
    """
    if not tables:
        raise ValueError("tables is empty, expected at least one ablation to draw")
    shares: dict[str, dict[Any, float]] = {}
    for run in runs:
        shares.setdefault(run["run"], {})[run["seed"]] = 100 * float(run[value])
    absent = [row["run"] for table in tables for row in table["rows"] if row["run"] not in shares]
    if absent:
        raise ValueError(f"runs lacks {absent[0]!r}, which a row of tables is; it has {', '.join(shares) or 'nothing'}")
    seeds = {seed: place for place, seed in enumerate(dict.fromkeys(run["seed"] for run in runs))}
    heights = [_LINE * len(table["rows"]) + _AROUND for table in tables]
    figure = new_figure(7.5, sum(heights))
    panels = figure.subplots(len(tables), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        _panel(axes, table, shares, seeds)
    panels[-1].set_xlabel(f"{value}, per cent" + (f"; a dot is one of {len(seeds)} seeds" if len(seeds) > 1 else ""))
    return figure


def _panel(
    axes: Any, table: Mapping[str, Any], shares: Mapping[str, Mapping[Any, float]], seeds: Mapping[Any, int]
) -> None:
    quiet_axes(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    rows = table["rows"]
    for y, row in enumerate(rows):
        of_seed = shares[row["run"]]
        values = np.array(list(of_seed.values()))
        colours = [LINE_COLOURS[seeds[seed] % len(LINE_COLOURS)] for seed in of_seed]
        axes.scatter(values, np.full(len(values), y), s=20, color=colours, zorder=2)
        axes.vlines(values.mean(), y - 0.3, y + 0.3, color=INK, linewidth=2, zorder=3)
        axes.annotate(
            f"{values.mean():.1f}", (values.max(), y), xytext=(8, 0), textcoords="offset points", va="center",
            fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_title(table["title"], loc="left", fontsize=9, color=MUTED)
