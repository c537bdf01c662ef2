"""Exact batched assignment, and tracklet linking based on it, vs. other solvers.

    python benchmarks/bench_linking.py
    python benchmarks/bench_linking.py --device cuda --out result.json --plots plots

`linear_assignment`, a batch of problems of K rows. Costs are uniform, normal, or "responses": the negative cosines of
adjacent frames, whose responses change slowly, share a component and are in random order.

    scipy                    a loop over scipy.optimize.linear_sum_assignment; the baseline
    lapx                     the faster of lapjvr_batch and lapjvh_batch, with the number of threads of PyTorch
    lapcpp                   lapjv_batch, with the number of threads of PyTorch
    torch-linear-assignment  batch_linear_assignment (GPU only)
    art_kernels              linear_assignment
    ..., to host             the same with the columns copied to the host (GPU only)

Peers return pairs without costs, and on a CPU their lists of small arrays are not converted to one array, which would
take longer than solving. On a GPU, solvers on the host include copying the costs and columns.

`link_tracklets`, from responses [B,T,K,C] to order and similarity:

    loop + scipy             frame by frame: cosine matrix, SciPy, composition; the baseline
    vectorized + lapcpp      all cosines at once, lapjv_batch, composition frame by frame for all videos
    vectorized + torch-linear-assignment    the same with that solver (GPU only)
    art_kernels              link_tracklets, which also numbers the tracklets
    art_kernels, CUDA graph  the same, captured and replayed (GPU only)

Before timing, sums of costs are compared with SciPy's optimum, and similarities with cosines in float64. Peers that are
not installed are reported as skipped: pip install -c constraints.txt ".[bench]".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from benchmarks import linking_providers as providers
from benchmarks import require_compiled_module
from benchmarks.common.measure import (
    DTYPES,
    OURS,
    TO_HOST,
    Limits,
    chosen_backend,
    compare_times,
    measure_limits,
    measure_providers,
    peak_extra_bytes,
)
from benchmarks.common.results import (
    LIMIT_COLUMNS,
    SPEEDUP_COLUMNS,
    TIME_COLUMNS,
    Columns,
    Record,
    Results,
    add_names,
    new_parser,
    print_footer,
    print_table,
    run_command,
    speedup,
)
from benchmarks.common.timing import QUICK, Timing, TimingConfig, capture_graph, time_calls
from benchmarks.linking_providers import KINDS, SHAPES, SIZES, AssignmentShape, LinkingShape, Solver

#: Everything together takes less than three minutes on a CPU and less than two on a GPU.
TIMINGS = {
    "cpu": TimingConfig(min_rounds=5, min_seconds=0.3, max_seconds=3.5, warmups=1),
    "cuda": TimingConfig(min_rounds=5, min_seconds=0.05, max_seconds=0.8, warmups=1),
}
Case = Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """What to measure: problem sizes in `SIZES`, their costs in `KINDS`, responses in `SHAPES`; `quick` for minimal
    sizes and repetitions."""

    device: str = "cpu"
    sizes: tuple[str, ...] = SIZES
    kinds: tuple[str, ...] = KINDS
    shapes: tuple[str, ...] = tuple(SHAPES)
    dtypes: tuple[str, ...] = ("float32",)
    quick: bool = False


@dataclass(frozen=True)
class Candidate:
    """A solver that finds the optimum, the largest deviation of its sums, and the costs that it is timed with."""

    solver: Solver
    error: float
    costs: Tensor

    @property
    def name(self) -> str:
        """Provider and function."""
        return f"{self.solver.provider}, {self.solver.function}"

    def call(self) -> object:
        """Solve the problems."""
        return self.solver.solve(self.costs)

    def microseconds(self, timing: Timing) -> float:
        """Return the time per problem."""
        return 1e3 * timing.median_ms / len(self.costs)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a provider failed or did not find the optimum."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    settings = Settings(options.device, options.sizes, options.kinds, options.shapes, options.dtypes, options.quick)
    return run_command(parser, options, partial(run, settings), draw)


def run_on_gpu(deadline: float, *, quick: bool = False) -> dict[str, Any]:
    """Run the part of this benchmark that `python -m benchmarks.gpu` includes.

    Args:
        deadline: value of `time.monotonic()` after which no new case starts.
        quick: minimal sizes on a CPU.
    """
    return run(Settings(device="cpu" if quick else "cuda", quick=quick), deadline=deadline)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__)
    add_names(parser, "--sizes", "size", SIZES, default=SIZES, allow_none=True)
    add_names(parser, "--kinds", "kind of costs", KINDS, default=KINDS)
    add_names(parser, "--shapes", "shape", SHAPES, default=tuple(SHAPES), allow_none=True)
    add_names(
        parser, "--dtypes", "dtype", ("float32", "float64"), default=("float32",), default_text="float32"
    )  # fmt: skip
    return parser


def run(settings: Settings, *, deadline: float | None = None) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md, with the versions of the "peers" and
    the solvers whose optimum was the oracle ("optimum_of")."""
    require_compiled_module()
    device = torch.device(settings.device)
    timing = QUICK if settings.quick else TIMINGS[device.type]
    limits = measure_limits(device, settings.dtypes, timing, quick=settings.quick)
    results = Results("linking", device, settings, timing, deadline, print_records)
    if settings.sizes and settings.kinds:
        for provider in providers.assignment_providers(device):
            _skip_unsupported(results, "linear_assignment", provider, providers.unsupported_reason(provider, device))
    for provider in providers.linking_providers(device) if settings.shapes else ():
        reason = providers.linking_unsupported_reason(provider, device)
        _skip_unsupported(results, "link_tracklets", provider, reason)
    for dtype in settings.dtypes:
        for name in settings.shapes:
            case = {"operation": "link_tracklets", "shape": name, "dtype": dtype}
            with results.case(**case):
                measure_linking(results, case, SHAPES[name].sized(quick=settings.quick), limits)
        for kind in settings.kinds:
            for size in settings.sizes:
                case = {"operation": "linear_assignment", "kind": kind, "size": size, "dtype": dtype}
                with results.case(**case):
                    shape = providers.assignment_shape(size, device, quick=settings.quick)
                    measure_assignment(results, case, shape, limits)
    sizes = [*map(int, settings.sizes), *(SHAPES[name].sizes[2] for name in settings.shapes)]
    oracles = sorted({solver.provider for solver in map(providers.oracle, sizes) if solver is not None})
    result = results.to_dict(**asdict(limits), peers=providers.peer_versions(), optimum_of=oracles)
    print_footer(
        result, ", ".join(f"{name} {version}" for name, version in result["peers"].items()), *_speedup_notes(result)
    )
    return result


