"""The multilevel contrastive loss, pooling, and contrast across a batch vs. their alternatives in PyTorch.

    python benchmarks/bench_contrast.py
    python benchmarks/bench_contrast.py --device cuda --out result.json --plots plots

`mtc_loss` (shapes paper, batch, dense), the sum of its three terms:

    naive                    the equations of the paper: loops over frames and steps, cosine matrices kept
    vectorized               all frames at once
    vectorized compiled      the same under torch.compile
    art_kernels              mtc_loss, which selects its backend
    art_kernels, CUDA graph  the same, forward and backward captured and replayed (GPU only)

`pool_tracklets` (shapes pool-paper, pool-batch, pool-dense), with one semantic per tracklet, reduced to the mean square
of the pooled tracklets. The same providers; "naive" loops over tracklets and semantics.

`tracklet_nce` (shapes nce-4k, nce-32k, nce-128k), symmetric, one positive each:

    materialized             the matrix of logits, F.cross_entropy over rows and columns
    materialized compiled    the same under torch.compile
    memeff                   MemoryEfficientCLIPLoss of that package, if installed (GPU only)
    art_kernels              tracklet_nce, which selects its backend

Before timing, each provider's value and gradients are compared with float64. On a CPU, sizes are reduced as reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from benchmarks.common.measure import (
    DTYPES,
    OURS,
    Limits,
    measure_limits,
    measure_providers,
    require_accurate,
)
from benchmarks.common.results import (
    LIMIT_COLUMNS,
    SPEEDUP_COLUMNS,
    TIME_COLUMNS,
    Record,
    Results,
    add_names,
    new_parser,
    per_device,
    print_footer,
    print_table,
    run_command,
)
from benchmarks.common.timing import DEFAULT, QUICK, TimingConfig, capture_graph
from benchmarks.contrast_providers import (
    OURS_REPLAYED,
    PASSES,
    PROVIDERS,
    SHAPES,
    ContrastShape,
    Loss,
    build,
    draw_inputs,
    errors,
    oracle,
    pass_call,
    served_by,
    unsupported_reason,
)

QUICK_SHAPES = ("paper", "pool-paper", "nce-4k")
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
#: All shapes together take less than three minutes on a CPU.
CPU_TIMING = TimingConfig(min_rounds=5, min_seconds=0.3, max_seconds=6.0, warmups=1)


@dataclass(frozen=True)
class Settings:
    """What to measure: names in `SHAPES`, `DTYPES` and `PASSES`; `quick` for minimal sizes and repetitions."""

    device: str = "cpu"
    shapes: tuple[str, ...] = tuple(SHAPES)
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = PASSES
    quick: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a provider failed or computed wrong values."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    dtypes = options.dtypes or DEFAULT_DTYPES[options.device]
    shapes = options.shapes or (QUICK_SHAPES if options.quick else tuple(SHAPES))
    settings = Settings(options.device, shapes, dtypes, options.passes, options.quick)
    return run_command(parser, options, partial(run, settings), draw)


def run_on_gpu(deadline: float, *, quick: bool = False) -> dict[str, Any]:
    """Run the part of this benchmark that `python -m benchmarks.gpu` includes.

    Args:
        deadline: value of `time.monotonic()` after which no new case starts.
        quick: minimal sizes on a CPU, in float32: Triton's interpreter does not support bfloat16.
    """
    settings = Settings(quick=True) if quick else Settings("cuda", dtypes=DEFAULT_DTYPES["cuda"])
    return run(settings, deadline=deadline)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__)
    default_text = f"all; with --quick {', '.join(QUICK_SHAPES)}"
    add_names(parser, "--shapes", "shape", SHAPES, default=None, default_text=default_text)
    add_names(
        parser, "--dtypes", "dtype", ("bfloat16", "float16", "float32"), default=None,
        default_text=per_device(DEFAULT_DTYPES),
    )  # fmt: skip
    add_names(parser, "--passes", "pass", PASSES, default=PASSES)
    return parser


def run(settings: Settings, *, deadline: float | None = None) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md."""
    device = torch.device(settings.device)
    timing = QUICK if settings.quick else CPU_TIMING if device.type == "cpu" else DEFAULT["cuda"]
    limits = measure_limits(device, settings.dtypes, timing, quick=settings.quick)
    results = Results("contrast", device, settings, timing, deadline, print_records)
    for dtype in settings.dtypes:
        for name in settings.shapes:
            shape = SHAPES[name].sized(device, quick=settings.quick)
            if shape is None:
                results.skip("it would take minutes on a CPU", shape=name, dtype=dtype)
                continue
            if shape.sizes != SHAPES[name].sizes and not settings.quick:
                reason = f"reduced to {shape.describe()} from {SHAPES[name].sizes[0]}"
                results.skip(reason, shape=name, dtype=dtype)
            with results.case(shape=name, dtype=dtype):
                _measure_shape(results, shape, dtype, limits)
    result = results.to_dict(**asdict(limits))
    print_footer(result)
    return result


