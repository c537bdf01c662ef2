"""Bar charts and line charts of results, written as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from art.eval.report.style import GRID, INK, LINE_COLORS, MUTED, new_figure, png_bytes, quiet_axes

Records = Sequence[dict[str, Any]]

OTHERS_COLOR = "#b9bec9"


@dataclass(frozen=True)
class BarPanel:
    """Horizontal bars, the first on top.

    Attributes:
        title: above the bars.
        names: label of each bar.
        values: length of each bar.
        ours: bars whose name starts with this are highlighted.
        ranges: 20th and 80th percentile of each value, drawn as a line; None for no lines.
        notes: text appended to the value label of each bar; None for none.
        labeled: whether the names are drawn.
    """

    title: str
    names: Sequence[str]
    values: Sequence[float]
    ours: str
    ranges: Sequence[tuple[float, float]] | None = None
    notes: Sequence[str] | None = None
    labeled: bool = True


@dataclass(frozen=True)
class Series:
    """Points of a line chart; `style` are keyword arguments of `Axes.plot`, `notes` labels next to the points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] | None = None


@dataclass(frozen=True)
class LinePanel:
    """Series in one coordinate system; `configure` sets scales and labels of the axes."""

    title: str
    series: Sequence[Series]
    configure: Callable[[Axes], None]


def save_figures(figures: Mapping[str, Figure], directory: Path) -> list[Path]:
    """Write figures as PNG files with a white background.

    Args:
        figures: by file name without suffix.
        directory: target directory; created if missing.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        figure.patch.set(facecolor="white", alpha=1.0)
        paths.append(directory / f"{name}.png")
        paths[-1].write_bytes(png_bytes(figure))
    return paths


def bar_figure(rows: Sequence[Sequence[BarPanel]], heading: str, subtitle: str) -> Figure:
    """Draw a grid of bar panels; all rows have the same number of panels."""
    heights = [max(len(panel.names) for panel in row) + 1.6 for row in rows]
    figure = new_figure(3.2 + 3.4 * len(rows[0]), 0.9 + 0.3 * sum(heights))
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=heights)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            _draw_bars(axes, panel)
    _add_title(figure, heading, subtitle)
    return figure


def line_figure(rows: Sequence[Sequence[LinePanel]], heading: str, subtitle: str, *, height: float = 3.6) -> Figure:
    """Draw a grid of line panels with one legend below for all series; `height` is that of a row, in inches."""
    figure = new_figure(1.6 + 3.4 * len(rows[0]), 1.0 + height * len(rows))
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            quiet_axes(axes)
            axes.set_prop_cycle(color=LINE_COLORS)
            for series in panel.series:
                (line,) = axes.plot(
                    series.x,
                    series.y,
                    **{"lw": 1.4, "marker": "o", "markersize": 4, **series.style},
                    label=series.label,
                )
                handles.setdefault(series.label, line)
                for x, y, note in zip(series.x, series.y, series.notes or (), strict=bool(series.notes)):
                    axes.annotate(
                        note, (x, y), (3, -4), textcoords="offset points", ha="left", va="top", fontsize=7.5,
                        color=line.get_color(),
                    )  # fmt: skip
            panel.configure(axes)
            axes.set_title(panel.title, loc="left", fontsize=9, color=INK)
    columns = min(len(handles), int(figure.get_figwidth() // 1.9))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5,
        labelcolor=INK,
    )  # fmt: skip
    _add_title(figure, heading, subtitle)
    return figure


def log_axes(axes: Axes, x_ticks: Sequence[float], *, y_ticks: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Make both axes logarithmic, with ticks at `x_ticks` and at `y_ticks` times powers of ten."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=y_ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def distinct(records: Records, name: str) -> list[Any]:
    """Return the distinct values of an entry, in order of appearance."""
    return list(dict.fromkeys(record[name] for record in records))


def format_number(value: float) -> str:
    """Format with three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _draw_bars(axes: Axes, panel: BarPanel) -> None:
    quiet_axes(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    rows = list(range(len(panel.names)))[::-1]
    colors = [LINE_COLORS[0] if name.startswith(panel.ours) else OTHERS_COLOR for name in panel.names]
    axes.barh(rows, panel.values, height=0.62, color=colors)
    ranges = panel.ranges or [(value, value) for value in panel.values]
    notes = panel.notes or [""] * len(panel.names)
    for row, value, (low, high), note in zip(rows, panel.values, ranges, notes, strict=True):
        axes.plot([low, high], [row, row], color=INK, linewidth=0.9)
        axes.annotate(
            f"{format_number(value)}{note}", (max(value, high), row), (4, 0), textcoords="offset points", va="center",
            fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_yticks(rows, panel.names if panel.labeled else [""] * len(rows))
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
    axes.set_xlim(0, (1.35 if panel.notes else 1.2) * max(high for _, high in ranges))
    axes.set_title(panel.title, loc="left", fontsize=9, color=INK)


def _add_title(figure: Figure, heading: str, subtitle: str) -> None:
    """Add a heading and a subtitle, and reserve space above the panels."""
    inch = 1 / figure.get_figheight()
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)  # set by new_figure
    layout.set(rect=(0, 0, 1, 1 - 0.52 * inch))
    figure.text(0.01, 1 - 0.08 * inch, heading, fontsize=11, color=INK, fontweight="bold", va="top")
    figure.text(0.01, 1 - 0.31 * inch, subtitle, fontsize=8.5, color=MUTED, va="top")
