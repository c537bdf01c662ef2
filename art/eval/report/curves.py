"""Charts of numbers: training curves, the cost of a model per stage, and comparisons of runs.

A training history is a list of records, one dict per log line: numbers by name, where ``"loss/spatial"`` belongs to the
group ``loss``, and ``"epoch"`` and ``"step"`` are the time. Records need not contain the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from art.eval.report.style import GRID, INK, LINE_COLORS, MUTED, figure_text, new_figure, quiet_axes

_TIMES = ("epoch", "step")
_MAX_LINES = 4  # per chart
_MAX_RATIO = 12.0  # largest ratio of magnitudes within a chart
_SMOOTH_FROM = 150  # number of points from which a running mean is drawn over the raw values


@dataclass(frozen=True)
class Series:
    """One quantity over time: ``values[i]`` at ``times[i]``, with finite values and strictly increasing times."""

    name: str
    unit: str
    times: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]

    @property
    def group(self) -> str:
        """The part of the name before the first slash; the entire name if there is none."""
        return self.name.split("/", 1)[0]

    @property
    def short_name(self) -> str:
        """The name within its group."""
        return self.name.split("/", 1)[-1]


def read_series(history: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Collect every quantity of a history, in order of first appearance.

    Text, booleans, and values that are not finite are skipped. The time is the epoch for a quantity recorded at most
    once per epoch, otherwise the step, or the index of the record if there is none. If a time occurs twice, as in a
    resumed run, the later value is used.
    """
    points: dict[str, list[tuple[int, Mapping[str, Any], float]]] = {}
    for index, record in enumerate(history):
        for name, value in record.items():
            if name in _TIMES or isinstance(value, bool) or not isinstance(value, Real):
                continue
            points.setdefault(name, [])
            if math.isfinite(float(value)):
                points[name].append((index, record, float(value)))
    return [_to_series(name, found) for name, found in points.items() if found]


def _to_series(name: str, points: list[tuple[int, Mapping[str, Any], float]]) -> Series:
    for unit in _TIMES:
        if all(unit in record for _, record, _ in points):
            latest = {float(record[unit]): value for _, record, value in points}
            # If most epochs have several values, these belong to steps, provided that steps are known.
            if unit == "step" or 2 * len(latest) > len(points) or "step" not in points[0][1]:
                break
    else:
        unit, latest = "record", {float(index): value for index, _, value in points}
    times = sorted(latest)
    return Series(name, unit, np.array(times), np.array([latest[time] for time in times]))


def charts(history: Sequence[Mapping[str, Any]]) -> list[list[Series]]:
    """Group quantities into charts: a group shares one if it has at most four, of similar magnitude and equal unit."""
    groups: dict[str, list[Series]] = {}
    for series in read_series(history):
        groups.setdefault(series.group, []).append(series)
    result: list[list[Series]] = []
    for members in groups.values():
        sizes = [float(np.abs(series.values).max()) for series in members]
        similar = max(sizes) <= _MAX_RATIO * min(sizes) and len({series.unit for series in members}) == 1
        result.extend([members] if len(members) <= _MAX_LINES and similar else [[series] for series in members])
    return result


