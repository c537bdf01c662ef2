"""Pictures of what `bench_data` measured: clips a second and core, and how long a model waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from art.eval.report.style import INK, LINE_COLOURS, MUTED, new_figure, quiet_axes
from benchmarks.charts import Records, bars, distinct, save, title
from benchmarks.data_loader import ASLEEP
from benchmarks.data_providers import OURS


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the decoders, a panel a file, and the share of time that a model waits.

    Args:
        result: of `data_measure.run`.
        folder: where the PNG files go; made where it is not there.

    Returns:
        The files.
    """
    place = result["machine"]["device"]
    figures = {}
    decoded = [record for record in result["records"] if record["measured"] == "decode"]
    if decoded:
        what = f"{result['video']['sampled']} of {result['video']['frames']} frames, one thread, {place}"
        figures["decoders"] = decoders_figure(decoded, what)
    waiting = [record for record in result["records"] if record["measured"] == "waiting"]
    if waiting:
        loader = result["loader"]
        what = f"batches of {loader['batch']} clips of {loader['frames']} frames, {waiting[0]['described']}, {place}"
        figures["waiting"] = waiting_figure(waiting, what)
    return save(figures, folder)


def decoders_figure(records: Records, place: str) -> Figure:
    """Clips a second of each provider, a panel a file.

    Args:
        records: those of decoding.
        place: what was measured where.
    """
    cases = distinct(records, "case")
    rows = {case: [record for record in records if record["case"] == case] for case in cases}
    heights = [len(own) + 1.4 for own in rows.values()]
    figure = new_figure(7.5, 0.7 + 0.28 * sum(heights))
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, own in zip(panels, rows.values(), strict=True):
        ordered = sorted(own, key=lambda record: -record["clips_per_second"])
        names = [f"{record['provider']} ({record['function']})" for record in ordered]
        bars(axes, names, [record["clips_per_second"] for record in ordered], ours=OURS)
        axes.set_title(own[0]["described"], loc="left", fontsize=9, color=INK)
    title(figure, "Clips a second and core", place)
    return figure


def waiting_figure(records: Records, place: str) -> Figure:
    """The share of time that a model waits over how long its step takes, a line for each number of workers.

    Args:
        records: those of waiting; steps that are no sleep are points of their own.
        place: what was measured where.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    quiet_axes(axes)
    for colour, workers in zip(LINE_COLOURS, distinct(records, "workers"), strict=False):
        own = [record for record in records if record["workers"] == workers]
        asleep = sorted((r["step_seconds"], r["waiting_share"]) for r in own if r["step"] == ASLEEP)
        label = "in the training process" if workers == 0 else f"{workers} worker{'s' if workers > 1 else ''}"
        axes.plot(*zip(*asleep, strict=True), color=colour, marker="o", markersize=4, lw=1.8, label=label)
        for record in own:
            if record["step"] != ASLEEP:
                axes.plot(record["step_seconds"], record["waiting_share"], color=colour, marker="*", markersize=10)
    axes.set_ylim(-0.03, 1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("seconds of a model step that leaves the CPU alone (★: ART's own on this CPU)", color=MUTED)
    axes.set_ylabel("share of time that the model waits", color=MUTED)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    title(figure, "How long a model waits for its clips", place)
    return figure
