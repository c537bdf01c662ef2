"""Region attention vs. the alternatives in PyTorch: time, memory, and distance from the limits of the device.

    python benchmarks/bench_region_attention.py --device cuda --out result.json --plots plots
    python benchmarks/bench_region_attention.py --shapes art-256,detr --passes both --crossing

Multi-head cross-attention from K queries to N regions per frame, as computed by
`nn.MultiheadAttention(E, H, kdim=C, vdim=C)`. All providers get the same inputs and weights:

    nn.MultiheadAttention   need_weights=False; the baseline
    sdpa                    projections, F.scaled_dot_product_attention, output projection
    sdpa compiled           the same under torch.compile
    folded                  the folded form in plain PyTorch: einsum, bmm and softmax, no kernel of this package
    folded compiled         the same under torch.compile
    art_kernels             RegionCrossAttention, which selects route and backend

Before timing, each provider's output and gradients are compared with nn.MultiheadAttention in float64. "vs folded" is
the speedup over the folded form in plain PyTorch: what the implementation contributes on top of the algebra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from benchmarks.attention_providers import (
    BASELINE,
    FOLDED,
    FOLDED_COMPILED,
    PASSES,
    PROVIDERS,
    SHAPES,
    AttentionShape,
    RegionAttention,
    build,
    draw_inputs,
    errors,
    floor,
    oracle,
    pass_call,
    projected_operations,
    route_of,
    served_by,
    unsupported_reason,
    values_and_gradients,
)
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
    speedup,
)
from benchmarks.common.timing import DEFAULT, QUICK, time_calls

QUICK_SHAPES = ("art-256", "uniformerv2-b")
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
ROUTES = ("folded", "projected")
#: The number of queries from which projecting is faster is measured with N=196, C=E=256, 8 heads.
CROSSING = AttentionShape("crossing", 128, 16, 1, 196, 256, 256, 8)
CROSSING_QUERIES = (1, 2, 4, 8, 16, 20, 24, 28, 30, 31, 32, 36, 40, 48, 64, 96, 128, 192, 256)
CROSSING_PASSES = ("forward", "both")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        device: "cpu" or "cuda".
        shapes: names in `SHAPES`.
        dtypes: names in `DTYPES`.
        passes: names in `PASSES`.
        providers: names in `PROVIDERS`; the baseline and art_kernels are always measured.
        quick: minimal sizes and repetitions.
        crossing: whether to measure from how many queries projecting is faster, in the first dtype.
    """

    device: str = "cpu"
    shapes: tuple[str, ...] = tuple(SHAPES)
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = PASSES
    providers: tuple[str, ...] = PROVIDERS
    quick: bool = False
    crossing: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a provider failed or computed wrong values."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    dtypes = options.dtypes or DEFAULT_DTYPES[options.device]
    shapes = options.shapes
    if shapes is None:
        shapes = QUICK_SHAPES if options.quick else tuple(SHAPES)
    if options.floor:
        print_floor(shapes, options.device, dtypes)
        return 0
    settings = Settings(
        options.device, shapes, dtypes, options.passes, options.providers, options.quick, options.crossing
    )
    return run_command(parser, options, partial(run, settings), draw)


def run_on_gpu(deadline: float, *, quick: bool = False) -> dict[str, Any]:
    """Run the part of this benchmark that `python -m benchmarks.gpu` includes.

    Args:
        deadline: value of `time.monotonic()` after which no new case starts.
        quick: minimal sizes on a CPU, in float32: Triton's interpreter does not support bfloat16.
    """
    if quick:
        return run(Settings(crossing=True, quick=True), deadline=deadline)
    providers = tuple(name for name in PROVIDERS if name != FOLDED_COMPILED)  # compiling it would not fit in the time
    settings = Settings("cuda", dtypes=DEFAULT_DTYPES["cuda"], providers=providers, crossing=True)
    return run(settings, deadline=deadline)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__)
    default_text = f"all; with --quick {', '.join(QUICK_SHAPES)}"
    add_names(parser, "--shapes", "shape", SHAPES, default=None, default_text=default_text, allow_none=True)
    add_names(
        parser, "--dtypes", "dtype", ("bfloat16", "float16", "float32"), default=None,
        default_text=per_device(DEFAULT_DTYPES),
    )  # fmt: skip
    add_names(parser, "--passes", "pass", PASSES, default=PASSES)
    add_names(parser, "--providers", "provider", PROVIDERS, default=PROVIDERS)
    parser.add_argument(
        "--crossing", action="store_true", help="also measure from how many queries projecting is faster than folding"
    )
    parser.add_argument(
        "--floor", action="store_true", help="measure nothing: print minimum bytes and operations as Markdown"
    )
    return parser