def _skip_unsupported(results: Results, operation: str, provider: str, reason: str | None) -> None:
    if reason is not None:
        results.skip(reason, operation=operation, provider=provider)


def measure_assignment(results: Results, case: Case, shape: AssignmentShape, limits: Limits) -> None:
    """Measure all providers with costs of one kind and size; of each provider the fastest function counts."""
    if results.out_of_time(**case):
        return
    if providers.oracle(shape.size) is None:
        results.skip(providers.NO_ORACLE, **case)
        return
    dtype = DTYPES[case["dtype"]]
    costs = providers.draw_costs(case["kind"], shape.problems, shape.size, results.device, dtype)
    candidates = _optimal_solvers(results, case, shape, costs)
    timings = time_calls({one.name: one.call for one in candidates}, results.device, results.timing)
    fastest: dict[str, Candidate] = {}
    for one in candidates:
        best = fastest.get(one.solver.provider)
        if best is None or one.microseconds(timings[one.name]) < best.microseconds(timings[best.name]):
            fastest[one.solver.provider] = one
    times = {provider: one.microseconds(timings[one.name]) for provider, one in fastest.items()}
    for provider, one in fastest.items():
        timing, moved = timings[one.name], shape.moved_bytes(dtype, len(one.costs))
        # On a CPU the allocations of the peers bypass PyTorch's allocator.
        peak = peak_extra_bytes(one.call, results.device) if results.device.type == "cuda" else None
        results.records.append(
            {
                **case,
                "size": shape.size,
                "provider": provider,
                "function": one.solver.function,
                "served_by": _served_by("linear_assignment", provider, costs),
                "problems": len(one.costs),
                **asdict(timing),
                "microseconds": times[provider],
                "problems_a_second": 1e6 / times[provider],
                **compare_times(provider, times),
                "peak_extra_bytes": peak,
                "moved_bytes": moved,
                **limits.compare(timing, moved, 0, case["dtype"]),
                "errors": {"sum": one.error},
            }
        )


