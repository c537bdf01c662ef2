"""What the pictures of the benchmarks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from art.eval.report.style import GRID, INK, LINE_COLOURS, MUTED, png_bytes, quiet_axes

Records = Sequence[dict[str, Any]]

OTHERS = "#b9bec9"


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as PNG files on white.

    Args:
        figures: by the name of the file without its ending.
        folder: where they go; made where it is not there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        figure.patch.set(facecolor="white", alpha=1.0)
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(png_bytes(figure))
    return paths


def title(figure: Figure, heading: str, subtitle: str) -> None:
    """A heading and a line below it, and room for them above the panels."""
    inch = 1 / figure.get_figheight()
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)  # new_figure gives it one
    layout.set(rect=(0, 0, 1, 1 - 0.52 * inch))
    figure.text(0.01, 1 - 0.08 * inch, heading, fontsize=11, color=INK, fontweight="bold", va="top")
    figure.text(0.01, 1 - 0.31 * inch, subtitle, fontsize=8.5, color=MUTED, va="top")


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], *, ours: str) -> None:
    """A bar a name with its value beside it; those whose name begins with `ours` stand out."""
    quiet_axes(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    rows = list(range(len(names)))[::-1]
    colours = [LINE_COLOURS[0] if name.startswith(ours) else OTHERS for name in names]
    axes.barh(rows, values, height=0.62, color=colours)
    for row, value in zip(rows, values, strict=True):
        label = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        axes.annotate(label, (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
    axes.set_xlim(0, 1.18 * max(values))


def log_axes(axes: Axes, ticks: Sequence[int], *, between: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Both axes logarithmic: plain numbers at `ticks` below, and at `between` times powers of ten on the left."""
    quiet_axes(axes)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=between))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def distinct(records: Records, name: str) -> list[Any]:
    """The values of an entry, in the order in which they come."""
    return list(dict.fromkeys(record[name] for record in records))


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