def run(settings: Settings, *, deadline: float | None = None) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md, with "crossing" (or None)."""
    device = torch.device(settings.device)
    timing = QUICK if settings.quick else DEFAULT[device.type]
    limits = measure_limits(device, settings.dtypes, timing, quick=settings.quick)
    results = Results("region_attention", device, settings, timing, deadline, print_records)
    for provider in settings.providers:
        reason = unsupported_reason(provider, device)
        if reason is not None:
            results.skip(reason, provider=provider)
    for dtype in settings.dtypes:
        for name in settings.shapes:
            with results.case(shape=name, dtype=dtype):
                _measure_shape(results, SHAPES[name].sized(device, quick=settings.quick), dtype, limits)
    crossing = None
    if settings.crossing:
        with results.catch_failure(shape="crossing", dtype=settings.dtypes[0]):
            crossing = measure_crossing(results, settings.dtypes[0], quick=settings.quick)
    result = results.to_dict(**asdict(limits), crossing=crossing)
    print_footer(result, *_speedup_notes(result["records"]), *(_crossing_notes(crossing) if crossing else ()))
    return result


def _measure_shape(results: Results, shape: AttentionShape, dtype: str, limits: Limits) -> None:
    case = {"shape": shape.name, "dtype": dtype}
    if results.out_of_time(**case):
        return
    inputs = draw_inputs(shape, results.device, DTYPES[dtype])
    true_values = oracle(shape, inputs)
    modules: dict[str, nn.Module] = {}
    found: dict[str, dict[str, float]] = {}
    for provider in PROVIDERS:
        if provider not in (*results.settings.providers, BASELINE, OURS) or unsupported_reason(
            provider, results.device
        ):
            continue
        with results.catch_failure(**case, provider=provider):
            module = build(provider, shape, inputs, quick=results.settings.quick)
            own = errors(values_and_gradients(module, inputs), true_values)
            require_accurate(own, found.get(BASELINE, own))
            modules[provider], found[provider] = module, own
    if BASELINE not in modules:
        raise RuntimeError(f"the baseline {BASELINE} failed, so nothing can be compared with it")
    entries = {
        provider: {"served_by": served_by(provider, shape, inputs.regions), "errors": found[provider]}
        for provider in modules
    }
    sizes = {name: value for name, value in asdict(shape).items() if name not in ("name", "cpu_frames")}
    for pass_name in results.settings.passes:
        if results.out_of_time(**case, **{"pass": pass_name}):
            continue
        calls = {provider: pass_call(pass_name, module, inputs) for provider, module in modules.items()}
        least = floor(shape, DTYPES[dtype], pass_name)
        records = measure_providers(
            results, calls, {**case, **sizes, "pass": pass_name}, entries, dtype=dtype, limits=limits,
            moved_bytes=least.bytes, operations=least.operations,
        )  # fmt: skip
        folded = next((record["median_ms"] for record in records if record["provider"] == FOLDED), None)
        for record in records:
            record["speedup_over_folded"] = None if folded is None else folded / record["median_ms"]
        results.records += records


def measure_crossing(results: Results, dtype: str, *, quick: bool = False) -> dict[str, Any]:
    """Time both routes over the number of queries K.

    Returns:
        The sizes; "rule_turns_at", the smallest K for which `RegionCrossAttention` projects; "points", the time in ms
        by K, pass and route; "measured", the output of `evaluate_rule` for each pass; "queries_skipped", the K for
        which no time was left.
    """
    sized = CROSSING.sized(results.device, quick=quick)
    counts = (1, 3) if quick else CROSSING_QUERIES
    points: list[Record] = []
    skipped: list[int] = []
    for index, queries in enumerate(counts):
        if results.out_of_time(shape="crossing", dtype=dtype):
            skipped = list(counts[index:])
            break
        shape = AttentionShape(**{**asdict(sized), "queries": queries})
        inputs = draw_inputs(shape, results.device, DTYPES[dtype])
        modules = {route: RegionAttention(shape, results.device, DTYPES[dtype], route=route) for route in ROUTES}
        for module in modules.values():
            module.attention.load_state_dict(inputs.weights)
        for name in CROSSING_PASSES:
            calls = {route: pass_call(name, module, inputs) for route, module in modules.items()}
            for route, timing in time_calls(calls, results.device, results.timing).items():
                points.append({"queries": queries, "pass": name, "route": route, "ms": timing.median_ms})
    return {
        **{name: getattr(sized, name) for name in ("frames", "regions", "region_dim", "embed_dim", "num_heads")},
        "dtype": dtype,
        "rule_turns_at": next(count for count in range(1, 10**6) if rule(count) == "projected"),
        "points": points,
        "measured": {name: evaluate_rule([p for p in points if p["pass"] == name]) for name in CROSSING_PASSES},
        "queries_skipped": skipped,
    }


def rule(queries: int) -> str:
    """Return the route that `RegionCrossAttention` selects for K queries."""
    return route_of(CROSSING, queries)


def evaluate_rule(points: Sequence[Record]) -> dict[str, Any]:
    """Compare the rule with the measured times of one pass.

    Returns:
        "turns_at", the smallest measured K from which "projected" is always faster, or None; "largest_loss", the
        largest ratio of the time of the rule's route to that of the faster route, and "at_queries", its K.
    """
    by_queries: dict[int, dict[str, float]] = {}
    for point in points:
        by_queries.setdefault(point["queries"], {})[point["route"]] = point["ms"]
    folded_wins = [count for count, ms in by_queries.items() if ms["folded"] <= ms["projected"]]
    projected_wins = [count for count in sorted(by_queries) if count > max(folded_wins, default=0)]
    losses = {count: ms[rule(count)] / min(ms.values()) for count, ms in by_queries.items()}
    worst = max(losses, key=lambda count: losses[count], default=None)
    return {
        "turns_at": projected_wins[0] if projected_wins else None,
        "largest_loss": None if worst is None else losses[worst],
        "at_queries": worst,
    }


def print_records(records: list[Record]) -> None:
    """Print the table of one shape and dtype; the columns are explained in README.md."""
    first = records[0]
    normalized = " layer-normalized" if first["norm_regions"] else ""
    print(
        f"\n{first['shape']}, {first['dtype']}: {first['frames']} frames, {first['queries']} queries of "
        f"{first['embed_dim']}, {first['regions']}{normalized} regions of {first['region_dim']}, "
        f"{first['num_heads']} heads"
    )
    for record in {record["pass"]: record for record in records}.values():
        print(
            f"  {record['pass']}: at least {record['moved_bytes'] / 1e6:.1f} MB and "
            f"{record['operations'] / 1e9:.2f} GFLOP (folded)"
        )
    columns = {"pass": lambda record: record["pass"], "provider": lambda record: record["provider"]}
    folded = {"vs folded": lambda record: speedup(record["speedup_over_folded"])}
    print_table({**columns, **TIME_COLUMNS, **SPEEDUP_COLUMNS, **folded, **LIMIT_COLUMNS}, records)


def _speedup_notes(records: list[Record]) -> list[str]:
    """Return one line per measurement of this package: its speedups over the three baselines that matter."""
    return [
        f"{r['shape']}, {r['dtype']}, {r['pass']}: {speedup(r['speedup_over_baseline'])} vs {BASELINE}, "
        f"{speedup(r['speedup_over_best_other'])} vs the best alternative ({r['best_other']}), "
        f"{speedup(r['speedup_over_folded']) or 'not compared'} vs {FOLDED}"
        for r in records
        if r["provider"] == OURS
    ]


def _crossing_notes(crossing: dict[str, Any]) -> list[str]:
    notes = [f"routes: the rule projects from {crossing['rule_turns_at']} queries per frame"]
    for pass_name, found in crossing["measured"].items():
        if found["at_queries"] is not None:
            turns = "folding is always faster" if found["turns_at"] is None else f"faster from {found['turns_at']}"
            notes.append(
                f"  {pass_name}: projecting, measured: {turns}; the rule's route takes at most "
                f"{found['largest_loss']:.2f} times the time of the faster one, at {found['at_queries']} queries"
            )
    return notes


def print_floor(names: Sequence[str], device: str, dtypes: Sequence[str]) -> None:
    """Print a Markdown table of minimum bytes and operations, forward and backward together."""
    print(
        "| shape | frames | dtype | MB forward | MB backward | GFLOP folded | GFLOP projected | folded FLOP per byte |"
    )
    print("| --- " * 8 + "|")
    for name in names:
        shape = SHAPES[name].sized(torch.device(device))
        for dtype in dtypes:
            forward, backward = (floor(shape, DTYPES[dtype], kind) for kind in ("forward", "backward"))
            operations = forward.operations + backward.operations
            intensity = operations / (forward.bytes + backward.bytes)
            print(
                f"| {name} | {shape.frames} | {dtype} | {forward.bytes / 1e6:.1f} | {backward.bytes / 1e6:.1f} "
                f"| {operations / 1e9:.2f} | {3 * projected_operations(shape) / 1e9:.2f} | {intensity:.0f} |"
            )


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw times by shape for the pass "both", fractions of the copy bandwidth, and the crossing of the routes."""
    from benchmarks.common.charts import distinct, save_figures

    records, device = result["records"], result["machine"]["device"]
    figures = {}
    for shape in distinct(records, "shape"):
        own = [record for record in records if record["shape"] == shape and record["pass"] == "both"]
        if own:
            figures[f"region_attention-{shape}"] = times_figure(own, device)
    if records:
        figures["region_attention-copy-bandwidth"] = copy_figure(records, device)
    if result["crossing"] is not None and result["crossing"]["points"]:
        figures["region_attention-crossing"] = crossing_figure(result["crossing"], device)
    return save_figures(figures, directory)


