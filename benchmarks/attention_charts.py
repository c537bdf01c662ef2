"""Pictures of what `bench_region_attention` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from art.eval.report.style import GRID, INK, LINE_COLOURS, MUTED, new_figure, quiet_axes
from benchmarks.attention_providers import BASELINE, OURS, PROVIDERS
from benchmarks.charts import OTHERS, Records, distinct, log_axes, number, save, title

_COLOURS = {
    OURS: LINE_COLOURS[0],
    BASELINE: LINE_COLOURS[1],
    "sdpa": LINE_COLOURS[4],
    "sdpa compiled": LINE_COLOURS[2],
    "reference": MUTED,
}


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what there is: times of each shape for the pass "both", shares of copy bandwidth, the crossing of routes.

    Args:
        result: of `bench_region_attention.run`.
        folder: where the PNG files go; made where it is not there.

    Returns:
        The files.
    """
    records, place = result["records"], result["machine"]["device"]
    figures = {}
    for shape in dict.fromkeys(record["shape"] for record in records):
        of_shape = [record for record in records if record["shape"] == shape and record["pass"] == "both"]
        if of_shape:
            figures[f"region_attention-{shape}"] = times_figure(of_shape, place)
    if records:
        figures["region_attention-copy-bandwidth"] = shares_figure(records, place)
    if result["crossing"] is not None and result["crossing"]["points"]:
        figures["region_attention-crossing"] = crossing_figure(result["crossing"], place)
    return save(figures, folder)


