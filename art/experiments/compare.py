"""Comparison of the values of one configuration key with the same data, schedule and seeds (``art compare``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from art.eval.predictions import write_json
from art.eval.report import comparison_figure
from art.experiments.runs import (
    check_runs,
    differences,
    format_percent,
    format_seconds,
    run_results,
    summarize,
    table_header,
    table_row,
    train_all,
)
from art.train.config import Config, ConfigError, to_dict, variants
from art.train.runtime import provenance

#: Keys that a comparison sets for each run.
RUN_KEYS = ("seed", "output", "report")

_ACCURACY = {"top1": "top-1", "mean_class_accuracy": "mean class accuracy"}
_TRACKLETS = {
    "relinked": "links to another query",
    "limb_single": "frames near the limb (a tracklet)",
    "limb_best": "frames near the limb (the best of each clip)",
    "limb_any": "frames near the limb (any)",
}
_KINDS = {"backbone": "backbone alone", "art": "ART on it"}


def compare(config: Config, seeds: int, over: str = "kind=backbone,art") -> dict[str, Any]:
    """Trains with each value of a key and each seed; writes ``compare.json``, ``compare.md`` and ``compare.png``.

    Runs are in ``<output>/<value>-seed<seed>``. Those that are finished with the same configuration are skipped and
    interrupted ones are resumed. Timings are comparable only if the machine had the same load in all runs.

    Args:
        config: configuration of every run, except for the key, "output", "report" and "seed"; the first seed is
            ``config.seed``.
        seeds: number of seeds.
        over: the key and its values, ``key=value,value,...``; differences are relative to the first value.

    Returns:
        The content of ``compare.json``: "over", the key; "runs"; "summary" by value; and "paired", the differences to
        the first value by seed: by metric for two values, by value and metric for more. All are fractions, 0..1. Runs
        with tracklets also have "relinked" (:attr:`art.eval.metrics.Evaluation.relinked`) and, for data with known
        joints, how often tracklets, and random regions on the body, are near the limb that defines the class:
        "limb_single", "limb_single_chance" and so on (:class:`art.eval.report.localization.HitRates`).

    Raises:
        ValueError: fewer than one seed.
        ConfigError: raised before any training: an invalid key or value, or a directory with a run of a different
            configuration.
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    key, numbers = over.partition("=")[0], range(config.seed, config.seed + seeds)
    if key in RUN_KEYS:
        raise ConfigError(f"{key}: is set by the comparison for each run; expected another key to compare over")
    by_value = {
        value: [
            dataclasses.replace(v, seed=seed, report=False, output=str(Path(v.output) / f"{value}-seed{seed}"))
            for seed in numbers
        ]
        for value, v in variants(config, over).items()
    }
    check_runs({f"{key}={value}": configs for value, configs in by_value.items()})
    configs = [(value, configs[i]) for i in range(seeds) for value, configs in by_value.items()]
    train_all({f"{key}={value}, seed {run.seed}": run for value, run in configs})
    runs = [{key: value, **run_results(run)} for value, run in configs]
    result = {"config": to_dict(config), "over": key, "seeds": [*numbers], "runs": runs}
    result |= {**_statistics(key, runs), "provenance": provenance()}
    output = Path(config.output)
    write_json(output / "compare.json", result)
    (output / "compare.md").write_text(to_markdown(result), encoding="utf-8")
    comparison_figure(runs, key=key, base=next(iter(by_value))).savefig(output / "compare.png")
    return result


def _statistics(key: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the summary of each value, and the differences to the first in metrics that all of their runs have."""
    by_value: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_value.setdefault(run[key], []).append(run)
    first, *others = by_value
    paired = {other: differences(by_value[first], by_value[other]) for other in others}
    return {
        "summary": {value: summarize(members) for value, members in by_value.items()},
        "paired": paired if len(others) > 1 else paired[others[0]],
    }


def to_markdown(result: Mapping[str, Any]) -> str:
    """Formats the result of :func:`compare` as Markdown: means ± sample standard deviations over seeds (min … max)."""
    source, seeds = result["provenance"], ", ".join(map(str, result["seeds"]))
    first_line = (
        f"Last checkpoint of each run on {result['runs'][0]['clips']} test clips; seeds {seeds}; "
        f"torch {source['torch']}, {source['machine']}, {source['date']}."
    )
    lines = [first_line, "", *_accuracy_table(result), ""]
    if any("relinked" in summary for summary in result["summary"].values()):
        lines += [*_tracklet_table(result), ""]
    titles, several = _ACCURACY | _TRACKLETS, len(result["summary"]) > 2
    for pair, paired in _pairs(result).items():
        for name, values in paired.items():
            by_seed = zip(result["seeds"], values["by_seed"], strict=True)
            prefix = f"{pair}: " if several else ""
            points = ", ".join(f"{seed}: {100 * value:+.2f}" for seed, value in by_seed)
            lines.append(f"{prefix}Difference in {titles[name]} by seed, points: {points}.")
    return "\n".join(lines) + "\n"


def _accuracy_table(result: Mapping[str, Any]) -> list[str]:
    titles = [f"{title}, %" for title in _ACCURACY.values()]
    lines = table_header(*titles, "seconds per step", "waiting for data, s per step", "parameters")
    for value, summary in result["summary"].items():
        accuracy = [format_percent(summary[name]) for name in _ACCURACY]
        times = [format_seconds(summary[name]["mean"]) for name in ("step_seconds", "data_seconds")]
        lines.append(table_row(_title(result, value), *accuracy, *times, f"{summary['parameters']['mean']:,.0f}"))
    for title, paired in _pairs(result).items():
        accuracy = [format_percent(paired[name], signed=True) for name in _ACCURACY]
        lines.append(table_row(title, *accuracy, "", "", ""))
    return lines


def _tracklet_table(result: Mapping[str, Any]) -> list[str]:
    summaries = {value: summary for value, summary in result["summary"].items() if "relinked" in summary}
    names = [name for name in _TRACKLETS if any(name in summary for summary in summaries.values())]
    lines = table_header(*(f"{_TRACKLETS[name]}, %" for name in names))
    for value, summary in summaries.items():
        lines.append(table_row(_title(result, value), *(format_percent(summary.get(name)) for name in names)))
    lines += _chance_rows(result, summaries, names)
    for title, paired in _pairs(result).items():
        if "relinked" in paired:
            lines.append(table_row(title, *(format_percent(paired.get(name), signed=True) for name in names)))
    return lines


def _chance_rows(
    result: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> list[str]:
    """Returns the metrics of random regions on the body: one row if they are equal for all values of the key."""
    cells = {
        _title(result, value): [format_percent(summary.get(f"{name}_chance")) for name in names]
        for value, summary in summaries.items()
    }
    cells = {title: row for title, row in cells.items() if any(row)}
    if len({tuple(row) for row in cells.values()}) == 1:
        return [table_row("random regions on the body", *next(iter(cells.values())))]
    return [table_row(f"random regions on the body, {title}", *row) for title, row in cells.items()]


def _pairs(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the differences to the first value by the title of their row."""
    first, *others = result["summary"]
    if len(others) == 1:
        return {"difference, paired by seed": result["paired"]}
    return {f"{_title(result, other)} less {first}, paired by seed": result["paired"][other] for other in others}


def _title(result: Mapping[str, Any], value: str) -> str:
    return _KINDS[value] if result["over"] == "kind" else f"{result['over']}={value}"