def _measure_shape(results: Results, shape: ContrastShape, dtype: str, limits: Limits) -> None:
    case = {"shape": shape.name, "dtype": dtype}
    if results.out_of_time(**case):
        return
    inputs = draw_inputs(shape, results.device, DTYPES[dtype])
    losses, found = _accurate_losses(results, shape, inputs, case)
    entries = {
        provider: {"served_by": served_by(provider, shape, inputs), "errors": found[provider]} for provider in losses
    }
    sizes = {"operation": shape.operation, "sizes": list(shape.sizes)}
    for pass_name in results.settings.passes:
        if results.out_of_time(**case, **{"pass": pass_name}):
            continue
        calls = {}
        for provider, loss in losses.items():
            if provider != OURS_REPLAYED:
                calls[provider] = pass_call(pass_name, loss, inputs)
            elif pass_name == "both":
                calls[provider] = capture_graph(pass_call(pass_name, loss, inputs))
        results.records += measure_providers(
            results, calls, {**case, **sizes, "pass": pass_name}, entries, dtype=dtype, limits=limits,
            moved_bytes=shape.moved_bytes(DTYPES[dtype], pass_name), operations=shape.operations(pass_name),
        )  # fmt: skip


def _accurate_losses(
    results: Results, shape: ContrastShape, inputs: Sequence[Tensor], case: Mapping[str, str]
) -> tuple[dict[str, Loss], dict[str, dict[str, float]]]:
    """Return each provider that runs here and computes the right values, and its errors."""
    true_values = oracle(shape, inputs)
    losses: dict[str, Loss] = {}
    found: dict[str, dict[str, float]] = {}
    for provider in PROVIDERS[shape.operation]:
        if provider == OURS_REPLAYED and results.device.type != "cuda":
            continue
        reason = unsupported_reason(provider, shape, results.device)
        if reason is not None:
            results.skip(reason, **case, provider=provider)
            continue
        with results.catch_failure(**case, provider=provider):
            loss = build(provider, shape, quick=results.settings.quick)
            value = loss(*inputs)
            own = errors([value.detach(), *torch.autograd.grad(value, inputs)], true_values)
            require_accurate(own, next(iter(found.values()), own), floor=1e-6)
            losses[provider], found[provider] = loss, own
    return losses, found


def print_records(records: list[Record]) -> None:
    """Print the table of one shape and dtype; the columns are explained in README.md."""
    first = records[0]
    shape = replace(SHAPES[first["shape"]], sizes=tuple(first["sizes"]))
    print(f"\n{shape.name}, {first['dtype']}: {shape.operation}, {shape.describe()}")
    for record in {record["pass"]: record for record in records}.values():
        print(f"  {record['pass']}: {record['moved_bytes'] / 1e6:.2f} MB and {record['operations'] / 1e9:.3g} GFLOP")
    columns = {"pass": lambda record: record["pass"], "provider": lambda record: record["provider"]}
    print_table({**columns, **TIME_COLUMNS, **SPEEDUP_COLUMNS, **LIMIT_COLUMNS}, records)


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw time and memory of the pass "both": one figure for the losses and one for pooling per dtype."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct, save_figures

    figures = {}
    for dtype in distinct(result["records"], "dtype"):
        records = [record for record in result["records"] if (record["dtype"], record["pass"]) == (dtype, "both")]
        for name, is_pooling in (("contrast", False), ("pooling", True)):
            own = [record for record in records if (record["operation"] == "pool_tracklets") == is_pooling]
            rows = []
            for shape in distinct(own, "shape"):
                found = [record for record in own if record["shape"] == shape]
                sizes = " × ".join(str(size) for size in found[0]["sizes"])
                providers = [record["provider"] for record in found]
                times = [record["median_ms"] for record in found]
                memory = [record["peak_extra_bytes"] / 2**20 for record in found]
                rows.append(
                    [
                        BarPanel(f"{shape}, {found[0]['operation']} of {sizes}: ms", providers, times, OURS),
                        BarPanel("extra memory, MiB", providers, memory, OURS, labeled=False),
                    ]
                )
            if rows:
                subtitle = f"{dtype}, forward and backward, {result['machine']['device']}"
                figures[f"{name}-{dtype}"] = bar_figure(rows, name.capitalize(), subtitle)
    return save_figures(figures, directory)


if __name__ == "__main__":
    sys.exit(main())
