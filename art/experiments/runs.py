"""Several training runs, sequential or in parallel, and statistics and Markdown tables of their results."""

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
from tqdm import tqdm

from art.data.loading.dataset import DataError
from art.data.parallel import available_cores, exit_with_parent
from art.train.checkpoint import RunDir, differing_keys
from art.train.config import Config, ConfigError, config_from_dict, to_dict
from art.train.loop import check_trainable, train
from art.train.runtime import DeferSignals, Interrupted

#: File in a run directory with the output of a run in its own process.
LOG = "training.log"
#: Accuracies (0..1) of every run.
ACCURACY = ("top1", "mean_class_accuracy")
#: Fractions (0..1) of runs with tracklets; "limb" metrics also need data with known joints.
TRACKLETS = ("relinked", "limb_single", "limb_best", "limb_any")
CHANCE = ("limb_single_chance", "limb_best_chance", "limb_any_chance")
COSTS = ("step_seconds", "data_seconds", "parameters")


class RunsFailed(RuntimeError):
    """Some of several runs failed; the message lists them. The others are complete."""


def is_finished(config: Config) -> bool:
    """Returns whether the run directory has the evaluation of a run with this configuration."""
    path = RunDir(config.output).evaluation
    if not path.is_file():
        return False
    saved = config_from_dict(json.loads(path.read_text(encoding="utf-8"))["config"], str(path))
    return not differing_keys(to_dict(saved), to_dict(config))


def check_runs(groups: Mapping[str, Sequence[Config]]) -> None:
    """Raises the errors that the runs would raise before their first step. Writes nothing.

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
    """Trains every run that is not finished. A failed run does not stop the others.

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
    for number, (name, config) in enumerate(configs.items(), start=1):
        tqdm.write(f"{name} ({number} of {len(configs)}): {config.output}")
        try:
            train(config, resume=RunDir(config.output).exists())
        except Interrupted:
            raise
        except Exception as error:
            tqdm.write(f"{name} failed: {error}")
            failures[name] = error
    return failures


def _run_parallel(configs: Mapping[str, Config], devices: Sequence[str]) -> dict[str, Exception]:
    """Trains each run in its own process, so that its peak memory can be measured and is released."""
    pending, free = list(configs.items()), list(devices)[: len(configs)]
    threads = max(1, available_cores() // len(free))
    active: dict[str, tuple[SpawnProcess, Config]] = {}
    failures: dict[str, Exception] = {}
    with (
        DeferSignals() as signals,
        contextlib.ExitStack() as stack,
        tqdm(total=len(configs), desc="runs", unit="run", disable=None) as bar,
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
                    tqdm.write(f"{name} failed: {failures[name]}")
    return failures


def _run_in_process(config: Config, threads: int) -> None:
    """Trains in a child process. Ctrl-C goes to the parent only, which terminates its children."""
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
    """Sends SIGTERM, on which a training run saves its state, and waits."""
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
    """Returns the results of a finished run: "seed", "output", "clips", the available metrics of :data:`ACCURACY`,
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
    """Returns :func:`mean_std` over seeds of each metric that all runs have."""
    names = (*ACCURACY, *TRACKLETS, *CHANCE, *COSTS)
    return {name: mean_std([run[name] for run in runs]) for name in names if all(name in run for run in runs)}


def differences(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns ``other`` minus ``first`` for each metric that all runs have: "by_seed", and its :func:`mean_std`.

    Args:
        first: runs with distinct seeds.
        other: runs with the same seeds in the same order.
    """
    runs = (*first, *other)
    common = [name for name in (*ACCURACY, *TRACKLETS) if all(name in run for run in runs)]
    by_seed = {name: [b[name] - a[name] for a, b in zip(first, other, strict=True)] for name in common}
    return {name: {"by_seed": values, **mean_std(values)} for name, values in by_seed.items()}


def mean_std(values: Sequence[float | None]) -> dict[str, float | None]:
    """Returns "mean", sample standard deviation "std", "min" and "max" of the values that are not None.

    The deviation of fewer than two values is None, as is everything without values.
    """
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None, "min": None, "max": None}
    deviation = stdev(known) if len(known) > 1 else None
    return {"mean": mean(known), "std": deviation, "min": min(known), "max": max(known)}


def table_header(*titles: str) -> list[str]:
    """Returns the first two lines of a Markdown table whose first column has no title."""
    return [table_row("", *titles), table_row(*["---"] * (len(titles) + 1))]


def table_row(*cells: str) -> str:
    """Returns a line of a Markdown table."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def format_percent(stats: Mapping[str, float | None] | None, *, signed: bool = False, extremes: bool = True) -> str:
    """Formats the output of :func:`mean_std` in percent: mean ± deviation (min … max).

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
    """Formats a time; "-" for None."""
    return "-" if value is None else f"{value:.3g}"
