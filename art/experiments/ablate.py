"""The paper's ablations (``art ablate``): tables, the runs they need, and their results.

Each row of a table overrides some keys of the full method. The order is the paper's: components are added one by one;
the terms of the MTC loss are tested without bank fine-tuning, the fine-tuning terms with the full MTC loss, and K and λ
in the full method.

Where the paper does not specify what a row without a component uses, this is our reading:

- *without aggregation*: a tracklet is the mean of its responses over time, the limit of a high saliency temperature
  (``model.temperature=1e6``: every weight is 1/T to within one part in a million).
- *without enhancement*: queries are the prompts, and semantics are those of the bank (``model.enhancement_layers=0``).
- *without bank fine-tuning*: ``model.weight_sema=0``: the bank remains the output of the text encoder. The video
  projection that selects the top-K classes is trained by L_sema only and remains unchanged too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from art._deprecated import renamed_attribute
from art.data.files import atomic_write
from art.eval.predictions import write_json
from art.eval.report.style import GRID, INK, LINE_COLORS, MUTED, new_figure, png_bytes, quiet_axes
from art.experiments.compare import (
    check_runs,
    differences,
    format_percent,
    format_seconds,
    is_finished,
    run_results,
    summarize,
    table_header,
    table_row,
    train_all,
)
from art.tools.profile import profile
from art.train.batches import open_split
from art.train.config import Config, ConfigError, to_dict, with_values
from art.train.runtime import provenance

#: Names of the ablations.
TABLES = ("components", "mtc", "bank", "tracklets", "margin")

_MEAN_OVER_TIME = 1e6
_NO_ENHANCEMENT = {"model.enhancement_layers": 0}
_NO_AGGREGATION = {"model.temperature": _MEAN_OVER_TIME}
_NO_MTC = {"model.weight_mtc": 0.0}
_NO_BANK = {"model.weight_sema": 0.0}
_DEFAULTS = {"model.enhancement_layers": 4, "model.weight_mtc": 5, "model.weight_sema": 5}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: part of the directory name of its runs.
        title: title in tables and figures.
        values: overrides by dotted key.
    """

    name: str
    title: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """An ablation.

    Attributes:
        name: its name for ``--only``.
        title: title in tables and figures.
        rows: rows in display order.
        against: the row to which differences are computed by seed: the row "before", or the "first".
        needs: keys that must not be 0 in the full method, because rows set them to 0.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    against: Literal["before", "first"]
    needs: tuple[str, ...] = ()


def ablation_tables(config: Config) -> dict[str, Table]:
    """Return every ablation by name; ``config`` is the full method.

    Examples:
        >>> from art.experiments import ablation_tables
        >>> from art.train.config import Config
        >>> [row.title for row in ablation_tables(Config())["tracklets"].rows]
        ['K = 1', 'K = 2', 'K = 3', 'K = 4']
    """
    weights = {name: f"model.weight_{name}" for name in ("mtc", "sema", "consistency", "prototype")}
    base = {**_NO_AGGREGATION, **_NO_MTC, **_NO_BANK}
    components = (
        Row("baseline", "baseline: the backbone alone", {"kind": "backbone"}),
        Row("regions", "+ region activation, without enhancement", {**_NO_ENHANCEMENT, **base}),
        Row("enhancement", "+ spatial semantic enhancement", base),
        Row("aggregation", "+ text-guided aggregation over time", {**_NO_MTC, **_NO_BANK}),
        Row("mtc", "+ MTC loss", _NO_BANK),
        Row("bank", "+ fine-tuning of the bank: the whole method", {}),
    )
    needs = ("model.enhancement_layers", weights["mtc"], weights["sema"])
    bank = (
        Row("none", "none", _NO_BANK),
        Row("video", "video consistency", {weights["prototype"]: 0.0}),
        Row("prototype", "prototype consistency", {weights["consistency"]: 0.0}),
        Row("both", "both", {}),
    )
    bank_needs = (weights["sema"], weights["consistency"], weights["prototype"])
    margin_needs = (weights["mtc"], "model.weight_temporal")
    tables = (
        Table("components", "The parts of the method", components, "before", needs),
        _mtc_table(),
        Table("bank", "The terms that fine-tune the bank", bank, "first", bank_needs),
        _values_table(config, "tracklets", "K, the tracklets of a clip", "K", "num_tracklets", (1, 2, 3, 4)),
        _values_table(config, "margin", "λ, the correlated degree", "λ", "margin", (0.2, 0.4, 0.6, 0.8), margin_needs),
    )
    return {table.name: table for table in tables}


def _mtc_table() -> Table:
    """Each term of the MTC loss, each pair, all, and none, without bank fine-tuning."""
    terms = ("spatial", "temporal", "tracklet")
    pairs = [tuple(t for t in terms if t != absent) for absent in reversed(terms)]
    rows = []
    for active in [(), *((term,) for term in terms), *pairs, terms]:
        disabled = {f"model.weight_{term}": 0.0 for term in terms if term not in active} if active else _NO_MTC
        name = {0: "none", len(terms): "all"}.get(len(active), "+".join(active))
        rows.append(Row(name, " + ".join(active) or "none", {**disabled, **_NO_BANK}))
    needs = ("model.weight_mtc", *(f"model.weight_{term}" for term in terms), "model.weight_sema")
    return Table("mtc", "The terms of the MTC loss, without fine-tuning of the bank", tuple(rows), "first", needs)


def _values_table(
    config: Config, name: str, title: str, symbol: str, option: str, usual: Sequence[float], needs: tuple[str, ...] = ()
) -> Table:
    """The usual values of a model option and the value of the configuration."""
    values = sorted({*usual, getattr(config.model, option)})
    rows = tuple(Row(f"{value:g}", f"{symbol} = {value:g}", {f"model.{option}": value}) for value in values)
    return Table(name, title, rows, "first", needs)


def _check_table(config: Config, table: Table) -> None:
    """Raise :class:`ConfigError` if the full method lacks a component that a row removes."""
    if config.kind != "art":
        raise ConfigError(f"kind: got {config.kind!r}, expected art: ablations start from the full method")
    for key in table.needs:
        if getattr(config.model, key.removeprefix("model.")) == 0:
            others = ",".join(name for name in TABLES if name != table.name)
            raise ConfigError(
                f"{key}: is 0, so a row of the ablation {table.name!r} would not differ from the full method; "
                f"expected another value, such as {key}={_DEFAULTS.get(key, 1)}, or --only {others}"
            )
    if config.model.temperature >= _MEAN_OVER_TIME and table.name == "components":
        raise ConfigError(f"model.temperature: got {config.model.temperature:g}, which disables aggregation")


@dataclass(frozen=True)
class Plan:
    """The runs of some ablations.

    Attributes:
        tables: the ablations.
        variants: the distinct configurations by name; each is trained with every seed.
        row_variants: for each table, the variant of each row.
        seeds: the seeds.
    """

    tables: tuple[Table, ...]
    variants: Mapping[str, Config]
    row_variants: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]

    members = renamed_attribute("members", "variant_runs")
    of_row = renamed_attribute("of_row", "row_variants")

    def variant_runs(self) -> dict[str, list[Config]]:
        """Return the runs of each variant, by seed."""
        return {
            name: [replace(c, seed=seed, output=str(Path(c.output) / f"{name}-seed{seed}")) for seed in self.seeds]
            for name, c in self.variants.items()
        }

    def runs(self) -> dict[str, Config]:
        """Return all runs by name, the first seed of every variant first, so that tables are available early."""
        runs = self.variant_runs()
        return {f"{name}, seed {seed}": runs[name][i] for i, seed in enumerate(self.seeds) for name in self.variants}


def make_plan(config: Config, seeds: int, only: Sequence[str] = ()) -> Plan:
    """Plan the runs of the ablations. Rows with the same configuration share one run.

    A variant is named after the first row of any table that uses it, so that its name does not depend on ``only``.

    Args:
        config: the full method; rows override it, and the plan sets "seed", "report" and "output".
        seeds: number of seeds, starting at ``config.seed``.
        only: names of :data:`TABLES`; empty: all.

    Raises:
        ValueError: fewer than one seed, or an unknown table.
        ConfigError: a row removes a component that the configuration does not have.

    Examples:
        >>> from art.experiments import make_plan
        >>> from art.train.config import Config
        >>> len(make_plan(Config(), seeds=3, only=["margin"]).runs())
        12
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    unknown = [name for name in only if name not in TABLES]
    if unknown:
        raise ValueError(f"only: got {unknown[0]!r}, expected some of {', '.join(TABLES)}")
    base = replace(config, report=False)
    names: dict[str, str] = {}
    variants: dict[str, Config] = {}
    row_variants: dict[str, tuple[str, ...]] = {}
    all_tables = ablation_tables(base).values()
    tables = tuple(table for table in all_tables if not only or table.name in only)
    for table in tables:
        _check_table(base, table)
    for table in all_tables:
        rows = [with_values(base, row.values, f"the ablation {table.name!r}") for row in table.rows]
        row_names = [
            names.setdefault(json.dumps(to_dict(variant), sort_keys=True), f"{table.name}-{row.name}")
            for row, variant in zip(table.rows, rows, strict=True)
        ]
        if table in tables:
            variants |= dict(zip(row_names, rows, strict=True))
            row_variants[table.name] = tuple(row_names)
    return Plan(tables, variants, row_variants, tuple(range(config.seed, config.seed + seeds)))


