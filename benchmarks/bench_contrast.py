"""The multilevel tracklet contrastive loss, and contrast across a batch, beside what a user would pick instead.

    python benchmarks/bench_contrast.py
    python benchmarks/bench_contrast.py --device cuda --out result.json --plots plots

`mtc_loss` (shapes paper, batch, dense), the sum of its three terms:

    naive                    the paper's text written down: loops over frames and steps, matrices of cosines kept
    vectorised               the definition, all frames at once
    vectorised compiled      the same under torch.compile
    art_kernels              mtc_loss as it chooses its backend
    art_kernels, CUDA graph  the same, forward and backward captured and replayed (on a GPU)

`tracklet_nce` (shapes nce-4k, nce-32k, nce-128k), symmetric, one positive each:

    materialised             the matrix of logits, F.cross_entropy over rows and columns
    materialised compiled    the same under torch.compile
    memeff                   MemoryEfficientCLIPLoss of that package, where it is installed (on a GPU)
    art_kernels              tracklet_nce as it chooses its backend

Before it is timed, each one's value and gradients are compared with float64. On a CPU sizes are cut, and it says so.
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
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda, but torch sees no CUDA device here; use --device cpu")
    draw = None
    if options.plots is not None:  # what drawing needs is looked for before the measuring
        from benchmarks.contrast_charts import draw
    if options.threads is not None:
        torch.set_num_threads(options.threads)
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
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    for path in draw(result, options.plots) if draw is not None else ():
        print(f"drew {path}")
    return 1 if result["failures"] else 0


def run_on_gpu(deadline: float) -> dict[str, Any]:
    """What `python -m benchmarks.gpu` runs of this benchmark; nothing is begun after `deadline` (`time.monotonic`)."""
    result = run(Settings(device="cuda", dtypes=DEFAULT_DTYPES["cuda"]), deadline=deadline, report=print_records)
    print_summary(result)
    return result


def make_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shapes", type=_names("shape", SHAPES), metavar="NAME,...", default=tuple(SHAPES),
        help=f"some of {', '.join(SHAPES)} (default: all)",
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
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads on the CPU (default: PyTorch's choice)")
    parser.add_argument("--quick", action="store_true", help="few repetitions, small sizes: only to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the result into this folder (needs matplotlib)")
    return parser


def _names(kind: str, known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is no {kind}, expected some of {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
