"""Where the cost of a model goes: a bar a stage, for each thing that is counted or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from art.eval.report.style import GRID, INK, LINE_COLOURS, new_figure, quiet_axes


def cost_figure(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Parameters, operations, activations and, where they were measured, times and peaks of memory.

    Args:
        stages: dicts as :func:`art.tools.profile.profile` returns them under "stages".

    Raises:
        ValueError: there is no stage.
    """
    if not stages:
        raise ValueError("stages is empty, expected at least one stage to draw")
    panels = _panels(stages)
    figure = new_figure(3.1 * len(panels), 0.8 + 0.32 * len(stages))
    rows = list(range(len(stages)))[::-1]
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        quiet_axes(axes, grid=False)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.barh(rows, values, height=0.62, color=LINE_COLOURS[0])
        for row, value in zip(rows, values, strict=True):
            axes.annotate(
                _short(value),
                (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
            )  # fmt: skip
        axes.set_xlim(0, 1.25 * max(values) or 1)
        axes.set_title(title, loc="left", fontsize=9, color=INK)
        axes.set_yticks(rows, [str(stage["stage"]) for stage in stages])
        axes.tick_params(axis="y", labelleft=axes is figure.axes[0], labelcolor=INK)
    return figure


def _panels(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    panels = [
        ("parameters, million", [stage["parameters"] / 1e6 for stage in stages]),
        ("forward, GMAC", [stage["forward_macs"] / 1e9 for stage in stages]),
        ("kept for backward, MiB", [stage["activation_bytes"] / 2**20 for stage in stages]),
    ]
    if all("ms" in stage for stage in stages):
        panels += [
            ("inference, ms", [stage["ms"].get("inference", 0.0) for stage in stages]),
            ("training step, ms", [stage["ms"]["forward"] + stage["ms"].get("backward", 0.0) for stage in stages]),
            ("peak of a step, MiB", [_step_peak(stage["peak_bytes"]) / 2**20 for stage in stages]),
        ]
    return panels


def _step_peak(peaks: Mapping[str, int]) -> int:
    return max(peaks.get(kind, 0) for kind in ("forward", "backward"))


def _short(value: float) -> str:
    if 0 < value < 1e-3:
        return "< 0.001"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
