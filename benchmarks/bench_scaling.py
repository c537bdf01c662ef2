"""A training step on 1 to 1,024 GPUs, on paper: from counts, measured steps, published rates and links.

    python benchmarks/bench_scaling.py --out benchmarks/results/scaling.json \\
        --plots docs/pictures/scaling --page docs/scaling.md
    python benchmarks/bench_scaling.py --device cuda --out steps.json
    python benchmarks/bench_scaling.py --steps steps.json --out benchmarks/results/scaling.json

Measures a training step of the recipes for UniFormerV2-B/16 and L/14 on this device, and a step of two ranks beside
what the formulas say of it (on a CPU). Then it projects: the operations of a step at a share of the device's peak rate,
gradients over published links, optimizer, decoding, failures. The share comes from `--steps`, results of this command
or of `benchmarks.gpu` on that device, and is assumed where there is none. Tables are in Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: the folder of `benchmarks` and `art_kernels` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.bandwidth import copy_bandwidth_gbs
from benchmarks.command import add_names, conclude, drawing, new_parser, prepare, redraw
from benchmarks.findings import OUT_OF_TIME, Findings
from benchmarks.matrix_rate import matrix_tflops
from benchmarks.scaling_measure import RECIPES, compare_with_ranks, count, measure, recipe
from benchmarks.scaling_projection import project
from benchmarks.scaling_table import print_result, update_page
from benchmarks.timing import REHEARSAL, Effort, effort_for

#: Clips of a rank and a step that are measured; 3 are the paper's 24 on 8 devices.
CLIPS = {"cpu": (1,), "cuda": (1, 3, 8)}
#: The precision of the recipes is for GPUs; a CPU without instructions for it is measured in float32.
PRECISION = {"cpu": "fp32", "cuda": "bf16"}
EFFORTS = {
    "cpu": Effort(min_rounds=2, min_seconds=0.0, max_seconds=0.0, warmups=1),
    "cuda": Effort(min_rounds=10, min_seconds=0.0, max_seconds=10.0, warmups=2),
}
#: So small that it takes a second.
QUICK = (
    "model.num_frames=2",
    "model.backbone_options={width: 48, layers: 3, heads: 3, patch_size: 8, input_size: 32, global_blocks: [1, 2]}",
    "model.latent_dim=32", "model.feedforward_dim=64",
)  # fmt: skip
#: Of a clip where two ranks share a CPU: enough to hide sending behind, and no more.
_SHORT = ("model.num_frames=4",)
RANKS_STEPS = 5


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda".
        recipes: names of `RECIPES`.
        quick: tiny models.
        ranks: processes that train together on this machine's CPU; 0 for none.
        rehearsal: hardly any repetition.
    """

    device: str = "cpu"
    recipes: tuple[str, ...] = tuple(RECIPES)
    quick: bool = False
    ranks: int = 2
    rehearsal: bool = False


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0, or 1 where something failed.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    draw = drawing(parser, options, "benchmarks.scaling_charts")
    if options.draw is not None:
        if options.page is not None:
            update_page(options.page, json.loads(options.draw.read_text()))
        return redraw(options, draw)
    prepare(parser, options)
    others = [_read(parser, path) for path in options.steps]
    ranks = options.ranks if options.device == "cpu" else 0
    result = run(Settings(options.device, options.recipes, options.quick, ranks), others=others)
    print_result(result)
    if options.page is not None:
        update_page(options.page, result)
    return conclude(result, options, draw)


def run_on_gpu(deadline: float, *, rehearsal: bool = False) -> dict[str, Any]:
    """What `python -m benchmarks.gpu` runs of this benchmark; nothing is begun after `deadline` (`time.monotonic`)."""
    settings = Settings("cuda", ranks=0)
    if rehearsal:
        settings = Settings("cpu", ("b16",), quick=True, ranks=0, rehearsal=True)
    result = run(settings, deadline=deadline)
    print_result(result)
    return result


def run(
    settings: Settings, *, deadline: float | None = None, others: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Measure and project.

    Args:
        settings: what.
        deadline: of `time.monotonic()`, in seconds, after which nothing new is begun.
        others: results of other devices, whose measured steps are taken for machines with such a device.

    Returns:
        Where it was measured, the settings, "records" (the measured steps), "ranks", "ceilings", the projection (see
        `scaling_projection.project`), "left_out" and "failures", fit for JSON.
    """
    device = torch.device(settings.device)
    effort = REHEARSAL if settings.rehearsal else EFFORTS[device.type]
    findings, ranks = Findings(), None
    overrides = QUICK if settings.quick else ()
    precision = PRECISION[device.type]
    works = {name: count(recipe(name, overrides)) for name in settings.recipes}
    for name in settings.recipes:
        config = recipe(name, (*overrides, f"precision={precision}"))
        for clips in CLIPS[device.type]:
            if deadline is not None and time.monotonic() > deadline:
                findings.left_out.append({"recipe": name, "clips": str(clips), "reason": OUT_OF_TIME})
                continue
            with findings.recording_failure(recipe=name, clips=str(clips)):
                findings.records.append(measure(name, config, works[name], device, clips, effort))
                print(f"measured: {name}, {clips} clips: {findings.records[-1]['tflops']:.3g} TFLOP/s", flush=True)
    if settings.ranks:
        with findings.recording_failure(what="ranks"):
            name = settings.recipes[0]
            small = recipe(name, (*overrides, "precision=fp32", *(() if overrides else _SHORT)))
            ranks = compare_with_ranks(
                name, small, count(small), ranks=settings.ranks, steps=RANKS_STEPS if not settings.quick else 2
            )
    quick = effort_for(device, quick=True)
    ceilings = {
        "matrix_tflops": matrix_tflops(device, torch.bfloat16 if precision == "bf16" else torch.float32, quick),
        "copy_gbs": copy_bandwidth_gbs(device, quick),
    }
    measured = findings.result("scaling", device, settings, effort, ranks=ranks, ceilings=ceilings)
    return {**measured, **project(works, [measured, *(others or [])])}


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = new_parser(__doc__)
    add_names(parser, "--recipes", "recipe", RECIPES, default=tuple(RECIPES))
    parser.add_argument(
        "--steps", type=Path, nargs="+", default=[], metavar="FILE.json", help="results with steps of other devices"
    )
    parser.add_argument("--ranks", type=int, choices=(0, 2), default=2, help="that train together here (default: 2)")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the tables into this page")
    return parser


def _read(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        found = found.get("benchmarks", {}).get("scaling", found)
        if found.get("benchmark") != "scaling":
            raise ValueError("it has no training steps; expected the --out of this command, or of benchmarks.gpu")
    except (OSError, ValueError) as error:
        parser.error(f"argument --steps: {path}: {error}")
    result: dict[str, Any] = found
    return result


if __name__ == "__main__":
    sys.exit(main())
