"""The multilevel contrastive loss, pooling, and contrast across a batch, beside what a user would pick instead.

    python benchmarks/bench_contrast.py
    python benchmarks/bench_contrast.py --device cuda --out result.json --plots plots

`mtc_loss` (shapes paper, batch, dense), the sum of its three terms:

    naive                    the paper's text written down: loops over frames and steps, matrices of cosines kept
    vectorised               the definition, all frames at once
    vectorised compiled      the same under torch.compile
    art_kernels              mtc_loss as it chooses its backend
    art_kernels, CUDA graph  the same, forward and backward captured and replayed (on a GPU)

`pool_tracklets` (shapes pool-paper, pool-batch, pool-dense), with as many semantics as tracklets; the mean square of
what is pooled, so that there is one number to differentiate. The same providers; "naive" loops over tracklets and
semantics.

`tracklet_nce` (shapes nce-4k, nce-32k, nce-128k), symmetric, one positive each:

    materialised             the matrix of logits, F.cross_entropy over rows and columns
    materialised compiled    the same under torch.compile
    memeff                   MemoryEfficientCLIPLoss of that package, where it is installed (on a GPU)
    art_kernels              tracklet_nce as it chooses its backend
    siglip-kernel            always left out: its loss is another one, a sigmoid for each pair and no softmax

Before it is timed, each one's value and gradients are compared with float64. On a CPU sizes are cut, and it says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the folder of `benchmarks` and `art_kernels` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.command import add_names, conclude, drawing, names_of_devices, new_parser, prepare, redraw
from benchmarks.contrast_measure import Settings, run
from benchmarks.contrast_shapes import PASSES, SHAPES
from benchmarks.contrast_table import print_records, print_summary
from benchmarks.findings import DTYPES

#: Of each device where none are asked for: what is used there.
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0, or 1 where a provider failed or computed something else.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    draw = drawing(parser, options, "benchmarks.contrast_charts")
    if options.draw is not None:
        return redraw(options, draw)
    prepare(parser, options)
    result = run(
        Settings(
            device=options.device,
            shapes=options.shapes,
            dtypes=options.dtypes or DEFAULT_DTYPES[options.device],
            passes=options.passes,
            quick=options.quick,
        ),
        report=print_records,
    )
    print_summary(result)
    return conclude(result, options, draw)


def run_on_gpu(deadline: float, *, rehearsal: bool = False) -> dict[str, Any]:
    """What `python -m benchmarks.gpu` runs of this benchmark; nothing is begun after `deadline` (`time.monotonic`).

    A rehearsal is on a CPU, in float32: the interpreter of the kernels knows no bfloat16.
    """
    settings = Settings(device="cuda", dtypes=DEFAULT_DTYPES["cuda"])
    if rehearsal:
        settings = Settings(device="cpu", dtypes=("float32",), rehearsal=True)
    result = run(settings, deadline=deadline, report=print_records)
    print_summary(result)
    return result


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = new_parser(__doc__)
    add_names(parser, "--shapes", "shape", SHAPES, default=tuple(SHAPES))
    add_names(parser, "--dtypes", "dtype", DTYPES, default=None, shown_default=names_of_devices(DEFAULT_DTYPES))
    add_names(parser, "--passes", "pass", PASSES, default=PASSES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
