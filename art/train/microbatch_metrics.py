"""The numbers of finished runs: of one, over seeds, and of two ways to train seed by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from art.train.config import Config
from art.train.run_dir import RunFolder

#: Shares, 0..1, of every run.
ACCURACY = ("top1", "mean_class_accuracy")
#: Of the runs that have tracklets; "limb": also need data with known joints.
TRACKLETS = ("relinked", "limb_single", "limb_best", "limb_any")
CHANCE = ("limb_single_chance", "limb_best_chance", "limb_any_chance")
COSTS = ("step_seconds", "data_seconds", "parameters")


def outcome(config: Config) -> dict[str, Any]:
    """What the evaluation of a finished run says: "seed", "output", "clips", the shares above as far as the run has
    them, and what its training measured (:attr:`.train.TrainResult.measured`)."""
    evaluation = json.loads(RunFolder(config.output).evaluation.read_text(encoding="utf-8"))
    numbers = {name: evaluation[name] for name in ("clips", *ACCURACY)}
    if evaluation.get("relinked") is not None:
        numbers["relinked"] = evaluation["relinked"]
    if evaluation["localization"] is not None:
        score = evaluation["localization"]["overall"]
        for rule in ("single", "best", "any"):
            numbers[f"limb_{rule}"] = score["tracklets"][rule]
            numbers[f"limb_{rule}_chance"] = score["random_region"][rule]
    return {"seed": config.seed, "output": config.output, **numbers, **evaluation["training"]}


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean, sample standard deviation, least and greatest over seeds, of everything that all these runs have."""
    names = (*ACCURACY, *TRACKLETS, *CHANCE, *COSTS)
    return {name: spread([run[name] for run in runs]) for name in names if all(name in run for run in runs)}


def differences(first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the shares that all runs have, ``other`` less ``first`` by seed: "by_seed", and their :func:`spread`.

    Args:
        first: runs, one a seed.
        other: runs with the same seeds in the same order.
    """
    runs = (*first, *other)
    common = [name for name in (*ACCURACY, *TRACKLETS) if all(name in run for run in runs)]
    by_seed = {name: [b[name] - a[name] for a, b in zip(first, other, strict=True)] for name in common}
    return {name: {"by_seed": values, **spread(values)} for name, values in by_seed.items()}


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Of the values that are there; the deviation is None of fewer than two, everything of none."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None, "min": None, "max": None}
    deviation = stdev(known) if len(known) > 1 else None
    return {"mean": mean(known), "std": deviation, "min": min(known), "max": max(known)}
