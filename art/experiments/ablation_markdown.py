"""Ablations as Markdown: a table each, with the difference that a row makes, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art.experiments.markdown import head, percent, row, seconds


def as_markdown(result: Mapping[str, Any]) -> str:
    """What :func:`.ablate.ablate` returns, as Markdown: means ± sample standard deviations over seeds, and the
    differences seed by seed."""
    told, clips = result["provenance"], result["runs"][0]["clips"]
    seeds = ("seeds " if len(result["seeds"]) > 1 else "seed ") + ", ".join(map(str, result["seeds"]))
    lines = [
        f"Last checkpoint of each of {len(result['runs'])} runs of {result['config']['optim']['epochs']} epochs, on "
        f"{clips:,} test clips; {seeds}; torch {told['torch']}, {told['machine']}, {told['date'][:10]}. "
        f"One clip is {100 / clips:.2g} points.",
    ]
    for table in result["tables"]:
        lines += ["", f"### {table['title']}", "", *_table(table, result["seeds"])]
    return "\n".join(lines) + "\n"


def _table(table: Mapping[str, Any], seeds: list[int]) -> list[str]:
    other = {"before": "to the row before", "first": "to the first row"}[table["against"]]
    by_seed = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else []
    lines = head("top-1, %", "mean class accuracy, %", f"top-1 {other}, points", *by_seed, "s a step", "parameters")
    for line in table["rows"]:
        told, difference = line["summary"], line["difference"]
        paired = None if difference is None else difference["top1"]
        points = [f"{100 * value:+.2f}" for value in paired["by_seed"]] if paired is not None else [""] * len(seeds)
        lines.append(
            row(
                line["title"],
                percent(told["top1"], extremes=False),
                percent(told["mean_class_accuracy"], extremes=False),
                percent(paired, signed=True, extremes=False),
                *(points if by_seed else []),
                seconds(told["step_seconds"]["mean"]),
                f"{told['parameters']['mean']:,.0f}",
            )
        )
    return lines
