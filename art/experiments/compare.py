"""Training runs of variants and seeds, their statistics and tables, and the comparison of the values of a key.

``art compare`` trains with each value of a configuration key with the same data, schedule and seeds. ``art ablate``, in
:mod:`art.experiments.ablate`, uses the same functions.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from art.data.dataset import DataError
from art.data.files import write_text
from art.data.parallel import available_cores, exit_with_parent
from art.eval.predictions import write_json
from art.eval.report import comparison_figure
from art.terminal import Progress, ProgressLines
from art.train.checkpoint import RunDir, differing_keys
from art.train.config import Config, ConfigError, config_from_dict, to_dict, variants
from art.train.loop import check_trainable, train
from art.train.runtime import DeferSignals, Interrupted, provenance

#: File in a run directory with the output of a run in its own process.
LOG = "training.log"
#: Accuracies (0..1) of every run, and their titles in tables.
ACCURACY = {"top1": "top-1", "mean_class_accuracy": "mean class accuracy"}
#: Fractions (0..1) of runs with tracklets, and their titles; "limb" metrics also need data with known joints.
TRACKLETS = {
    "relinked": "links to another query",
    "limb_single": "frames near the limb (a tracklet)",
    "limb_best": "frames near the limb (the best of each clip)",
    "limb_any": "frames near the limb (any)",
}
CHANCE = ("limb_single_chance", "limb_best_chance", "limb_any_chance")
COSTS = ("step_seconds", "data_seconds", "parameters")
#: Keys that a comparison sets for each run.
RUN_KEYS = ("seed", "output", "report")
_KINDS = {"backbone": "backbone alone", "art": "ART on it"}


def compare(config: Config, seeds: int, over: str = "kind=backbone,art") -> dict[str, Any]:
    """Train with each value of a key and each seed; write ``compare.json``, ``compare.md`` and ``compare.png``.

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
            replace(v, seed=seed, report=False, output=str(Path(v.output) / f"{value}-seed{seed}")) for seed in numbers
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
    write_text(output / "compare.md", to_markdown(result))
    comparison_figure(runs, key=key, base=next(iter(by_value))).savefig(output / "compare.png")
    return result


