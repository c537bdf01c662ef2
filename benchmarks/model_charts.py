"""A picture of what `bench_model` measured: time, memory and operations of each model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from art.eval.report.style import INK, MUTED, new_figure
from benchmarks.charts import bars, distinct, save
from benchmarks.model_peers import ART_OURS

_PANELS = (
    ("ms", lambda record: record["median_ms"]),
    ("extra memory, MiB", lambda record: record["peak_extra_bytes"] / 2**20),
    ("GMAC", lambda record: record["macs"] / 1e9),
)
_PASSES = {"forward": "forward", "both": "training step"}


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw one picture a model and dtype: a row a pass; time, memory and operations side by side.

    Args:
        result: of `model_measure.run`.
        folder: where the PNG files go; made where it is not there.

    Returns:
        The files.
    """
    figures = {}
    for model in distinct(result["records"], "model"):
        for dtype in distinct(result["records"], "dtype"):
            records = [r for r in result["records"] if (r["model"], r["dtype"]) == (model, dtype)]
            if records:
                subtitle = f"{records[0]['described']}, {dtype}, {result['machine']['device']}"
                figures[f"model-{model}-{dtype}"] = _figure(records, subtitle)
    return save(figures, folder)


def _figure(records: list[dict[str, Any]], subtitle: str) -> Any:
    passes = distinct(records, "pass")
    figure = new_figure(11.0, 0.5 + 1.7 * len(passes))
    panels = figure.subplots(len(passes), len(_PANELS), squeeze=False)
    for row, pass_name in zip(panels, passes, strict=True):
        own = [record for record in records if record["pass"] == pass_name]
        for index, (axes, (heading, value)) in enumerate(zip(row, _PANELS, strict=True)):
            bars(axes, [record["provider"] for record in own], [value(record) for record in own], ours=ART_OURS)
            axes.tick_params(axis="y", labelleft=index == 0)
            axes.set_title(f"{_PASSES[pass_name]}: {heading}", loc="left", fontsize=9, color=INK)
    figure.suptitle(subtitle, x=0.01, ha="left", fontsize=10, color=MUTED)
    return figure
