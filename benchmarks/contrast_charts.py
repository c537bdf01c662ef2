"""A picture of what `bench_contrast` measured: time and memory of each provider, forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from art.eval.report.style import INK, MUTED, new_figure
from benchmarks.charts import bars, distinct, save
from benchmarks.contrast_providers import OURS


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a picture of the contrasts and one of pooling, for each dtype: a row a shape, times on the left, memory on
    the right.

    Args:
        result: of `contrast_measure.run`.
        folder: where the PNG files go; made where it is not there.

    Returns:
        The files.
    """
    figures = {}
    for dtype in distinct(result["records"], "dtype"):
        records = [record for record in result["records"] if (record["dtype"], record["pass"]) == (dtype, "both")]
        subtitle = f"{dtype}, forward and backward, {result['machine']['device']}"
        for name, pools in (("contrast", False), ("pooling", True)):
            own = [record for record in records if (record["operation"] == "pool_tracklets") == pools]
            if own:
                figures[f"{name}-{dtype}"] = _figure(own, f"{name.capitalize()}: {subtitle}")
    return save(figures, folder)


def _figure(records: list[dict[str, Any]], title: str) -> Any:
    shapes = distinct(records, "shape")
    rows = {shape: [record for record in records if record["shape"] == shape] for shape in shapes}
    heights = [len(own) + 1.6 for own in rows.values()]
    figure = new_figure(9.0, 0.7 + 0.3 * sum(heights))
    panels = figure.subplots(len(shapes), 2, squeeze=False, height_ratios=heights)
    for (left, right), (shape, own) in zip(panels, rows.items(), strict=True):
        sizes = " × ".join(str(size) for size in own[0]["sizes"])
        names = [record["provider"] for record in own]
        bars(left, names, [record["median_ms"] for record in own], ours=OURS)
        left.set_title(f"{shape}, {own[0]['operation']} of {sizes}: ms", loc="left", fontsize=9, color=INK)
        bars(right, names, [record["peak_extra_bytes"] / 2**20 for record in own], ours=OURS)
        right.tick_params(axis="y", labelleft=False)
        right.set_title("extra memory, MiB", loc="left", fontsize=9, color=INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=MUTED)
    return figure
