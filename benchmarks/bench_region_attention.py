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
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: the folder of `benchmarks` and `art_kernels` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.attention_measure import Settings, run
from benchmarks.attention_shapes import PASSES, SHAPES
from benchmarks.attention_table import print_floor, print_records, print_summary
from benchmarks.findings import DTYPES

Draw = Callable[[dict[str, Any], Path], list[Path]]

#: Of each device where none are asked for: what is used there.
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0, or 1 where a provider failed or computed something else.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    draw = _drawing(parser, options)
    if options.draw is not None:
        _draw(draw, json.loads(options.draw.read_text()), options.plots)
        return 0
    if options.floor:
        print_floor(options.shapes, options.device, options.dtypes or DEFAULT_DTYPES[options.device])
        return 0
    settings = _settings(parser, options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result = run(settings, report=print_records)
    print_summary(result)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    _draw(draw, result, options.plots)
    return 1 if result["failures"] else 0


def run_on_gpu(deadline: float) -> dict[str, Any]:
    """What `python -m benchmarks.gpu` runs of this benchmark; nothing is begun after `deadline` (`time.monotonic`)."""
    settings = Settings(device="cuda", dtypes=DEFAULT_DTYPES["cuda"], crossing=True)
    result = run(settings, deadline=deadline, report=print_records)
    print_summary(result)
    return result


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shapes", type=_names("shape", SHAPES, or_none=True), metavar="NAME,...", default=tuple(SHAPES),
        help=f"some of {', '.join(SHAPES)} (default: all), or none",
    )  # fmt: skip
    defaults = "; ".join(f"on {device} {', '.join(dtypes)}" for device, dtypes in DEFAULT_DTYPES.items())
    parser.add_argument(
        "--dtypes", type=_names("dtype", DTYPES), metavar="NAME,...",
        help=f"some of {', '.join(DTYPES)} (default: {defaults})",
    )  # fmt: skip
    parser.add_argument(
        "--passes", type=_names("pass", PASSES), metavar="NAME,...", default=PASSES,
        help=f"some of {', '.join(PASSES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--crossing", action="store_true", help="also measure from how many queries projecting is faster"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads on the CPU (default: PyTorch's choice)")
    parser.add_argument("--quick", action="store_true", help="few repetitions, few frames: only to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the result into this folder (needs matplotlib)")
    parser.add_argument(
        "--floor", action="store_true", help="measure nothing: print what must move and be computed, as Markdown"
    )
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="measure nothing: draw this result into --plots")
    return parser


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda, but torch sees no CUDA device here; use --device cpu")
    return Settings(
        device=options.device,
        shapes=options.shapes,
        dtypes=options.dtypes or DEFAULT_DTYPES[options.device],
        passes=options.passes,
        quick=options.quick,
        crossing=options.crossing,
    )


def _draw(draw: Draw | None, result: dict[str, Any], folder: Path) -> None:
    for path in draw(result, folder) if draw is not None else ():
        print(f"drew {path}")


def _drawing(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Draw | None:
    """The function that draws, where there is something to draw: what it needs is looked for before the measuring."""
    if options.draw is not None:
        if options.plots is None:
            parser.error("argument --draw: needs --plots DIR, the folder for the pictures")
        if not options.draw.is_file():
            parser.error(f"argument --draw: {options.draw} is no file, expected the --out of an earlier run")
    if options.plots is None:
        return None
    try:
        from benchmarks.attention_charts import draw
    except ImportError as error:
        parser.error(f"argument --plots: {error}; install the project (pip install -e .), or leave out --plots")
    return draw


def _names(kind: str, known: Collection[str], *, or_none: bool = False) -> Callable[[str], tuple[str, ...]]:
    """A parser of names joined by commas."""

    def parse(text: str) -> tuple[str, ...]:
        if or_none and text == "none":
            return ()
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                expected = ", ".join(known) + (", or none alone" if or_none else "")
                raise argparse.ArgumentTypeError(
                    f"{name!r} is no {kind}, expected some of {expected}, joined by commas"
                )
        return names

    return parse


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