def format_plan(plan: Plan, num_parallel: int) -> str:
    """Format the tables with the run of each row, and the remaining time with ``num_parallel`` concurrent runs."""
    shown: set[str] = set()
    lines = []
    for table in plan.tables:
        lines.append(f"{table.name}: {table.title}")
        for row, name in zip(table.rows, plan.row_variants[table.name], strict=True):
            values = " ".join(f"{key}={value}" for key, value in row.values.items()) or "the configuration unchanged"
            lines.append(f"  {row.title:<44} {name:<24} {'(same run as above)' if name in shown else values}")
            shown.add(name)
    runs = plan.runs()
    pending, seconds, source = _estimate(runs)
    lines.append(f"{len(plan.variants)} configurations, {len(plan.seeds)} seeds: {len(runs)} runs, {pending} left")
    if seconds is not None:
        minutes = -(-pending // num_parallel) * seconds / 60
        lines.append(
            f"about {minutes:.0f} minutes with {num_parallel} in parallel if they do not slow each other down: "
            f"{seconds:.0f} s per run, estimated from {source}"
        )
    return "\n".join(lines) + "\n"


def _estimate(runs: Mapping[str, Config]) -> tuple[int, float | None, str]:
    """Return the number of unfinished runs, the seconds per run (None if there are none), and their source.

    The source is the finished runs, else one step of the full method on its device, without reading clips.
    """
    finished = [config for config in runs.values() if is_finished(config)]
    pending = len(runs) - len(finished)
    if not pending:
        return 0, None, "no runs"
    if finished:
        seconds = [run_results(config)["seconds"] for config in finished]
        return pending, sum(seconds) / len(seconds), f"the mean of {len(finished)} finished runs"
    last = [*runs.values()][-1]
    return pending, _predict_seconds(last), "a training step and an evaluation batch, without reading clips"


def _predict_seconds(config: Config) -> float:
    """Predict the time of a run from the measured time of a training step and a forward pass."""
    data = config.data
    train, test = (open_split(data, split) for split in (data.train_split, data.test_split))
    validation = test if data.validation_split is None else open_split(data, data.validation_split)
    size, epochs = config.optim.batch_size, config.optim.epochs
    stages = profile(config, clips=size, classes=len(train.class_names), repetitions=1)["stages"]
    ms = {
        kind: sum(float(stage["ms"].get(kind, 0.0)) for stage in stages)
        for kind in ("inference", "forward", "backward")
    }
    steps = epochs * max(1, len(train) // size)
    views = data.test_views * data.test_crops
    clips = -(-epochs // config.eval_every) * len(validation) + (views - 1) * len(test)
    return (steps * (ms["forward"] + ms["backward"]) + clips / size * ms["inference"]) / 1e3


def ablate(config: Config, seeds: int, only: Sequence[str] = (), devices: Sequence[str] = ()) -> dict[str, Any]:
    """Train the runs of the paper's ablations and write ``ablate.json``, ``ablate.md`` and ``ablate.png``.

    Runs are in ``<output>/<name>-seed<seed>``. Those that are finished with the same configuration are skipped and
    interrupted ones are resumed.

    Args:
        config: the full method; see :func:`make_plan`.
        seeds: number of seeds, starting at ``config.seed``.
        only: names of :data:`TABLES`; empty: all.
        devices: the device of each concurrent process; see :func:`art.experiments.compare.train_all`.

    Returns:
        The content of ``ablate.json``: "runs"; and "tables" with their "rows": "title", "run" (name of the variant),
        "values" (overrides), "summary" over seeds, and "difference" by seed to the reference row (None in the first).

    Raises:
        ValueError: fewer than one seed, or an unknown table.
        ConfigError: raised before any training: an invalid configuration, a row that removes a component that the
            configuration does not have, or a directory with a run of a different configuration.
        RunsFailed, Interrupted: see :func:`art.experiments.compare.train_all`.
    """
    plan = make_plan(config, seeds, only)
    check_runs(plan.variant_runs())
    train_all(plan.runs(), devices)
    result = collect_results(config, plan)
    output = Path(config.output)
    text, image = to_markdown(result), png_bytes(ablation_figure(result["tables"], result["runs"]))
    atomic_write(output / "ablate.md", lambda path: path.write_text(text, encoding="utf-8"))
    atomic_write(output / "ablate.png", lambda path: path.write_bytes(image))
    write_json(output / "ablate.json", result)
    return result


def collect_results(config: Config, plan: Plan) -> dict[str, Any]:
    """Return the result of :func:`ablate` from finished runs."""
    results = {name: [run_results(run) for run in runs] for name, runs in plan.variant_runs().items()}
    tables = []
    for table in plan.tables:
        variants, rows = plan.row_variants[table.name], []
        for i, (row, name) in enumerate(zip(table.rows, variants, strict=True)):
            other = variants[i - 1 if table.against == "before" else 0]
            rows.append(
                {
                    "title": row.title,
                    "run": name,
                    "values": dict(row.values),
                    "summary": summarize(results[name]),
                    "difference": differences(results[other], results[name]) if i else None,
                }
            )
        tables.append({"name": table.name, "title": table.title, "against": table.against, "rows": rows})
    return {
        "config": to_dict(config),
        "seeds": [*plan.seeds],
        "runs": [{"run": name, **result} for name, members in results.items() for result in members],
        "tables": tables,
        "provenance": provenance(),
    }


def to_markdown(result: Mapping[str, Any]) -> str:
    """Format the result of :func:`ablate` as Markdown: mean ± sample standard deviation, and differences by seed."""
    source, clips = result["provenance"], result["runs"][0]["clips"]
    seeds = ("seeds " if len(result["seeds"]) > 1 else "seed ") + ", ".join(map(str, result["seeds"]))
    lines = [
        f"Last checkpoint of each of {len(result['runs'])} runs of {result['config']['optim']['epochs']} epochs, on "
        f"{clips:,} test clips; {seeds}; torch {source['torch']}, {source['machine']}, {source['date'][:10]}. "
        f"One clip is {100 / clips:.2g} points.",
    ]
    for table in result["tables"]:
        lines += ["", f"### {table['title']}", "", *_table_lines(table, result["seeds"])]
    return "\n".join(lines) + "\n"


def _table_lines(table: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
    other = {"before": "to the row before", "first": "to the first row"}[table["against"]]
    by_seed = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else []
    titles = "top-1, %", "mean class accuracy, %", f"top-1 {other}, points", *by_seed, "s per step", "parameters"
    lines = table_header(*titles)
    for row in table["rows"]:
        summary = row["summary"]
        paired = None if row["difference"] is None else row["difference"]["top1"]
        points = [f"{100 * value:+.2f}" for value in paired["by_seed"]] if paired is not None else [""] * len(seeds)
        cells = (
            row["title"],
            format_percent(summary["top1"], extremes=False),
            format_percent(summary["mean_class_accuracy"], extremes=False),
            format_percent(paired, signed=True, extremes=False),
            *(points if by_seed else []),
            format_seconds(summary["step_seconds"]["mean"]),
            f"{summary['parameters']['mean']:,.0f}",
        )
        lines.append(table_row(*cells))
    return lines


def ablation_figure(
    tables: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], *, value: str = "top1"
) -> Figure:
    """Draw one panel per table on a common scale: a dot per run and a bar with the mean of each row, in percent.

    Args:
        tables: dicts with "title" and "rows"; each row has "title" and "run", the name of its runs.
        runs: dicts with "run", "seed" and ``value`` (a fraction, 0..1).
        value: the metric to draw.

    Raises:
        ValueError: no tables, or a row without runs.
    """
    if not tables:
        raise ValueError("tables is empty, expected at least one ablation to draw")
    by_run: dict[str, dict[Any, float]] = {}
    for run in runs:
        by_run.setdefault(run["run"], {})[run["seed"]] = 100 * float(run[value])
    missing = [row["run"] for table in tables for row in table["rows"] if row["run"] not in by_run]
    if missing:
        raise ValueError(f"runs lacks {missing[0]!r}, the run of a row; it has {', '.join(by_run) or 'no runs'}")
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(run["seed"] for run in runs))}
    heights = [0.3 * len(table["rows"]) + 0.75 for table in tables]  # inches
    figure = new_figure(7.5, sum(heights))
    panels = figure.subplots(len(tables), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        _draw_panel(axes, table, by_run, seeds)
    panels[-1].set_xlabel(f"{value}, percent" + (f"; one dot for each of {len(seeds)} seeds" if len(seeds) > 1 else ""))
    return figure


def _draw_panel(
    axes: Any, table: Mapping[str, Any], by_run: Mapping[str, Mapping[Any, float]], seeds: Mapping[Any, int]
) -> None:
    quiet_axes(axes, grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    rows = table["rows"]
    for y, row in enumerate(rows):
        by_seed = by_run[row["run"]]
        values = np.array(list(by_seed.values()))
        colors = [LINE_COLORS[seeds[seed] % len(LINE_COLORS)] for seed in by_seed]
        axes.scatter(values, np.full(len(values), y), s=20, color=colors, zorder=2)
        axes.vlines(values.mean(), y - 0.3, y + 0.3, color=INK, linewidth=2, zorder=3)
        axes.annotate(
            f"{values.mean():.1f}", (values.max(), y), xytext=(8, 0), textcoords="offset points", va="center",
            fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_title(table["title"], loc="left", fontsize=9, color=MUTED)
