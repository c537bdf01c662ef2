"""Pictures of what `bench_scaling` says: what a step is spent on over the number of ranks, and one batch divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from art.eval.report.style import INK, LINE_COLOURS, MUTED, new_figure, quiet_axes
from benchmarks.charts import OTHERS, distinct, log_axes, save, title
from benchmarks.scaling_table import NAMES, PARTS

#: Computing in grey, below; what scaling adds in colours.
_COLOURS = dict(zip(PARTS, ("#d3d7de", *LINE_COLOURS), strict=True))
_MACHINES = {"h100": "8 H100, NVLink, 8 × 400 Gb/s a machine", "a40": "4 A40, PCIe, 100 Gb/s a machine"}


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a panel a recipe and machine, DDP with a fixed number of clips a rank.

    Args:
        result: of `bench_scaling.run`.
        folder: where the PNG files go; made where it is not there.

    Returns:
        The files: "scaling", and "scaling-divided" with a fixed batch.
    """
    rows = [row for row in result["growing"] if row["strategy"] == "ddp" and row["machine"] in _MACHINES]
    recipes, machines = distinct(rows, "recipe"), distinct(rows, "machine")
    figure = new_figure(9.6, 0.9 + 2.7 * len(recipes))
    panels = figure.subplots(len(recipes), len(machines), squeeze=False)
    for recipe, line in zip(recipes, panels, strict=True):
        for machine, axes in zip(machines, line, strict=True):
            own = [row for row in rows if (row["recipe"], row["machine"]) == (recipe, machine)]
            _panel(axes, own)
            axes.set_title(f"{NAMES[recipe]}: {_MACHINES[machine]}", loc="left", fontsize=9, color=INK)
    clips = distinct(rows, "clips")[0]
    title(
        figure,
        f"A training step of ART on 1 to {max(row['ranks'] for row in rows):,} GPUs, on paper",
        f"{clips} clips a GPU, 16 frames, DDP. Share of the peak rate while computing: {_shares(result, machines)}",
    )
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        loc="outside lower center",
        ncols=len(PARTS),
    )
    return save({"scaling": figure, "scaling-divided": _divided(result)}, folder)


def _divided(result: dict[str, Any]) -> Figure:
    """One batch for all ranks: how many times as fast as one of them."""
    rows = [row for row in result["divided"] if row["machine"] in _MACHINES]
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    ranks = distinct(rows, "ranks")
    log_axes(axes, ranks, between=ranks)
    axes.plot(ranks, ranks, color=OTHERS, linewidth=1, linestyle="--", label="as many times as there are GPUs")
    lines = [(recipe, machine) for recipe in distinct(rows, "recipe") for machine in distinct(rows, "machine")]
    for (recipe, machine), colour in zip(lines, LINE_COLOURS, strict=False):
        own = [row["speedup"] for row in rows if (row["recipe"], row["machine"]) == (recipe, machine)]
        axes.plot(ranks, own, color=colour, marker="o", markersize=3.5, label=f"{NAMES[recipe]} on {NAMES[machine]}")
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    axes.set_xlabel("GPUs, of which each has its share of 24 clips", fontsize=8, color=MUTED)
    title(figure, "The paper's batch of 24 clips, divided", "times as fast as one GPU, on paper")
    return figure


def _shares(result: dict[str, Any], machines: list[str]) -> str:
    """Of each machine in words, once where they are alike."""
    found = [
        f"{NAMES[row['recipe']]} on {NAMES[row['machine']]} {100 * row['share']:.0f} % ({row['source']})"
        for row in result["shares"]
        if row["machine"] in machines
    ]
    alike = {(row["share"], row["source"]) for row in result["shares"] if row["machine"] in machines}
    if len(alike) > 1:
        return ", ".join(found)
    ((share, source),) = alike
    return f"{100 * share:.0f} %, {source}"


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    quiet_axes(axes)
    ranks = [row["ranks"] for row in rows]
    bottom = [0.0] * len(rows)
    for part, colour in _COLOURS.items():
        top = [low + 1e3 * row[part] for low, row in zip(bottom, rows, strict=True)]
        axes.fill_between(ranks, bottom, top, color=colour, linewidth=0, label=PARTS[part])
        bottom = top
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks[::2], [f"{n:,}" for n in ranks[::2]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlim=(ranks[0], ranks[-1]), ylim=(0, 1.05 * max(bottom)))
    axes.set_xlabel("GPUs", fontsize=8, color=MUTED)
    axes.set_ylabel("ms a step", fontsize=8, color=MUTED)