def _optimal_solvers(results: Results, case: Case, shape: AssignmentShape, costs: Tensor) -> list[Candidate]:
    """Return every available function that finds the optimum.

    On a GPU, problems spread over the batch are compared, and all rows of the batch must be permutations.
    """
    where = torch.arange(shape.on_host) * shape.problems // shape.on_host
    sample = costs[where.to(results.device)]
    optimal = providers.optimal_sums(sample)
    found = []
    for provider in providers.assignment_providers(results.device):
        if providers.unsupported_reason(provider, results.device) is not None:
            continue
        for solver in providers.solvers(provider):
            with results.catch_failure(**case, provider=provider):
                columns = providers.as_columns(solver.solve(sample if solver.on_host else costs))
                providers.require_permutations(columns)
                error = providers.excess(sample, columns if solver.on_host else columns.cpu()[where], optimal)
                on_host = shape.in_a_loop if provider == providers.SCIPY else shape.on_host
                found.append(Candidate(solver, error, costs[: on_host if solver.on_host else shape.problems]))
    return found


def measure_linking(results: Results, case: Case, shape: LinkingShape, limits: Limits) -> None:
    """Measure all providers with the responses of one shape."""
    if results.out_of_time(**case):
        return
    if providers.oracle(shape.sizes[2]) is None:
        results.skip(providers.NO_ORACLE, **case)
        return
    dtype = DTYPES[case["dtype"]]
    generator = torch.Generator(results.device).manual_seed(0)
    responses = providers.draw_responses(*shape.sizes, generator, results.device).to(dtype)
    calls, errors = {}, {}
    for provider in providers.linking_providers(results.device):
        if providers.linking_unsupported_reason(provider, results.device) is not None:
            continue
        with results.catch_failure(**case, provider=provider):
            call: Any = partial(providers.build_link(provider), responses)
            if provider == providers.OURS_REPLAYED:
                call = capture_graph(call)
            errors[provider] = providers.link_errors(responses, *call())
            calls[provider] = call
    entries = {
        name: {"served_by": _served_by("link_tracklets", name, responses), "errors": errors[name]} for name in calls
    }
    records = measure_providers(
        results, calls, {**case, "sizes": list(shape.sizes)}, entries, dtype=case["dtype"], limits=limits,
        moved_bytes=shape.moved_bytes(dtype), operations=shape.operations(),
    )  # fmt: skip
    for record in records:
        record["microseconds"] = 1e3 * record["median_ms"] / shape.pairs
    results.records += records


def _served_by(operation: str, provider: str, tensor: Tensor) -> str | None:
    return chosen_backend(operation, tensor) if provider.startswith(OURS) else None


def print_records(records: list[Record]) -> None:
    """Print the table of one case; the columns are explained in README.md. "µs each" is the time per problem, or per
    pair of adjacent frames."""
    first = records[0]
    columns: Columns = {"provider": lambda record: record["provider"]}
    if first["operation"] == "linear_assignment":
        print(f"\nassignment of {first['size']} rows, {first['kind']}, {first['dtype']}")
        columns = {
            **columns,
            "function": lambda record: record["function"],
            "problems": lambda record: f"{record['problems']:,}",
        }
    else:
        shape = LinkingShape(first["shape"], first["sizes"])
        print(f"\nlinking, {shape.name}, {first['dtype']}: {shape.describe()}")
        print(f"  {first['moved_bytes'] / 1e6:.2f} MB and {first['operations'] / 1e9:.3g} GFLOP")
    each: Columns = {"µs each": lambda record: f"{record['microseconds']:.4g}"}
    print_table({**columns, **TIME_COLUMNS, **each, **SPEEDUP_COLUMNS, **LIMIT_COLUMNS}, records)