def times_figure(records: Records, place: str) -> Figure:
    """Time of each provider for one shape and pass, a panel a dtype, and how many times as fast as the baseline it is.

    Args:
        records: of one shape and one pass.
        place: the name of the device.
    """
    dtypes = distinct(records, "dtype")
    figure = new_figure(1.6 + 4.2 * len(dtypes), 2.9)
    panels = figure.subplots(1, len(dtypes), squeeze=False)[0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        _bars(axes, sorted((r for r in records if r["dtype"] == dtype), key=lambda record: -record["median_ms"]))
        axes.set_title(dtype, loc="left", fontsize=9, color=INK)
    first = records[0]
    normalised = ", layer-normalised" if first["norm_regions"] else ""
    title(
        figure,
        f"{first['shape']}: {_PASS_NAMES[first['pass']]}",
        f"{first['frames']} frames, {first['queries']} queries, {first['regions']} × {first['region_dim']} regions"
        f"{normalised}, {first['num_heads']} heads, {place}",
    )
    return figure


def _bars(axes: Axes, records: Records) -> None:
    """One bar a provider, slowest on top; the line through each goes from the 20th to the 80th percentile."""
    quiet_axes(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    rows = list(range(len(records)))[::-1]
    times = [record["median_ms"] for record in records]
    colours = [LINE_COLOURS[0] if record["provider"] == OURS else OTHERS for record in records]
    axes.barh(rows, times, height=0.62, color=colours)
    for row, record in zip(rows, records, strict=True):
        axes.plot([record["p20_ms"], record["p80_ms"]], [row, row], color=INK, linewidth=0.9)
        label = f"{number(record['median_ms'])} ms"
        if record["provider"] != BASELINE and record["speedup_over_mha"] is not None:
            label += f"   {number(record['speedup_over_mha'])}×"
        at = max(record["median_ms"], record["p80_ms"])
        axes.annotate(label, (at, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(rows, [record["provider"] for record in records])
    axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    axes.set_xlim(0, 1.32 * max(record["p80_ms"] for record in records))
    axes.set_xlabel(f"median time, ms;  ×: times as fast as {BASELINE}")


def shares_figure(records: Records, place: str) -> Figure:
    """Bytes that must move over the time taken, as a share of copy bandwidth: a row a dtype, a column a pass.

    Args:
        records: all of a run.
        place: the name of the device.
    """
    shapes, dtypes, passes = (distinct(records, name) for name in ("shape", "dtype", "pass"))
    figure = new_figure(1.8 + 2.9 * len(passes), 1.3 + (0.5 + 0.34 * len(shapes)) * len(dtypes))
    panels = figure.subplots(len(dtypes), len(passes), squeeze=False, sharex=True, sharey=True)
    for row, dtype in zip(panels, dtypes, strict=True):
        for axes, pass_name in zip(row, passes, strict=True):
            _dots(axes, [r for r in records if r["dtype"] == dtype and r["pass"] == pass_name], shapes)
            axes.set_title(f"{_PASS_NAMES[pass_name]}, {dtype}", loc="left", fontsize=9, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("share of copy bandwidth, %")
        axes.set_xlim(0, 105 * max(record["share_of_copy"] for record in records))
    handles, labels = _legend_of_all(panels)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8, labelcolor=INK,
        handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip
    title(figure, "How near to the speed of a copy", f"bytes that must move over the time taken, {place}")
    return figure


def _dots(axes: Axes, records: Records, shapes: Sequence[str]) -> None:
    quiet_axes(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    for row in range(len(shapes)):
        axes.axhline(row, color=GRID, linewidth=0.7, zorder=0)
    for provider in PROVIDERS:
        own = {record["shape"]: 100 * record["share_of_copy"] for record in records if record["provider"] == provider}
        rows = [row for row, shape in enumerate(shapes) if shape in own]
        if rows:
            size, order = (52, 4) if provider == OURS else (26, 3)
            axes.scatter(
                [own[shapes[row]] for row in rows], rows, s=size, color=_COLOURS[provider], label=provider,
                edgecolors="white", linewidths=0.6, zorder=order,
            )  # fmt: skip
    axes.set_yticks(range(len(shapes)), shapes)
    axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    axes.set_ylim(len(shapes) - 0.5, -0.5)


def _legend_of_all(panels: Any) -> tuple[list[Any], list[str]]:
    """Each provider once, whichever panels it is in."""
    found: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = [provider for provider in PROVIDERS if provider in found]
    return [found[label] for label in labels], labels


def crossing_figure(crossing: dict[str, Any], place: str) -> Figure:
    """Time of both routes over the number of queries, a panel a pass, and where the rule turns.

    Args:
        crossing: of `attention_routes.measure_crossing`.
        place: the name of the device.
    """
    passes = distinct(crossing["points"], "pass")
    figure = new_figure(0.8 + 3.6 * len(passes), 3.4)
    panels = figure.subplots(1, len(passes), squeeze=False)[0]
    for axes, pass_name in zip(panels, passes, strict=True):
        _crossing_panel(axes, [p for p in crossing["points"] if p["pass"] == pass_name], crossing["rule_turns_at"])
        axes.set_title(_PASS_NAMES[pass_name], loc="left", fontsize=9, color=INK)
    panels[0].set_ylabel("median time, ms")
    title(
        figure,
        "Folded or projected",
        f"{crossing['frames']} frames, {crossing['regions']} × {crossing['region_dim']} regions, "
        f"{crossing['num_heads']} heads, {crossing['dtype']}, {place}",
    )
    return figure


def _crossing_panel(axes: Axes, points: Records, rule_turns_at: int) -> None:
    log_axes(axes, [2**power for power in range(9)])
    ends = []
    for route, colour in (("folded", LINE_COLOURS[0]), ("projected", LINE_COLOURS[1])):
        own = [point for point in points if point["route"] == route]
        axes.plot([p["queries"] for p in own], [p["ms"] for p in own], color=colour, marker="o", markersize=3.5, lw=1.4)
        ends.append((own[-1]["queries"], own[-1]["ms"], route, colour))
    for queries, ms, route, colour in ends:
        axes.annotate(route, (queries, ms), (6, 0), textcoords="offset points", va="center", fontsize=8.5, color=colour)
    axes.axvline(rule_turns_at, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        f"rule: projected\nfrom {rule_turns_at}", (rule_turns_at, 1), (-5, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right", va="top", fontsize=8, color=MUTED,
    )  # fmt: skip
    axes.set_xlim(0.85, 1200)  # room for the names of the routes
    axes.set_xlabel("queries a frame, K")


_PASS_NAMES = {"forward": "forward", "backward": "backward", "both": "forward and backward"}
