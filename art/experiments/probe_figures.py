"""Charts of ``art probe``: accuracy and cost of each head, and the selection of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

from art.eval.report.style import (
    CORRECT,
    GRID,
    INK,
    LINE_COLORS,
    MUTED,
    figure_text,
    new_figure,
    percent,
    quiet_axes,
)


def accuracy_figure(result: Mapping[str, Any]) -> Figure:
    """Draw accuracy with both intervals, parameters, and operations of each head, and chance."""
    rows = result["heads"]
    figure = new_figure(10.5, 0.95 + 0.36 * len(rows))
    axes, parameters, flops = figure.subplots(1, 3, width_ratios=[2.4, 1, 1])
    for each in (axes, parameters, flops):
        quiet_axes(each, grid=False)
        each.grid(axis="x", color=GRID, linewidth=0.7)
        each.set_axisbelow(True)
        each.set_ylim(len(rows) - 0.5, -0.5)
    for place, row in enumerate(rows.values()):
        low, high = (100 * value for value in row["interval_over_clips"])
        axes.plot([low, high], [place, place], color=CORRECT, linewidth=6, alpha=0.28, solid_capstyle="butt")
        bounds = [100 * min(max(value, 0.0), 1.0) for value in row.get("interval_over_seeds") or row["top1"]]
        if row.get("interval_over_seeds"):
            axes.plot(bounds, [place, place], color=INK, linewidth=1, marker="|", markersize=8)
        axes.scatter([100 * value for value in row["top1"]], [place] * len(row["top1"]), s=16, color=CORRECT, zorder=3)
        axes.annotate(
            f"{100 * mean(row['top1']):.1f}",
            (max(high, *bounds), place), (5, 0), textcoords="offset points", va="center", fontsize=8,
            color=INK,
        )  # fmt: skip
    axes.axvline(100 * result["chance"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(len(rows)), [figure_text(name, 24) for name in rows])
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9)
    axes.set_title("top-1 accuracy, percent", loc="left", fontsize=9, color=INK)
    _bars(parameters, [row["parameters"] for row in rows.values()], "parameters")
    _bars(flops, [row.get("flops", 0) / 1e6 for row in rows.values()], "MFLOP per clip")
    return figure


def _bars(axes: Axes, values: Sequence[float], title: str) -> None:
    """Draw a bar for each positive value, on a logarithmic scale, and a dash for others."""
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_yticks([])
    positive = [value for value in values if value > 0]
    if not positive:
        axes.set_xticks([])
        return
    low, high = 10 ** np.floor(np.log10(min(positive)) - 0.2), max(positive)
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.35)
    ticks = 10.0 ** np.arange(np.log10(low), np.log10(high) + 0.01, max(1, round(np.log10(high / low) / 3)))
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    for place, value in enumerate(values):
        if value > 0:
            axes.barh(place, value - low, left=low, height=0.5, color=LINE_COLORS[0])
        text = "–" if value <= 0 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axes.annotate(
            text, (max(value, low), place), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )


def selection_figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the accuracy on the held-out clips by epoch for the candidates of each head. Returns figures by head."""
    values = [value for each in result["candidates"] for value in each["holdout_accuracy"]]
    figures = {}
    for name in dict.fromkeys(each["head"] for each in result["candidates"]):
        figure = new_figure(3.4, 2.3)
        axes = figure.add_subplot()
        quiet_axes(axes)
        members = [each for each in result["candidates"] if each["head"] == name]
        for i, lr in enumerate(dict.fromkeys(each["lr"] for each in members)):
            color = LINE_COLORS[i % len(LINE_COLORS)]
            curves = 100 * np.array([each["holdout_accuracy"] for each in members if each["lr"] == lr])
            epochs = np.arange(1, curves.shape[1] + 1)
            for curve in curves if len(curves) > 1 else []:
                axes.plot(epochs, curve, color=color, linewidth=0.7, alpha=0.4)
            middle = curves.mean(0)
            axes.plot(epochs, middle, color=color, linewidth=1.8, label=f"lr {lr:g}")
            selected = result["heads"][name]
            if selected["lr"] == lr:
                at = selected["epochs"]
                axes.plot(at, middle[at - 1], "o", ms=9, markerfacecolor="none", color=INK, markeredgewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylim(100 * min(values) - 3, 100 * max(values) + 5)
        axes.set_title(figure_text(name, 30), loc="left", fontsize=9, color=INK)
        axes.set_title(percent(result["heads"][name]["holdout_accuracy"]), loc="right", fontsize=9, color=MUTED)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=1.2, loc="lower right")
        figures[name] = figure
    return figures
