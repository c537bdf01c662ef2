"""UniFormerV2 as published and with our attention, and ART on each: time, memory and operations.

    python benchmarks/bench_model.py
    python benchmarks/bench_model.py --device cuda --out result.json --plots plots

    UniFormerV2 as published    every token of every frame normalised and projected in the global blocks; in every MLP
                                x · sigmoid(1.702 x) operation by operation
    UniFormerV2, art_kernels    the same function by RegionCrossAttention, and by one operation
    ART on it as published      ARTModel on the first
    ART, art_kernels            ARTModel on the second

The rest of the backbone is the same code in all four, which share one set of random parameters. Before anything is
timed, their logits are compared. In a round each model runs once, and a model's time is compared with that of the
published backbone in the same round. Passes: "forward" in evaluation mode without gradients; "both", the passes of a
training step with its loss and without the optimizer. Operations are counted from the modules, in multiply-adds (GMAC),
as the literature on video models does, for these sizes and for L/14 with 16 frames, which needs no memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the folder of `benchmarks` and `art_kernels` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import add_names, conclude, drawing, names_of_devices, new_parser, prepare, redraw
from benchmarks.model_measure import PASSES, TOLERANCE, Settings, run
from benchmarks.model_peers import MODELS
from benchmarks.model_table import print_records, print_summary

#: Of each device where none are asked for.
DEFAULT_MODELS = {"cpu": ("b16-8",), "cuda": ("l14-16",)}
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16",)}


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0, or 1 where a model failed or says something else than the published one.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    draw = drawing(parser, options, "benchmarks.model_charts")
    if options.draw is not None:
        return redraw(options, draw)
    prepare(parser, options)
    models = ("tiny",) if options.quick else DEFAULT_MODELS[options.device]
    settings = Settings(
        device=options.device,
        models=options.models or models,
        dtypes=options.dtypes or DEFAULT_DTYPES[options.device],
        passes=options.passes,
        quick=options.quick,
    )
    result = run(settings, report=print_records)
    print_summary(result)
    return conclude(result, options, draw)


def run_on_gpu(deadline: float, *, rehearsal: bool = False) -> dict[str, Any]:
    """What `python -m benchmarks.gpu` runs of this benchmark; nothing is begun after `deadline` (`time.monotonic`).

    A rehearsal is on a CPU, with a tiny model, in float32: the interpreter of the kernels knows no bfloat16.
    """
    settings = Settings(device="cuda", models=DEFAULT_MODELS["cuda"], dtypes=DEFAULT_DTYPES["cuda"])
    if rehearsal:
        settings = Settings(device="cpu", models=("tiny",), dtypes=("float32",), quick=True, rehearsal=True)
    result = run(settings, deadline=deadline, report=print_records)
    print_summary(result)
    return result


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = new_parser(__doc__)
    shown = f"{names_of_devices(DEFAULT_MODELS)}; with --quick tiny"
    add_names(parser, "--models", "model", MODELS, default=None, shown_default=shown)
    add_names(parser, "--dtypes", "dtype", TOLERANCE, default=None, shown_default=names_of_devices(DEFAULT_DTYPES))
    add_names(parser, "--passes", "pass", PASSES, default=PASSES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
