"""Exact batched assignment, and tracklets linked by it, beside what a user would pick instead.

    python benchmarks/bench_linking.py
    python benchmarks/bench_linking.py --device cuda --out result.json --plots plots

`linear_assignment`, a batch of problems of K rows. Costs are uniform, normal, or those of "responses": the negative
cosines of adjacent frames, whose responses move slowly, have a direction in common and lie in any order.

    scipy                    a loop over scipy.optimize.linear_sum_assignment
    lapx                     the faster of its lapjvr_batch and lapjvh_batch, in as many threads as PyTorch has
    lapcpp                   its lapjv_batch, likewise
    torch-linear-assignment  batch_linear_assignment (on a GPU)
    art_kernels              linear_assignment
    ..., to host             the same with the columns copied to the host (on a GPU)

Of the peers pairs are asked for without their costs, and on a CPU the lists of small arrays that they give are left as
they are: to make one array of them takes longer. On a GPU those that solve on the host have costs and columns copied.

`link_tracklets`, from responses [B,T,K,C] to order and similarity:

    loop + scipy             frame by frame: the matrix of cosines, SciPy, composition
    vectorised + lapcpp      all cosines at once, lapjv_batch, composition frame by frame for all videos
    vectorised + torch-linear-assignment    the same with that solver (on a GPU)
    art_kernels              link_tracklets, which also numbers the tracklets
    art_kernels, CUDA graph  the same, captured and replayed (on a GPU)

Before anything is timed, its sums of costs are compared with SciPy's optimum, and similarities with cosines in float64.
Peers that are not installed are left out, and it says so: pip install -c constraints.txt ".[bench]".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the folder of `benchmarks` and `art_kernels` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import add_names, conclude, drawing, new_parser, prepare, redraw
from benchmarks.linking_measure import Settings, run
from benchmarks.linking_shapes import DTYPES, KINDS, SHAPES, SIZES
from benchmarks.linking_table import print_records, print_summary


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0, or 1 where a provider failed or found no optimum.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    draw = drawing(parser, options, "benchmarks.linking_charts")
    if options.draw is not None:
        return redraw(options, draw)
    prepare(parser, options)
    settings = Settings(
        device=options.device,
        sizes=options.sizes,
        kinds=options.kinds,
        shapes=options.shapes,
        dtypes=options.dtypes,
        quick=options.quick,
    )
    result = run(settings, report=print_records)
    print_summary(result)
    return conclude(result, options, draw)


def run_on_gpu(deadline: float, *, rehearsal: bool = False) -> dict[str, Any]:
    """What `python -m benchmarks.gpu` runs of this benchmark; nothing is begun after `deadline` (`time.monotonic`).

    A rehearsal is a quick run on a CPU.
    """
    settings = Settings(device="cpu", quick=True) if rehearsal else Settings(device="cuda")
    result = run(settings, deadline=deadline, report=print_records)
    print_summary(result)
    return result


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = new_parser(__doc__)
    add_names(parser, "--sizes", "size", SIZES, default=SIZES, or_none=True)
    add_names(parser, "--kinds", "kind of costs", KINDS, default=KINDS)
    add_names(parser, "--shapes", "shape", SHAPES, default=tuple(SHAPES), or_none=True)
    add_names(parser, "--dtypes", "dtype", DTYPES, default=("float32",), shown_default="float32")
    return parser


if __name__ == "__main__":
    sys.exit(main())
