"""Region attention beside `nn.MultiheadAttention`: time, memory, and how near it comes to what the device can do.

    python benchmarks/bench_region_attention.py --device cuda --out result.json --plots plots
    python benchmarks/bench_region_attention.py --shapes art-256,detr --passes both --crossing

Multi-head cross-attention from K queries to N regions a frame, as `nn.MultiheadAttention(E, H, kdim=C, vdim=C)`
computes it, by each provider from the same inputs and weights:

    reference               the definition in art_kernels, folded route
    nn.MultiheadAttention   need_weights=False
    sdpa                    projections, F.scaled_dot_product_attention, output projection
    sdpa compiled           the same under torch.compile
    art_kernels             RegionCrossAttention as it chooses route and backend

Before it is timed, each one's output and gradients are compared with nn.MultiheadAttention in float64.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the folder of `benchmarks` and `art_kernels` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.attention_measure import Settings, run
from benchmarks.attention_shapes import PASSES, SHAPES
from benchmarks.attention_table import print_floor, print_records, print_summary
from benchmarks.command import add_names, conclude, drawing, names_of_devices, new_parser, prepare, redraw
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
    draw = drawing(parser, options, "benchmarks.attention_charts")
    if options.draw is not None:
        return redraw(options, draw)
    dtypes = options.dtypes or DEFAULT_DTYPES[options.device]
    if options.floor:
        print_floor(options.shapes, options.device, dtypes)
        return 0
    prepare(parser, options)
    settings = Settings(
        device=options.device,
        shapes=options.shapes,
        dtypes=dtypes,
        passes=options.passes,
        quick=options.quick,
        crossing=options.crossing,
    )
    result = run(settings, report=print_records)
    print_summary(result)
    return conclude(result, options, draw)


def run_on_gpu(deadline: float, *, rehearsal: bool = False) -> dict[str, Any]:
    """What `python -m benchmarks.gpu` runs of this benchmark; nothing is begun after `deadline` (`time.monotonic`).

    A rehearsal is on a CPU, in float32: the interpreter of the kernels knows no bfloat16.
    """
    settings = Settings(device="cuda", dtypes=DEFAULT_DTYPES["cuda"], crossing=True)
    if rehearsal:
        settings = Settings(device="cpu", dtypes=("float32",), crossing=True, rehearsal=True)
    result = run(settings, deadline=deadline, report=print_records)
    print_summary(result)
    return result


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = new_parser(__doc__)
    add_names(parser, "--shapes", "shape", SHAPES, default=tuple(SHAPES), or_none=True)
    add_names(parser, "--dtypes", "dtype", DTYPES, default=None, shown_default=names_of_devices(DEFAULT_DTYPES))
    add_names(parser, "--passes", "pass", PASSES, default=PASSES)
    parser.add_argument(
        "--crossing", action="store_true", help="also measure from how many queries projecting is faster"
    )
    parser.add_argument(
        "--floor", action="store_true", help="measure nothing: print what must move and be computed, as Markdown"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