def _speedup_notes(result: dict[str, Any]) -> list[str]:
    """Return one line per case: the speedup of art_kernels over the best alternative."""
    notes = []
    for record in result["records"]:
        if record["speedup_over_best_other"] is not None:
            case = [record["kind"], f"{record['size']} rows"] if "kind" in record else [record["shape"]]
            notes.append(
                f"{', '.join([record['operation'], record['dtype'], *case, record['provider']])}: "
                f"{speedup(record['speedup_over_best_other'])} vs the best alternative ({record['best_other']})"
            )
    return notes


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw for each dtype the assignment problems and the linking."""
    from benchmarks.common.charts import distinct, save_figures

    figures = {}
    machine = result["machine"]
    for dtype in distinct(result["records"], "dtype"):
        subtitle = f"{dtype}, {machine['device']}, {machine['threads']} threads"
        for operation, name, figure in (
            ("linear_assignment", "assignment", assignment_figure),
            ("link_tracklets", "linking", linking_figure),
        ):
            records = [r for r in result["records"] if (r["dtype"], r["operation"]) == (dtype, operation)]
            if records:
                figures[f"{name}-{dtype}"] = figure(records, subtitle)
    return save_figures(figures, directory)


def assignment_figure(records: list[Record], subtitle: str) -> Any:
    """Draw the time per problem over the number of rows, one panel per kind of costs; the points of art_kernels are
    labeled with the speedup over the best alternative."""
    from matplotlib.axes import Axes

    from benchmarks.common.charts import LINE_COLORS, LinePanel, Series, distinct, format_number, line_figure, log_axes

    ticks = sorted(distinct(records, "size"))
    peers = [name for name in distinct(records, "provider") if not name.startswith(OURS) and not name.endswith(TO_HOST)]
    colors = {OURS: LINE_COLORS[0], **dict(zip(peers, LINE_COLORS[1:], strict=False))}

    def configure(axes: Axes) -> None:
        log_axes(axes, ticks, y_ticks=(1.0,))
        axes.set(xlabel="rows, K", ylabel="microseconds per problem", xlim=(ticks[0] / 1.4, ticks[-1] * 2.2))

    def series(kind: str, provider: str) -> Series:
        own = sorted((r for r in records if (r["kind"], r["provider"]) == (kind, provider)), key=lambda r: r["size"])
        style = {"color": colors[provider.removesuffix(TO_HOST)], "lw": 2.0 if provider.startswith(OURS) else 1.2}
        style |= {"linestyle": "dashed"} if provider.endswith(TO_HOST) else {}
        ratios = [record["speedup_over_best_other"] for record in own]
        notes = ["" if ratio is None else f"{format_number(ratio)}×" for ratio in ratios] if provider == OURS else None
        return Series(provider, [r["size"] for r in own], [r["microseconds"] for r in own], style, notes)

    panels = [
        LinePanel(f"{kind} costs", [series(kind, provider) for provider in distinct(records, "provider")], configure)
        for kind in distinct(records, "kind")
    ]
    return line_figure([panels], "Exact assignment of K rows to K columns, batched", subtitle)


def linking_figure(records: list[Record], subtitle: str) -> Any:
    """Draw the time of each provider, one panel per shape."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct

    rows = []
    for shape in distinct(records, "shape"):
        own = [record for record in records if record["shape"] == shape]
        title = f"{shape}, {LinkingShape(shape, own[0]['sizes']).describe()}: ms"
        rows.append([BarPanel(title, [r["provider"] for r in own], [r["median_ms"] for r in own], OURS)])
    return bar_figure(rows, "Linking: cosines, assignment, order through the video", subtitle)


if __name__ == "__main__":
    sys.exit(main())
