"""Pictures of what `bench_linking` measured: the time of a problem over its size, and of linking from responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from art.eval.report.style import INK, LINE_COLOURS, MUTED, new_figure
from benchmarks.assignment_solvers import LAPCPP, LAPX, OURS, SCIPY, TO_HOST, TORCH_LINEAR_ASSIGNMENT
from benchmarks.charts import Records, bars, distinct, log_axes, number, save, title

_STYLES: dict[str, dict[str, Any]] = {
    SCIPY: {"color": MUTED, "marker": "s"},
    LAPX: {"color": LINE_COLOURS[3], "marker": "^"},
    LAPCPP: {"color": LINE_COLOURS[1], "marker": "v"},
    TORCH_LINEAR_ASSIGNMENT: {"color": LINE_COLOURS[2], "marker": "D"},
    OURS: {"color": LINE_COLOURS[0], "marker": "o"},
}


_KINDS = {"uniform": "uniform costs", "normal": "normal costs", "responses": "costs from responses"}


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw for each dtype the assignment problems, a panel a kind of costs, and the linking, a panel a shape.

    Args:
        result: of `linking_measure.run`.
        folder: where the PNG files go; made where it is not there.

    Returns:
        The files.
    """
    figures = {}
    for dtype in distinct(result["records"], "dtype"):
        place = f"{dtype}, {result['machine']['device']}, {result['machine']['threads']} threads"
        for operation, name, figure in (
            ("linear_assignment", "assignment", assignment_figure),
            ("link_tracklets", "linking", linking_figure),
        ):
            records = [r for r in result["records"] if (r["dtype"], r["operation"]) == (dtype, operation)]
            if records:
                figures[f"{name}-{dtype}"] = figure(records, place)
    return save(figures, folder)


def assignment_figure(records: Records, place: str) -> Figure:
    """Time a problem over its rows, and below each point of ours how many times as fast as the best other it is.

    Args:
        records: of one dtype.
        place: where it was measured.
    """
    kinds = distinct(records, "kind")
    figure = new_figure(1.0 + 3.4 * len(kinds), 4.1)
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _lines(axes, [record for record in records if record["kind"] == kind])
        axes.set_title(_KINDS[kind], loc="left", fontsize=9, color=INK)
    panels[0].set_ylabel("microseconds a problem")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    title(figure, "Exact assignment of K rows to K columns, many problems a call", place)
    return figure


def _lines(axes: Axes, records: Records) -> None:
    sizes = sorted(distinct(records, "size"))
    log_axes(axes, sizes, between=(1.0,))
    for provider in distinct(records, "provider"):
        own = sorted((record for record in records if record["provider"] == provider), key=lambda r: r["size"])
        width = 2.0 if provider.startswith(OURS) else 1.2
        dashes = (0, (4, 2)) if provider.endswith(TO_HOST) else "solid"
        axes.plot(
            [record["size"] for record in own], [record["microseconds"] for record in own], lw=width, markersize=4,
            linestyle=dashes, label=provider, **_STYLES[provider.removesuffix(TO_HOST)],
        )  # fmt: skip
        if provider == OURS:
            _label_ratios(axes, own)
    axes.set_xlim(sizes[0] / 1.4, sizes[-1] * 2.2)
    axes.margins(y=0.1)
    axes.set_xlabel("rows, K")


def _label_ratios(axes: Axes, records: Records) -> None:
    for record in records:
        if record["speedup_over_best_other"] is not None:
            axes.annotate(
                f"{number(record['speedup_over_best_other'])}×", (record["size"], record["microseconds"]), (3, -4),
                textcoords="offset points", ha="left", va="top", fontsize=7.5, color=LINE_COLOURS[0],
            )  # fmt: skip


def linking_figure(records: Records, place: str) -> Figure:
    """Time of each provider, a panel a shape.

    Args:
        records: of one dtype.
        place: where it was measured.
    """
    shapes = distinct(records, "shape")
    rows = {shape: [record for record in records if record["shape"] == shape] for shape in shapes}
    heights = [len(own) + 1.4 for own in rows.values()]
    figure = new_figure(7.5, 0.7 + 0.3 * sum(heights))
    panels = figure.subplots(len(shapes), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (shape, own) in zip(panels, rows.items(), strict=True):
        bars(axes, [record["provider"] for record in own], [record["median_ms"] for record in own], ours=OURS)
        sizes = "{} videos, {} frames, {} responses of {}".format(*own[0]["sizes"])
        axes.set_title(f"{shape}, {sizes}: ms", loc="left", fontsize=9, color=INK)
    title(figure, "Linking from responses: cosines, assignment, order through the video", place)
    return figure
