"""Training curves from a training history: one small chart for each quantity, or for a few that compare.

A history is a list of records as training writes them, one dict each: any numbers by name, where a name like
``"loss/spatial"`` belongs to the group ``loss``, and ``"epoch"`` and ``"step"`` say when. Records need not hold the
same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from art.eval.report.style import INK, LINE_COLOURS, MUTED, new_figure, quiet_axes

_TIMES = ("epoch", "step")
_MAX_LINES = 4  # in one chart
_COMPARABLE = 12.0  # largest ratio of magnitudes in one chart
_SMOOTH_FROM = 150  # points from which on a running mean is drawn over the raw values


@dataclass(frozen=True)
class Series:
    """One quantity over time: ``values[i]`` at ``times[i]``, times strictly increasing, values finite."""

    name: str
    unit: str
    times: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]

    @property
    def group(self) -> str:
        """The part of the name before the first slash; the whole name where there is none."""
        return self.name.split("/", 1)[0]

    @property
    def short(self) -> str:
        """The name within its group."""
        return self.name.split("/", 1)[-1]


def read_series(history: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Every quantity of the history, in order of first appearance.

    Text, booleans and values that are not finite are left out. A quantity recorded at most once an epoch runs over
    epochs, else over steps, else over records; of values recorded twice at one time (a resumed run) the later counts.
    """
    points: dict[str, list[tuple[int, Mapping[str, Any], float]]] = {}
    for index, record in enumerate(history):
        for name, value in record.items():
            if name in _TIMES or isinstance(value, bool) or not isinstance(value, Real):
                continue
            points.setdefault(name, [])
            if math.isfinite(float(value)):
                points[name].append((index, record, float(value)))
    return [_series(name, found) for name, found in points.items() if found]


def _series(name: str, points: list[tuple[int, Mapping[str, Any], float]]) -> Series:
    for unit in _TIMES:
        if all(unit in record for _, record, _ in points):
            latest = {float(record[unit]): value for _, record, value in points}
            # Several values in most epochs are values of steps, where steps are known.
            if unit == "step" or 2 * len(latest) > len(points) or "step" not in points[0][1]:
                break
    else:
        unit, latest = "record", {float(index): value for index, _, value in points}
    times = sorted(latest)
    return Series(name, unit, np.array(times), np.array([latest[time] for time in times]))


def charts(history: Sequence[Mapping[str, Any]]) -> list[list[Series]]:
    """Which quantities share a chart: those of a group of at most four of like magnitude over the same time."""
    groups: dict[str, list[Series]] = {}
    for series in read_series(history):
        groups.setdefault(series.group, []).append(series)
    result: list[list[Series]] = []
    for members in groups.values():
        sizes = [float(np.abs(series.values).max()) for series in members]
        alike = max(sizes) <= _COMPARABLE * min(sizes) and len({series.unit for series in members}) == 1
        result.extend([members] if len(members) <= _MAX_LINES and alike else [[series] for series in members])
    return result


def training_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """One small figure for each of :func:`charts`, by its title; empty for an empty history."""
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
        colour = LINE_COLOURS[i]
        label = f"{series.short} {_short(series.values[-1])}" if len(members) > 1 else None
        few = len(series.times) <= 12
        many = len(series.times) >= _SMOOTH_FROM and _noisy(series.values)
        if many:
            axes.plot(series.times, series.values, color=colour, linewidth=0.7, alpha=0.25)
        smooth = _running_mean(series.values) if many else series.values
        axes.plot(series.times, smooth, marker="o" if few else "none", ms=3, color=colour, linewidth=1.7, label=label)
    values = np.concatenate([series.values for series in members])
    if values.min() > 0 and values.max() / values.min() > 50:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel(members[0].unit)
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    if len(members) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=1.2, borderaxespad=0.1)
    else:
        last = members[0].values[-1]
        axes.set_title(_short(last), loc="right", fontsize=9, color=MUTED)


def _noisy(values: Float[np.ndarray, " n"]) -> bool:
    """Whether the values go up and down; a schedule, which does not, is drawn as it is."""
    change = np.sign(np.diff(values))
    return bool((change[1:] * change[:-1] < 0).mean() > 0.1)


def _running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mean over a window of a fiftieth of the points, narrower towards the ends so that it starts and ends on them."""
    count = len(values)
    half = np.minimum(np.minimum(np.arange(count), np.arange(count)[::-1]), max(1, count // 100))
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(count)
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)


def _short(value: float) -> str:
    return f"{value:.3g}"