def _statistics(key: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summary of each value, and the differences to the first in metrics that all of their runs have."""
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
    """Format the result of :func:`compare` as Markdown: means ± sample standard deviations over seeds (min … max)."""
    source, seeds = result["provenance"], ", ".join(map(str, result["seeds"]))
    first_line = (
        f"Last checkpoint of each run on {result['runs'][0]['clips']} test clips; seeds {seeds}; "
        f"torch {source['torch']}, {source['machine']}, {source['date']}."
    )
    lines = [first_line, "", *_accuracy_table(result), ""]
    if any("relinked" in summary for summary in result["summary"].values()):
        lines += [*_tracklet_table(result), ""]
    titles, several = ACCURACY | TRACKLETS, len(result["summary"]) > 2
    for pair, paired in _pairs(result).items():
        for name, values in paired.items():
            by_seed = zip(result["seeds"], values["by_seed"], strict=True)
            prefix = f"{pair}: " if several else ""
            points = ", ".join(f"{seed}: {100 * value:+.2f}" for seed, value in by_seed)
            lines.append(f"{prefix}Difference in {titles[name]} by seed, points: {points}.")
    return "\n".join(lines) + "\n"


def _accuracy_table(result: Mapping[str, Any]) -> list[str]:
    titles = [f"{title}, %" for title in ACCURACY.values()]
    lines = table_header(*titles, "seconds per step", "waiting for data, s per step", "parameters")
    for value, summary in result["summary"].items():
        accuracy = [format_percent(summary[name]) for name in ACCURACY]
        times = [format_seconds(summary[name]["mean"]) for name in ("step_seconds", "data_seconds")]
        lines.append(table_row(_title(result, value), *accuracy, *times, f"{summary['parameters']['mean']:,.0f}"))
    for title, paired in _pairs(result).items():
        accuracy = [format_percent(paired[name], signed=True) for name in ACCURACY]
        lines.append(table_row(title, *accuracy, "", "", ""))
    return lines


def _tracklet_table(result: Mapping[str, Any]) -> list[str]:
    summaries = {value: summary for value, summary in result["summary"].items() if "relinked" in summary}
    names = [name for name in TRACKLETS if any(name in summary for summary in summaries.values())]
    lines = table_header(*(f"{TRACKLETS[name]}, %" for name in names))
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
    """Return the metrics of random regions on the body: one row if they are equal for all values of the key."""
    cells = {
        _title(result, value): [format_percent(summary.get(f"{name}_chance")) for name in names]
        for value, summary in summaries.items()
    }
    cells = {title: row for title, row in cells.items() if any(row)}
    if len({tuple(row) for row in cells.values()}) == 1:
        return [table_row("random regions on the body", *next(iter(cells.values())))]
    return [table_row(f"random regions on the body, {title}", *row) for title, row in cells.items()]


def _pairs(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the differences to the first value by the title of their row."""
    first, *others = result["summary"]
    if len(others) == 1:
        return {"difference, paired by seed": result["paired"]}
    return {f"{_title(result, other)} less {first}, paired by seed": result["paired"][other] for other in others}


def _title(result: Mapping[str, Any], value: str) -> str:
    return _KINDS[value] if result["over"] == "kind" else f"{result['over']}={value}"


class RunsFailed(RuntimeError):
    """Some of several runs failed; the message lists them. The others are complete."""


def is_finished(config: Config) -> bool:
    """Return whether the run directory has the evaluation of a run with this configuration."""
    path = RunDir(config.output).evaluation
    if not path.is_file():
        return False
    saved = config_from_dict(json.loads(path.read_text(encoding="utf-8"))["config"], str(path))
    return not differing_keys(to_dict(saved), to_dict(config))


def check_runs(groups: Mapping[str, Sequence[Config]]) -> None:
    """Raise the errors that the runs would raise before their first step. Writes nothing.

    Args:
        groups: runs by title; runs of a group differ in seed and output only.

    Raises:
        ConfigError: the message starts with the title.
    """
    for title, configs in groups.items():
        pending = [config for config in configs if not is_finished(config)]
        try:
            for config in pending:
                run = RunDir(config.output)
                run.check(config, resume=run.exists(), overwrite=False)
            if pending:
                check_trainable(pending[0])
        except (ValueError, OSError, ImportError, DataError) as error:
            raise ConfigError(f"{title}: {error}") from error


def train_all(configs: Mapping[str, Config], devices: Sequence[str] = ()) -> None:
    """Train every run that is not finished. A failed run does not stop the others.

    Args:
        configs: runs by name, with distinct output directories.
        devices: device of each concurrent process; a device may be listed several times. The output of a run is
            then in ``training.log`` of its directory. With at most one device, runs are trained in this process, on
            that device or the one in their configuration.

    Raises:
        RunsFailed: several runs failed, or one in another process.
        Exception: the error of the only run that failed in this process.
        Interrupted: SIGINT or SIGTERM; the active runs have saved their states, and the same call continues them.
    """
    pending = {name: config for name, config in configs.items() if not is_finished(config)}
    if len(devices) > 1 and pending:
        failures = _run_parallel(pending, devices)
    else:
        failures = _run_sequential({name: replace(c, device=(*devices, c.device)[0]) for name, c in pending.items()})
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        messages = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise RunsFailed(f"{len(failures)} of {len(pending)} runs failed: {messages}")


def _run_sequential(configs: Mapping[str, Config]) -> dict[str, Exception]:
    failures: dict[str, Exception] = {}
    lines = ProgressLines()
    for number, (name, config) in enumerate(configs.items(), start=1):
        lines.print(f"{name} ({number} of {len(configs)}): {config.output}")
        try:
            train(config, resume=RunDir(config.output).exists())
        except Interrupted:
            raise
        except Exception as error:
            lines.print(f"{name} failed: {error}", always=True)
            failures[name] = error
    return failures


def _run_parallel(configs: Mapping[str, Config], devices: Sequence[str]) -> dict[str, Exception]:
    """Train each run in its own process, so that its peak memory can be measured and is released."""
    pending, free = list(configs.items()), list(devices)[: len(configs)]
    threads = max(1, available_cores() // len(free))
    active: dict[str, tuple[SpawnProcess, Config]] = {}
    failures: dict[str, Exception] = {}
    with (
        DeferSignals() as signals,
        contextlib.ExitStack() as stack,
        Progress("runs", len(configs), "run") as bar,
    ):
        stack.callback(_terminate, active)
        while pending or active:
            while pending and free:
                name, config = pending.pop(0)
                config = replace(config, device=free.pop(0))
                process = multiprocessing.get_context("spawn").Process(target=_run_in_process, args=(config, threads))
                process.start()
                active[name] = process, config
            wait([process.sentinel for process, _ in active.values()], timeout=0.5)
            if number := signals.received():
                remaining = len(pending) + len(active)
                raise Interrupted(
                    number,
                    f"stopped by signal {number} with {remaining} of {len(configs)} runs left; run the same command "
                    "again to continue",
                )
            for name in [name for name, (process, _) in active.items() if process.exitcode is not None]:
                process, config = active.pop(name)
                free.append(config.device)
                bar.update()
                if process.exitcode != 0:
                    failures[name] = _failure(process, config)
                    ProgressLines().print(f"{name} failed: {failures[name]}", always=True)
    return failures


def _run_in_process(config: Config, threads: int) -> None:
    """Train in a child process. Ctrl-C goes to the parent only, which terminates its children."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    exit_with_parent()
    directory = Path(config.output)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOG).open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    if torch.get_num_threads() > threads:
        torch.set_num_threads(threads)
    train(config, resume=RunDir(config.output).exists())


def _terminate(active: Mapping[str, tuple[SpawnProcess, Config]]) -> None:
    """Send SIGTERM, on which a training run saves its state, and wait."""
    for process, _ in active.values():
        process.terminate()
    for process, _ in active.values():
        process.join()


def _failure(process: SpawnProcess, config: Config) -> RunsFailed:
    log = Path(config.output) / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    code = process.exitcode
    reason = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return RunsFailed(f"{config.output}: {last} ({reason}; see {log})")


def run_results(config: Config) -> dict[str, Any]:
    """Return the results of a finished run: "seed", "output", "clips", the available metrics of :data:`ACCURACY`,
    :data:`TRACKLETS` and :data:`CHANCE`, and :attr:`art.train.loop.TrainResult.measured`."""
    evaluation = json.loads(RunDir(config.output).evaluation.read_text(encoding="utf-8"))
    metrics = {name: evaluation[name] for name in ("clips", *ACCURACY)}
    if evaluation.get("relinked") is not None:
        metrics["relinked"] = evaluation["relinked"]
    if evaluation["localization"] is not None:
        score = evaluation["localization"]["overall"]
        for rule in ("single", "best", "any"):
            metrics[f"limb_{rule}"] = score["tracklets"][rule]
            metrics[f"limb_{rule}_chance"] = score["random_region"][rule]
    return {"seed": config.seed, "output": config.output, **metrics, **evaluation["training"]}


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return :func:`mean_std` over seeds of each metric that all runs have."""
    names = (*ACCURACY, *TRACKLETS, *CHANCE, *COSTS)
    return {name: mean_std([run[name] for run in runs]) for name in names if all(name in run for run in runs)}


def differences(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``other`` minus ``first`` for each metric that all runs have: "by_seed", and its :func:`mean_std`.

    Args:
        first: runs with distinct seeds.
        other: runs with the same seeds in the same order.
    """
    runs = (*first, *other)
    common = [name for name in (*ACCURACY, *TRACKLETS) if all(name in run for run in runs)]
    by_seed = {name: [b[name] - a[name] for a, b in zip(first, other, strict=True)] for name in common}
    return {name: {"by_seed": values, **mean_std(values)} for name, values in by_seed.items()}


def mean_std(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return "mean", sample standard deviation "std", "min" and "max" of the values that are not None.

    The deviation of fewer than two values is None, as is everything without values.
    """
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None, "min": None, "max": None}
    deviation = stdev(known) if len(known) > 1 else None
    return {"mean": mean(known), "std": deviation, "min": min(known), "max": max(known)}


def table_header(*titles: str) -> list[str]:
    """Return the first two lines of a Markdown table whose first column has no title."""
    return [table_row("", *titles), table_row(*["---"] * (len(titles) + 1))]


def table_row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def format_percent(stats: Mapping[str, float | None] | None, *, signed: bool = False, extremes: bool = True) -> str:
    """Format the output of :func:`mean_std` in percent: mean ± deviation (min … max).

    Args:
        stats: fractions; None, or without values, is an empty cell.
        signed: always write the sign.
        extremes: include minimum and maximum.
    """
    if stats is None or stats["mean"] is None:
        return ""
    form = "+.2f" if signed else ".2f"
    average, std, least, most = (100 * (stats[name] or 0.0) for name in ("mean", "std", "min", "max"))
    deviation = "" if stats["std"] is None else f" ± {std:.2f}"
    return f"{average:{form}}{deviation}" + (f" ({least:{form}} … {most:{form}})" if extremes else "")


def format_seconds(value: float | None) -> str:
    """Format a time; "-" for None."""
    return "-" if value is None else f"{value:.3g}"