def times_figure(records: list[Record], device: str) -> Any:
    """Draw the time of each provider for one shape and pass, slowest first, with one panel per dtype."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct, format_number

    panels = []
    for dtype in distinct(records, "dtype"):
        own = sorted((r for r in records if r["dtype"] == dtype), key=lambda record: -record["median_ms"])
        notes = [
            " ms" if r["provider"] == BASELINE else f" ms   {format_number(r['speedup_over_baseline'])}×" for r in own
        ]
        ranges = [(record["p20_ms"], record["p80_ms"]) for record in own]
        names = [record["provider"] for record in own]
        panels.append(BarPanel(dtype, names, [record["median_ms"] for record in own], OURS, ranges, notes))
    first = records[0]
    normalized = " layer-normalized" if first["norm_regions"] else ""
    return bar_figure(
        [panels],
        f"{first['shape']}: {'forward and backward' if first['pass'] == 'both' else first['pass']}",
        f"{first['frames']} frames, {first['queries']} queries, {first['regions']} × {first['region_dim']}{normalized} "
        f"regions, {first['num_heads']} heads, {device}; × is the speedup over {BASELINE}",
    )


def copy_figure(records: list[Record], device: str) -> Any:
    """Draw achieved bandwidth over copy bandwidth: one row per dtype, one column per pass, one point per provider."""
    from matplotlib.axes import Axes

    from benchmarks.common.charts import LinePanel, Series, distinct, line_figure

    shapes, dtypes, passes = (distinct(records, name) for name in ("shape", "dtype", "pass"))
    limit = 105 * max(record["copy_fraction"] for record in records)

    def configure(axes: Axes) -> None:
        axes.set(xlim=(0, limit), ylim=(len(shapes) - 0.5, -0.5), xlabel="% of copy bandwidth")
        axes.set_yticks(range(len(shapes)), shapes)

    def panel(dtype: str, pass_name: str) -> LinePanel:
        own = [record for record in records if (record["dtype"], record["pass"]) == (dtype, pass_name)]
        series = [
            Series(
                provider,
                [100 * record["copy_fraction"] for record in own if record["provider"] == provider],
                [shapes.index(record["shape"]) for record in own if record["provider"] == provider],
                {"lw": 0, "markersize": 8 if provider == OURS else 5},
            )
            for provider in sorted(distinct(records, "provider"), key=lambda name: name != OURS)
        ]
        return LinePanel(f"{pass_name}, {dtype}", series, configure)

    return line_figure(
        [[panel(dtype, pass_name) for pass_name in passes] for dtype in dtypes],
        "Achieved fraction of the copy bandwidth", f"bytes that must move over the time taken, {device}",
        height=1 + 0.34 * len(shapes),
    )  # fmt: skip


def crossing_figure(crossing: dict[str, Any], device: str) -> Any:
    """Draw the time of both routes over the number of queries, one panel per pass, and where the rule turns."""
    from matplotlib.axes import Axes

    from benchmarks.common.charts import LINE_COLORS, LinePanel, Series, distinct, line_figure, log_axes

    def configure(axes: Axes) -> None:
        log_axes(axes, [2**power for power in range(9)])
        axes.axvline(crossing["rule_turns_at"], color="gray", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.set(xlabel="queries per frame, K (dashed: the rule turns)", ylabel="median time, ms")

    panels = []
    for pass_name in distinct(crossing["points"], "pass"):
        series = []
        for route, color in zip(ROUTES, LINE_COLORS, strict=False):
            own = [p for p in crossing["points"] if (p["pass"], p["route"]) == (pass_name, route)]
            series.append(Series(route, [p["queries"] for p in own], [p["ms"] for p in own], {"color": color}))
        panels.append(LinePanel(pass_name, series, configure))
    return line_figure(
        [panels], "Folded or projected",
        f"{crossing['frames']} frames, {crossing['regions']} × {crossing['region_dim']} regions, "
        f"{crossing['num_heads']} heads, {crossing['dtype']}, {device}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
