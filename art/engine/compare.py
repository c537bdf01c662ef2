"""Values of one configuration key against each other: same data, schedule and seeds, in one table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from art.data.dataset import DataError
from art.visualize import comparison_figure

from .compare_table import as_markdown
from .config import Config, ConfigError, to_dict, variants
from .evaluate import write_json
from .run_folder import RunFolder, differing_keys
from .runtime import provenance
from .train import check_trainable, train

#: Shares, 0..1, of every run.
_ACCURACY = ("top1", "mean_class_accuracy")
#: Of the runs that have tracklets; "limb": also need data with known joints.
_TRACKLETS = ("relinked", "limb_single", "limb_best", "limb_any")
_CHANCE = ("limb_single_chance", "limb_best_chance", "limb_any_chance")
_COSTS = ("step_seconds", "data_seconds", "parameters")
#: What a comparison gives each run by itself.
_OWN = ("seed", "output", "report")


def compare(config: Config, seeds: int, over: str = "kind=backbone,art") -> dict[str, Any]:
    """Trains with each value of a key and each seed in ``<output>/<value>-seed<seed>``; writes ``compare.json``,
    ``.md``, ``.png``.

    Runs that are finished with the same configuration are not repeated, and one that stopped is continued, so that an
    interrupted comparison goes on where it was. Timings are comparable only where all runs had the machine alike.

    Args:
        config: of every run, but for the key, "output", "report" and "seed"; the first seed is ``config.seed``.
        seeds: how many, counting up.
        over: the key and its values, ``key=value,value,...``; the first value is what the others are compared with.

    Returns:
        What ``compare.json`` holds: "over", the key; "runs"; "summary" by value; and "paired", the differences to the
        first value by seed: by measure where there are two values, by value and measure where there are more. All are
        shares, 0..1. Runs with tracklets also have "relinked" (:attr:`.metrics.Evaluation.relinked`) and, where it
        could be measured, how often tracklets are near the limb that defines the class and how often random regions
        on the body would be: "limb_single" and "limb_single_chance" and so on
        (:class:`art.visualize.limb_score.Shares`).

    Raises:
        ValueError: for fewer than one seed.
        ConfigError: before any training: for a wrong key or value, or where one of the folders holds a run with
            another configuration.
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    key, numbers = over.partition("=")[0], range(config.seed, config.seed + seeds)
    if key in _OWN:
        raise ConfigError(f"{key}: is what a comparison sets for each run; expected another key to compare over")
    of_value = {
        value: [_variant(variant, value, seed) for seed in numbers] for value, variant in variants(config, over).items()
    }
    for value, members in of_value.items():
        _check(f"{key}={value}", members)
    runs = [_outcome(key, value, members[i]) for i in range(seeds) for value, members in of_value.items()]
    result = {"config": to_dict(config), "over": key, "seeds": [*numbers], "runs": runs}
    result |= {**_statistics(key, runs), "provenance": provenance()}
    output = Path(config.output)
    write_json(output / "compare.json", result)
    (output / "compare.md").write_text(as_markdown(result), encoding="utf-8")
    comparison_figure(runs, key=key, base=next(iter(of_value))).savefig(output / "compare.png")
    return result


def _variant(variant: Config, value: str, seed: int) -> Config:
    return dataclasses.replace(
        variant, seed=seed, report=False, output=str(Path(variant.output) / f"{value}-seed{seed}")
    )


def _check(title: str, members: Sequence[Config]) -> None:
    """Stops where a training of one of these would stop before its first step."""
    for config in members:
        if _finished(RunFolder(config.output), config):
            continue
        try:
            check_trainable(config)
        except (ValueError, OSError, ImportError, DataError) as error:
            raise ConfigError(f"{title}: {error}") from error


def _outcome(key: str, value: str, config: Config) -> dict[str, Any]:
    """The numbers of one run, which is trained, continued or only read."""
    run = RunFolder(config.output)
    if not _finished(run, config):
        tqdm.write(f"{key}={value}, seed {config.seed}: {config.output}")
        train(config, resume=run.exists())
    evaluation = json.loads(run.evaluation.read_text(encoding="utf-8"))
    return {key: value, "seed": config.seed, "output": config.output, **_numbers(evaluation)}


def _finished(run: RunFolder, config: Config) -> bool:
    if not run.evaluation.is_file():
        return False
    former = json.loads(run.evaluation.read_text(encoding="utf-8"))["config"]
    return not differing_keys(former, to_dict(config))


def _numbers(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: evaluation[name] for name in ("clips", *_ACCURACY)}
    if evaluation.get("relinked") is not None:
        numbers["relinked"] = evaluation["relinked"]
    if evaluation["localization"] is not None:
        score = evaluation["localization"]["overall"]
        for rule in ("single", "best", "any"):
            numbers[f"limb_{rule}"] = score["tracklets"][rule]
            numbers[f"limb_{rule}_chance"] = score["random_region"][rule]
    return numbers | evaluation["training"]


def _statistics(key: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of each value, and the differences to the first, in what all runs concerned have."""
    of_value: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        of_value.setdefault(run[key], []).append(run)
    summary = {
        value: {
            name: _spread([run[name] for run in members])
            for name in (*_ACCURACY, *_TRACKLETS, *_CHANCE, *_COSTS)
            if all(name in run for run in members)
        }
        for value, members in of_value.items()
    }
    first, *others = of_value
    paired = {other: _differences(of_value[first], of_value[other]) for other in others}
    return {"summary": summary, "paired": paired if len(others) > 1 else paired[others[0]]}


def _differences(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    runs = (*first, *other)
    common = [name for name in (*_ACCURACY, *_TRACKLETS) if all(name in run for run in runs)]
    by_seed = {name: [b[name] - a[name] for a, b in zip(first, other, strict=True)] for name in common}
    return {name: {"by_seed": values, **_spread(values)} for name, values in by_seed.items()}


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None, "min": None, "max": None}
    deviation = stdev(known) if len(known) > 1 else None
    return {"mean": mean(known), "std": deviation, "min": min(known), "max": max(known)}
