"""Values of one configuration key against each other: same data, schedule and seeds, in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from art.eval.evaluate import write_json
from art.eval.report import comparison_figure
from art.experiments.compare_table import as_markdown
from art.experiments.runs import check_trainings, train_all
from art.train.config import Config, ConfigError, to_dict, variants
from art.train.microbatch_metrics import differences, outcome, summary
from art.train.runtime import provenance

#: What a comparison gives each run by itself.
OWN_KEYS = ("seed", "output", "report")


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
        (:class:`art.eval.report.limb_score.Shares`).

    Raises:
        ValueError: for fewer than one seed.
        ConfigError: before any training: for a wrong key or value, or where one of the folders holds a run with
            another configuration.
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    key, numbers = over.partition("=")[0], range(config.seed, config.seed + seeds)
    if key in OWN_KEYS:
        raise ConfigError(f"{key}: is what a comparison sets for each run; expected another key to compare over")
    of_value = {
        value: [_variant(variant, value, seed) for seed in numbers] for value, variant in variants(config, over).items()
    }
    check_trainings({f"{key}={value}": members for value, members in of_value.items()})
    of_run = {
        f"{key}={value}, seed {members[i].seed}": (value, members[i])
        for i in range(seeds)
        for value, members in of_value.items()
    }
    train_all({name: run for name, (_, run) in of_run.items()})
    runs = [{key: value, **outcome(run)} for value, run in of_run.values()]
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


def _statistics(key: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of each value, and the differences to the first, in what all runs concerned have."""
    of_value: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        of_value.setdefault(run[key], []).append(run)
    first, *others = of_value
    paired = {other: differences(of_value[first], of_value[other]) for other in others}
    return {
        "summary": {value: summary(members) for value, members in of_value.items()},
        "paired": paired if len(others) > 1 else paired[others[0]],
    }
