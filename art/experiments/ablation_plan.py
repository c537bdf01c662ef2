"""Which runs some ablations need: rows of several tables that are the same configuration are one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from art.experiments.ablation_tables import TABLES, Table, ablation_tables, check_table
from art.experiments.runs import finished
from art.tools.profile import profile
from art.train.batches import open_split
from art.train.config import Config, to_dict, with_values
from art.train.microbatch_metrics import outcome


@dataclass(frozen=True)
class Plan:
    """The runs of some ablations.

    Attributes:
        tables: the ablations.
        variants: the configurations that they need, by name; each is trained with every seed.
        of_row: for each table the variant of each of its rows.
        seeds: counting up from that of the configuration.
    """

    tables: tuple[Table, ...]
    variants: Mapping[str, Config]
    of_row: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]

    def members(self) -> dict[str, list[Config]]:
        """The runs of each variant, by seed."""
        return {
            name: [replace(c, seed=seed, output=str(Path(c.output) / f"{name}-seed{seed}")) for seed in self.seeds]
            for name, c in self.variants.items()
        }

    def runs(self) -> dict[str, Config]:
        """All of them by name, the first seed of every variant first, so that a table is there early."""
        members = self.members()
        return {
            f"{name}, seed {seed}": members[name][place]
            for place, seed in enumerate(self.seeds)
            for name in self.variants
        }


def make_plan(config: Config, seeds: int, only: Sequence[str] = ()) -> Plan:
    """The runs of the ablations of a configuration, which is the whole method.

    A variant is called by the first of all rows that is it, of whichever table, so that its name does not depend on
    ``only``.

    Args:
        config: of every run, but for what a row sets, "seed", "report" and the folder, which is one in ``output``.
        seeds: how many, counting up from ``config.seed``.
        only: names of :data:`.tables.TABLES`; none is all.

    Raises:
        ValueError: for fewer than one seed, or an unknown table.
        ConfigError: a row would leave out what the configuration does not have.

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
    of_row: dict[str, tuple[str, ...]] = {}
    tables = tuple(table for table in ablation_tables(base).values() if not only or table.name in only)
    for table in tables:
        check_table(base, table)
    for table in ablation_tables(base).values():
        own = []
        for row in table.rows:
            variant = with_values(base, row.values, f"the ablation {table.name!r}")
            name = names.setdefault(json.dumps(to_dict(variant), sort_keys=True), f"{table.name}-{row.name}")
            own.append(name)
            if table in tables:
                variants[name] = variant
        if table in tables:
            of_row[table.name] = tuple(own)
    return Plan(tables, variants, of_row, tuple(range(config.seed, config.seed + seeds)))


@dataclass(frozen=True)
class Estimate:
    """How long the runs that are left would take.

    Attributes:
        left: names of the runs that are not finished.
        seconds_a_run: of one of them, alone on its device.
        source: where that number comes from.
    """

    left: tuple[str, ...]
    seconds_a_run: float | None
    source: str

    def seconds(self, at_once: int) -> float:
        """Wall time with so many runs at once that do not slow each other."""
        return -(-len(self.left) // at_once) * (self.seconds_a_run or 0.0)


def estimate(plan: Plan) -> Estimate:
    """From the runs that are finished; where there is none, from one pass of the whole method's model on its device,
    which leaves out reading the clips."""
    runs = plan.runs()
    done = {name: config for name, config in runs.items() if finished(config)}
    left = tuple(name for name in runs if name not in done)
    if not left:
        return Estimate((), None, "all runs are finished")
    if done:
        seconds = [outcome(config)["seconds"] for config in done.values()]
        return Estimate(left, sum(seconds) / len(seconds), f"the mean of {len(done)} finished runs")
    return Estimate(left, _predicted(runs[left[-1]]), "a training step and an evaluation batch, without reading clips")


def _predicted(config: Config) -> float:
    """Seconds of a training by the time of a step, of evaluations by that of a forward pass."""
    train, test = (open_split(config, split) for split in (config.data.train_split, config.data.test_split))
    watched = test if config.data.validation_split is None else open_split(config, config.data.validation_split)
    size, epochs = config.optim.batch_size, config.optim.epochs
    measured = profile(config, clips=size, classes=len(train.class_names), repetitions=1)
    ms = {kind: sum(_ms(stage, kind) for stage in measured["stages"]) for kind in ("inference", "forward", "backward")}
    steps = epochs * max(1, len(train) // size)
    views = config.data.test_views * config.data.test_crops
    clips = -(-epochs // config.eval_every) * len(watched) + (views - 1) * len(test)
    return (steps * (ms["forward"] + ms["backward"]) + clips / size * ms["inference"]) / 1e3


def _ms(stage: Mapping[str, Any], kind: str) -> float:
    return float(stage["ms"].get(kind, 0.0))


def as_list(plan: Plan, at_once: int) -> str:
    """The tables with the run of each row, and how long the runs that are left would take, as text."""
    shown, told = set[str](), estimate(plan)
    lines = []
    for table in plan.tables:
        lines.append(f"{table.name}: {table.title}")
        for row, name in zip(table.rows, plan.of_row[table.name], strict=True):
            values = " ".join(f"{key}={value}" for key, value in row.values.items()) or "the configuration as it is"
            lines.append(f"  {row.title:<44} {name:<24} {'(as above)' if name in shown else values}")
            shown.add(name)
    total = len(plan.runs())
    lines.append(f"{len(plan.variants)} configurations, {len(plan.seeds)} seeds: {total} runs, {len(told.left)} left")
    if told.seconds_a_run is not None:
        lines.append(
            f"about {told.seconds(at_once) / 60:.0f} minutes with {at_once} at once, if they do not slow each other: "
            f"{told.seconds_a_run:.0f} s a run, from {told.source}"
        )
    return "\n".join(lines) + "\n"
