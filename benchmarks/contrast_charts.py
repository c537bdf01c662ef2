"""A picture of what `bench_contrast` measured: time and memory of each provider, forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from art.visualize.style import GRID, INK, LINE_COLOURS, MUTED, new_figure, png_bytes, quiet_axes
from benchmarks.contrast_providers import OURS

_OTHERS = "#b9bec9"


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw one picture a dtype: a row a shape, times on the left, memory on the right.

    Args:
        result: of `contrast_measure.run`.
        folder: where the PNG files go; made where it is not there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dtype in dict.fromkeys(record["dtype"] for record in result["records"]):
        records = [record for record in result["records"] if (record["dtype"], record["pass"]) == (dtype, "both")]
        if not records:
            continue
        figure = _figure(records, f"{dtype}, forward and backward, {result['machine']['device']}")
        figure.patch.set(facecolor="white", alpha=1.0)
        paths.append(folder / f"contrast-{dtype}.png")
        paths[-1].write_bytes(png_bytes(figure))
    return paths


def _figure(records: list[dict[str, Any]], subtitle: str) -> Any:
    shapes = list(dict.fromkeys(record["shape"] for record in records))
    rows = {shape: [record for record in records if record["shape"] == shape] for shape in shapes}
    heights = [len(own) + 1.6 for own in rows.values()]
    figure = new_figure(9.0, 0.7 + 0.3 * sum(heights))
    panels = figure.subplots(len(shapes), 2, squeeze=False, height_ratios=heights)
    for (left, right), (shape, own) in zip(panels, rows.items(), strict=True):
        sizes = " × ".join(str(size) for size in own[0]["sizes"])
        _bars(left, own, [record["median_ms"] for record in own], names=True)
        left.set_title(f"{shape}, {own[0]['operation']} of {sizes}: ms", loc="left", fontsize=9, color=INK)
        _bars(right, own, [record["peak_extra_bytes"] / 2**20 for record in own], names=False)
        right.set_title("extra memory, MiB", loc="left", fontsize=9, color=INK)
    figure.suptitle(f"Contrast: {subtitle}", x=0.01, ha="left", fontsize=10, color=MUTED)
    return figure


def _bars(axes: Axes, records: list[dict[str, Any]], values: list[float], *, names: bool) -> None:
    quiet_axes(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    rows = list(range(len(records)))[::-1]
    colours = [LINE_COLOURS[0] if record["provider"].startswith(OURS) else _OTHERS for record in records]
    axes.barh(rows, values, height=0.62, color=colours)
    for row, value in zip(rows, values, strict=True):
        label = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        axes.annotate(label, (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.set_yticks(rows, [record["provider"] for record in records] if names else [""] * len(rows))
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
    axes.set_xlim(0, 1.18 * max(values))
