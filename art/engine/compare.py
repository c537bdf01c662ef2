"""ART against its own backbone: same data, schedule and seeds, in one table."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from art.visualize import comparison_figure

from .config import Config, to_dict
from .evaluate import write_json
from .run_folder import RunFolder, differing_keys
from .runtime import provenance
from .train import train

KINDS = ("backbone", "art")
_SHARES = ("top1", "mean_class_accuracy")
_COSTS = ("step_seconds", "data_seconds", "parameters")


def compare(config: Config, seeds: int) -> dict[str, Any]:
    """Trains both kinds with each seed in ``<output>/<kind>-seed<seed>``; writes ``compare.json``, ``.md``, ``.png``.

    Runs that are finished with the same configuration are not repeated, and one that stopped is continued, so that an
    interrupted comparison goes on where it was. Timings are comparable only where all runs had the machine alike.

    Args:
        config: of every run, but for "kind", "output" and "seed"; the first seed is ``config.seed``.
        seeds: how many, counting up.

    Returns:
        What ``compare.json`` holds: "runs", "summary" by kind, and "paired", the differences ART − backbone by seed.

    Raises:
        ValueError: for fewer than one seed.
        ConfigError: where one of the folders holds a run with another configuration.
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    runs = [_outcome(_variant(config, kind, config.seed + i)) for i in range(seeds) for kind in KINDS]
    of_kind = {kind: [run for run in runs if run["kind"] == kind] for kind in KINDS}
    paired = {
        name: [art[name] - backbone[name] for backbone, art in zip(*of_kind.values(), strict=True)] for name in _SHARES
    }
    result = {
        "config": to_dict(config),
        "seeds": [run["seed"] for run in of_kind["art"]],
        "runs": runs,
        "summary": {
            kind: {name: _spread([run[name] for run in members]) for name in (*_SHARES, *_COSTS)}
            for kind, members in of_kind.items()
        },
        "paired": {name: {"by_seed": values, **_spread(values)} for name, values in paired.items()},
        "provenance": provenance(),
    }
    output = Path(config.output)
    write_json(output / "compare.json", result)
    (output / "compare.md").write_text(as_markdown(result), encoding="utf-8")
    comparison_figure(runs).savefig(output / "compare.png")
    return result


def _variant(config: Config, kind: str, seed: int) -> Config:
    variant = copy.deepcopy(config)
    variant.kind, variant.seed, variant.report = kind, seed, False
    variant.output = str(Path(config.output) / f"{kind}-seed{seed}")
    return variant


def _outcome(config: Config) -> dict[str, Any]:
    """The numbers of one run, which is trained, continued or only read."""
    run = RunFolder(config.output)
    if not _finished(run, config):
        tqdm.write(f"{config.kind}, seed {config.seed}: {config.output}")
        train(config, resume=run.exists())
    evaluation = json.loads(run.evaluation.read_text(encoding="utf-8"))
    numbers = {name: evaluation[name] for name in ("clips", *_SHARES)} | evaluation["training"]
    return {"kind": config.kind, "seed": config.seed, "output": config.output, **numbers}


def _finished(run: RunFolder, config: Config) -> bool:
    if not run.evaluation.is_file():
        return False
    former = json.loads(run.evaluation.read_text(encoding="utf-8"))["config"]
    return not differing_keys(former, to_dict(config))


def _spread(values: list[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None, "min": None, "max": None}
    deviation = stdev(known) if len(known) > 1 else None
    return {"mean": mean(known), "std": deviation, "min": min(known), "max": max(known)}


def as_markdown(result: dict[str, Any]) -> str:
    """The comparison as a Markdown table. Accuracies: mean ± sample standard deviation over the seeds (min … max)."""
    seeds, clips = result["seeds"], result["runs"][0]["clips"]
    told = result["provenance"]
    lines = [
        f"Last checkpoint of each run on {clips} test clips; seeds {', '.join(map(str, seeds))}; "
        f"torch {told['torch']}, {told['machine']}, {told['date']}.",
        "",
        "| | top-1, % | mean class accuracy, % | seconds a step | waiting for data, s a step | parameters |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, summary in result["summary"].items():
        title = "backbone alone" if kind == "backbone" else "ART on it"
        shares = " | ".join(_percent(summary[name]) for name in _SHARES)
        times = " | ".join(_seconds(summary[name]["mean"]) for name in ("step_seconds", "data_seconds"))
        lines.append(f"| {title} | {shares} | {times} | {summary['parameters']['mean']:,.0f} |")
    differences = " | ".join(_percent(result["paired"][name], signed=True) for name in _SHARES)
    lines += [f"| difference, paired by seed | {differences} | | | |", ""]
    for name, title in zip(_SHARES, ("top-1", "mean class accuracy"), strict=True):
        values = zip(seeds, result["paired"][name]["by_seed"], strict=True)
        lines.append(f"Difference in {title} by seed, points: {', '.join(f'{s}: {100 * v:+.2f}' for s, v in values)}.")
    return "\n".join(lines) + "\n"


def _percent(spread: dict[str, float], *, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    deviation = "" if spread["std"] is None else f" ± {100 * spread['std']:.2f}"
    return f"{100 * spread['mean']:{form}}{deviation} ({100 * spread['min']:{form}} … {100 * spread['max']:{form}})"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