def training_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw a small figure for each of :func:`charts`. Returns them by title; empty for an empty history."""
    figures = {}
    for members in charts(history):
        figure = new_figure(3.4, 2.05)
        title = members[0].name if len(members) == 1 else members[0].group
        _draw_chart(figure.add_subplot(), members, title)
        figures[title] = figure
    return figures


def _draw_chart(axes: Axes, members: list[Series], title: str) -> None:
    quiet_axes(axes)
    for i, series in enumerate(members):
        color = LINE_COLORS[i]
        label = f"{figure_text(series.short_name)} {series.values[-1]:.3g}" if len(members) > 1 else None
        marker = "o" if len(series.times) <= 12 else "none"
        values = series.values
        if len(values) >= _SMOOTH_FROM and _is_noisy(values):
            axes.plot(series.times, values, color=color, linewidth=0.7, alpha=0.25)
            values = _running_mean(values)
        axes.plot(series.times, values, marker=marker, ms=3, color=color, linewidth=1.7, label=label)
    values = np.concatenate([series.values for series in members])
    if values.min() > 0 and values.max() / values.min() > 50:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel(members[0].unit)
    axes.set_title(figure_text(title), loc="left", fontsize=9, color=INK)
    if len(members) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=1.2, borderaxespad=0.1)
    else:
        axes.set_title(f"{members[0].values[-1]:.3g}", loc="right", fontsize=9, color=MUTED)


def _is_noisy(values: Float[np.ndarray, " n"]) -> bool:
    """Return whether the values often change direction. A schedule does not, and is drawn without smoothing."""
    change = np.sign(np.diff(values))
    return bool((change[1:] * change[:-1] < 0).mean() > 0.1)


def _running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Average over a window of 1/50 of the points, narrower near the ends so that both end points are kept."""
    count = len(values)
    half = np.minimum(np.minimum(np.arange(count), np.arange(count)[::-1]), max(1, count // 100))
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(count)
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)


def cost_figure(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw parameters, operations, and activations per stage and, if measured, times and peak memory.

    Args:
        stages: dicts under "stages" in the output of :func:`art.tools.profile.profile`.

    Raises:
        ValueError: If there is no stage.
    """
    if not stages:
        raise ValueError("stages is empty, expected at least one stage to draw")
    panels = _cost_panels(stages)
    figure = new_figure(3.1 * len(panels), 0.8 + 0.32 * len(stages))
    rows = list(range(len(stages)))[::-1]
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        quiet_axes(axes, grid=False)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.barh(rows, values, height=0.62, color=LINE_COLORS[0])
        for row, value in zip(rows, values, strict=True):
            axes.annotate(
                _format_cost(value),
                (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
            )  # fmt: skip
        axes.set_xlim(0, 1.25 * max(values) or 1)
        axes.set_title(title, loc="left", fontsize=9, color=INK)
        axes.set_yticks(rows, [str(stage["stage"]) for stage in stages])
        axes.tick_params(axis="y", labelleft=axes is figure.axes[0], labelcolor=INK)
    return figure


def _cost_panels(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    def step_peak(peaks: Mapping[str, int]) -> int:
        return max(peaks.get(kind, 0) for kind in ("forward", "backward"))

    panels = [
        ("parameters, million", [stage["parameters"] / 1e6 for stage in stages]),
        ("forward, GMAC", [stage["forward_macs"] / 1e9 for stage in stages]),
        ("saved for backward, MiB", [stage["activation_bytes"] / 2**20 for stage in stages]),
    ]
    if all("ms" in stage for stage in stages):
        panels += [
            ("inference, ms", [stage["ms"].get("inference", 0.0) for stage in stages]),
            ("training step, ms", [stage["ms"]["forward"] + stage["ms"].get("backward", 0.0) for stage in stages]),
            ("peak memory of a step, MiB", [step_peak(stage["peak_bytes"]) / 2**20 for stage in stages]),
        ]
    return panels


def _format_cost(value: float) -> str:
    if 0 < value < 1e-3:
        return "< 0.001"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def comparison_figure(
    runs: Sequence[Mapping[str, Any]], *, key: str = "kind", value: str = "top1", base: str = "backbone"
) -> Figure:
    """Draw each run as a dot, in percent, the mean of each group as a bar, and lines between runs with the same seed.

    Args:
        runs: dicts with ``key``, ``"seed"`` and ``value`` (a fraction, 0 to 1).
        key: entry that groups the runs.
        value: entry to compare.
        base: the group drawn first; the others follow in the order of ``runs``.

    Raises:
        ValueError: If there is no run, a run lacks an entry, or two runs have the same group and seed.
    """
    groups: dict[str, dict[Any, float]] = {}
    for number, run in enumerate(runs):
        missing = [name for name in (key, "seed", value) if name not in run]
        if missing:
            raise ValueError(f"runs[{number}] lacks {', '.join(missing)}; it has {', '.join(map(str, run))}")
        by_seed = groups.setdefault(str(run[key]), {})
        if run["seed"] in by_seed:
            raise ValueError(f"runs contains {key} {run[key]!r} with seed {run['seed']!r} twice, expected once")
        by_seed[run["seed"]] = 100 * float(run[value])
    if not groups:
        raise ValueError("runs is empty, expected at least one run to draw")
    names = sorted(groups, key=lambda name: name != base)
    figure = new_figure(1.2 + 1.3 * len(names), 3.4)
    axes = figure.add_subplot()
    quiet_axes(axes)
    for x, (left, right) in enumerate(pairwise(names)):
        for seed in groups[left].keys() & groups[right].keys():
            pair = [groups[left][seed], groups[right][seed]]
            axes.plot([x, x + 1], pair, color=MUTED, linewidth=0.8, alpha=0.7, zorder=1)
    for x, name in enumerate(names):
        values = np.array(list(groups[name].values()))
        axes.scatter(np.full(len(values), x), values, s=22, color=LINE_COLORS[x % len(LINE_COLORS)], zorder=2)
        axes.hlines(values.mean(), x - 0.22, x + 0.22, color=INK, linewidth=2, zorder=3)
        axes.annotate(f"{values.mean():.1f}", (x + 0.25, values.mean()), va="center", fontsize=9, color=INK)
    axes.set_xticks(range(len(names)), [f"{figure_text(name, 24)}\n{len(groups[name])} seeds" for name in names])
    axes.set_xlim(-0.5, len(names) - 0.25)
    axes.set_xlabel(key)
    axes.set_ylabel(f"{value}, percent")
    return figure
