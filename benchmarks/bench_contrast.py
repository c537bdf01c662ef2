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
import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from art_kernels import mtc_loss, pool_tracklets, tracklet_nce
from benchmarks.common import cli
from benchmarks.common.measure import (
    DTYPES,
    OURS,
    Limits,
    chosen_backend,
    measure_limits,
    measure_providers,
    relative_error,
    require_accurate,
)
from benchmarks.common.results import (
    LIMIT_COLUMNS,
    SPEEDUP_COLUMNS,
    TIME_COLUMNS,
    Record,
    Results,
    print_footer,
    print_table,
)
from benchmarks.common.timing import DEFAULT, QUICK, TimingConfig, capture_graph

PASSES = ("forward", "backward", "both")
QUICK_SHAPES = ("paper", "pool-paper", "nce-4k")
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float32")}
#: All shapes together take less than three minutes on a CPU.
CPU_TIMING = TimingConfig(min_rounds=5, min_seconds=0.3, max_seconds=6.0, warmups=1)
OURS_REPLAYED = "art_kernels, CUDA graph"
#: By operation; the first is the baseline.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "mtc_loss": ("naive", "vectorized", "vectorized compiled", OURS, OURS_REPLAYED),
    "pool_tracklets": ("naive", "vectorized", "vectorized compiled", OURS, OURS_REPLAYED),
    "tracklet_nce": ("materialized", "materialized compiled", "memeff", OURS),
}
MARGIN, TEMPERATURE, POOLING_TEMPERATURE = 0.6, 0.07, 0.01
#: Backend of torch.compile, by whether the run is quick: compiling to machine code takes most of a minute.
COMPILERS = {False: "inductor", True: "aot_eager"}

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class ContrastShape:
    """One problem.

    Attributes:
        name: on the command line.
        operation: a key of `PROVIDERS`.
        sizes: responses [B,T,K,C] (for pooling with K semantics), or anchors and the same number of candidates [M,C].
        cpu_first: the first size on a CPU; 0 if the shape is not measured there.
    """

    name: str
    operation: str
    sizes: tuple[int, ...]
    cpu_first: int

    def sized(self, device: torch.device, *, quick: bool = False) -> ContrastShape | None:
        """Return the shape for a device, or None if it is not measured there; with `quick` a minimal one, which keeps
        the channels and is small enough for Triton's interpreter."""
        if quick:
            limits = (21,) if self.operation == "tracklet_nce" else (1, 3, 3)
            sizes = tuple(min(size, limit) for size, limit in zip(self.sizes, limits, strict=False))
            return replace(self, sizes=(*sizes, self.sizes[-1]))
        first = self.sizes[0] if device.type == "cuda" else self.cpu_first
        return replace(self, sizes=(first, *self.sizes[1:])) if first else None

    def moved_bytes(self, dtype: torch.dtype, pass_name: str) -> int:
        """Return the minimum number of bytes moved by a pass.

        Forward reads the inputs once; backward reads them and writes a gradient of each. The losses compute gradients
        together with the value, so "both" reads once and writes once; the backward pass of pooling reads again.
        """
        elements = torch.Size(self.sizes).numel()
        if self.operation == "pool_tracklets":
            videos, frames, count, channels = self.sizes
            inputs = elements + videos * count * channels
            outputs = videos * count * (channels + frames)  # aggregated tracklets and saliency
            forward, backward = inputs + outputs, 2 * inputs + outputs
            return dtype.itemsize * {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]
        inputs = elements + elements // self.sizes[1] if self.operation == "mtc_loss" else 2 * elements
        return inputs * dtype.itemsize * {"forward": 1, "backward": 2, "both": 2}[pass_name]

    def operations(self, pass_name: str) -> int:
        """Return the minimum number of operations: dot products of pairs, and for the gradients one more product per
        side; for pooling also norms and weighted sums, which its backward pass computes again."""
        *others, channels = self.sizes
        if self.operation == "pool_tracklets":
            semantics = others[-1]
            forward, backward = semantics + 2, 3 * semantics + 4
            factor = {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]
            return 2 * torch.Size(self.sizes).numel() * factor
        if self.operation == "mtc_loss":
            videos, frames, count = others
            pairs = videos * (frames * count * count + frames * count + count * count)
        else:
            pairs = others[0] ** 2
        return 2 * pairs * channels * {"forward": 1, "backward": 2, "both": 3}[pass_name]

    def describe(self) -> str:
        """Return the sizes as text."""
        if self.operation != "tracklet_nce":
            return "{} videos, {} frames, {} tracklets of {}".format(*self.sizes)
        return "{0} anchors and {0} candidates of {1}".format(*self.sizes)


SHAPES = {
    shape.name: shape
    for shape in (
        ContrastShape("paper", "mtc_loss", (24, 16, 2, 256), 24),
        ContrastShape("batch", "mtc_loss", (256, 16, 8, 256), 64),
        ContrastShape("dense", "mtc_loss", (64, 64, 32, 256), 8),
        ContrastShape("pool-paper", "pool_tracklets", (24, 16, 2, 256), 24),
        ContrastShape("pool-batch", "pool_tracklets", (256, 16, 8, 256), 64),
        ContrastShape("pool-dense", "pool_tracklets", (64, 64, 32, 256), 8),
        ContrastShape("nce-4k", "tracklet_nce", (4096, 256), 4096),
        ContrastShape("nce-32k", "tracklet_nce", (32768, 256), 0),
        ContrastShape("nce-128k", "tracklet_nce", (131072, 256), 0),
    )
}


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
    return cli.run_command(parser, options, partial(run, settings), draw)


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
    parser = cli.new_parser(__doc__)
    default_text = f"all; with --quick {', '.join(QUICK_SHAPES)}"
    cli.add_names(parser, "--shapes", "shape", SHAPES, default=None, default_text=default_text)
    cli.add_names(
        parser, "--dtypes", "dtype", ("bfloat16", "float16", "float32"), default=None,
        default_text=cli.per_device(DEFAULT_DTYPES),
    )  # fmt: skip
    cli.add_names(parser, "--passes", "pass", PASSES, default=PASSES)
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


def errors(values: Sequence[Tensor], true_values: Sequence[Tensor]) -> dict[str, float]:
    """Return the relative error of the loss and of each gradient."""
    names = ("loss", *(f"grad_{index}" for index in range(len(values) - 1)))
    return {name: relative_error(*pair) for name, *pair in zip(names, values, true_values, strict=True)}


def pass_call(pass_name: str, loss: Loss, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Return a callable that runs "forward" without a graph, "backward" of a retained graph, or "both"."""
    if pass_name == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return loss(*inputs)

        return forward
    if pass_name == "backward":
        value = loss(*inputs)
        return lambda: torch.autograd.grad(value, inputs, retain_graph=True)
    return lambda: torch.autograd.grad(loss(*inputs), inputs)


def draw_inputs(shape: ContrastShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Draw leaf tensors: responses, and aggregated tracklets or semantics; or unit-length anchors and candidates."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device)

    if shape.operation != "tracklet_nce":
        responses = normal(*shape.sizes) + normal(shape.sizes[-1])  # cosines on both sides of the margin
        inputs = [responses, responses.mean(1) + 0.1 * normal(shape.sizes[0], *shape.sizes[2:])]
    else:
        anchors = F.normalize(normal(*shape.sizes), dim=-1)
        inputs = [anchors, F.normalize(anchors + F.normalize(normal(*shape.sizes), dim=-1), dim=-1)]
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


def build(provider: str, shape: ContrastShape, *, quick: bool = False) -> Loss:
    """Return the loss of a provider as a function of the inputs; with `quick` nothing is compiled to machine code."""
    if provider.endswith("compiled"):
        torch._functorch.config.donated_buffer = False  # backward runs several times on one graph
        return torch.compile(build(provider.removesuffix(" compiled"), shape), backend=COMPILERS[quick])
    if provider == "memeff":
        peer = importlib.import_module("memeff").MemoryEfficientCLIPLoss
        return peer(temperature=TEMPERATURE, normalized_inputs=True, stable=False)
    return LOSSES[shape.operation, OURS if provider == OURS_REPLAYED else provider]


def unsupported_reason(provider: str, shape: ContrastShape, device: torch.device) -> str | None:
    """Return why a provider is skipped, or None."""
    if provider.endswith("compiled") and device.type == "cpu" and shutil.which("c++") is None:
        return "torch.compile on a CPU requires a C++ compiler, but c++ is not found"
    if provider == "memeff":
        if device.type != "cuda":
            return "its kernels require a GPU"
        if importlib.util.find_spec("memeff") is None:
            return "not installed: pip install memeff"
    if provider.startswith("materialized") and device.type == "cuda":
        needed = 5 * 4 * shape.sizes[0] ** 2  # logits, softmax and gradient, some of them in two dtypes
        free = torch.cuda.mem_get_info(device)[0]
        if needed > free:
            return f"its matrices would take about {needed / 2**30:.0f} GiB, but only {free / 2**30:.0f} GiB are free"
    return None


def served_by(provider: str, shape: ContrastShape, inputs: Sequence[Tensor]) -> str | None:
    """Return the backend of this package's providers; None for others."""
    selects = inputs[1] if shape.operation == "pool_tracklets" else inputs[0]  # the number of semantics
    return chosen_backend(shape.operation, selects) if provider.startswith(OURS) else None


def mtc_naive(responses: Tensor, aggregated: Tensor) -> Tensor:
    """Loop over frames and steps as in the equations of the paper, with all cosines as matrices."""
    frames, count = responses.shape[1:3]
    different = ~torch.eye(count, dtype=torch.bool, device=responses.device)
    spatial = responses.new_zeros((), dtype=torch.float32)
    for t in range(frames):
        units = F.normalize(responses[:, t].float(), dim=-1)
        similarity = units @ units.mT
        spatial = spatial + similarity[:, different].mean()
    temporal = responses.new_zeros((), dtype=torch.float32)
    for t in range(frames - 1):
        similarity = F.cosine_similarity(responses[:, t].float(), responses[:, t + 1].float(), dim=-1)
        temporal = temporal + (MARGIN - similarity).relu().mean()
    units = F.normalize(aggregated.float(), dim=-1)
    tracklet = (units @ units.mT)[:, different].mean()
    return spatial / frames + temporal / (frames - 1) + tracklet


def mtc_vectorized(responses: Tensor, aggregated: Tensor) -> Tensor:
    """Compute all frames at once."""
    units, tracklets = F.normalize(responses.float(), dim=-1), F.normalize(aggregated.float(), dim=-1)
    temporal = (MARGIN - (units[:, :-1] * units[:, 1:]).sum(-1)).relu().mean()
    return _mean_off_diagonal(units) + temporal + _mean_off_diagonal(tracklets)


def _mean_off_diagonal(units: Tensor) -> Tensor:
    similarity = units @ units.mT
    count = units.shape[-2]
    off_diagonal = similarity.sum((-2, -1)) - similarity.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal.mean() / (count * (count - 1))


def pool_naive(responses: Tensor, semantics: Tensor) -> Tensor:
    """Loop over tracklets and semantics as in the equations of the paper; return the mean square."""
    pooled = []
    for k in range(responses.shape[2]):
        tracklet = responses[:, :, k].float()
        saliency = tracklet.new_zeros(tracklet.shape[:2])
        for j in range(semantics.shape[1]):
            similarity = F.cosine_similarity(tracklet, semantics[:, None, j].float(), dim=-1)
            saliency = saliency + (similarity / POOLING_TEMPERATURE).softmax(1)
        pooled.append((saliency[..., None] * tracklet).sum(1) / semantics.shape[1])
    return torch.stack(pooled, 1).square().mean()


def pool_vectorized(responses: Tensor, semantics: Tensor) -> Tensor:
    """Pool all tracklets with all semantics at once; return the mean square."""
    responses, semantics = responses.float(), semantics.float()
    similarity = F.normalize(responses, dim=-1) @ F.normalize(semantics, dim=-1).mT[:, None]  # [B, T, K, J]
    saliency = (similarity / POOLING_TEMPERATURE).softmax(1).mean(-1)
    return (saliency[..., None] * responses).sum(1).square().mean()


def nce_materialized(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Compute the matrix of all logits, and the cross-entropy of its rows and columns."""
    logits = (anchors @ candidates.mT).float() / TEMPERATURE
    index = torch.arange(len(anchors), device=anchors.device)
    return (F.cross_entropy(logits, index) + F.cross_entropy(logits.mT, index)) / 2


def _mtc_ours(responses: Tensor, aggregated: Tensor, backend: str | None = None) -> Tensor:
    return mtc_loss(responses, aggregated, margin=MARGIN, backend=backend).total


def _pool_ours(responses: Tensor, semantics: Tensor, backend: str | None = None) -> Tensor:
    pooled = pool_tracklets(responses, semantics, temperature=POOLING_TEMPERATURE, backend=backend)[0]
    return (pooled if pooled.dtype == torch.float64 else pooled.float()).square().mean()


def _nce_ours(anchors: Tensor, candidates: Tensor, backend: str | None = None) -> Tensor:
    index = torch.arange(len(anchors), device=anchors.device)
    return tracklet_nce(anchors, candidates, index, temperature=TEMPERATURE, symmetric=True, backend=backend)


LOSSES: dict[tuple[str, str], Loss] = {
    ("mtc_loss", "naive"): mtc_naive,
    ("mtc_loss", "vectorized"): mtc_vectorized,
    ("mtc_loss", OURS): _mtc_ours,
    ("pool_tracklets", "naive"): pool_naive,
    ("pool_tracklets", "vectorized"): pool_vectorized,
    ("pool_tracklets", OURS): _pool_ours,
    ("tracklet_nce", "materialized"): nce_materialized,
    ("tracklet_nce", OURS): _nce_ours,
}


def oracle(shape: ContrastShape, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the loss and its gradients in float64, by the reference, or in blocks if its matrices are too large."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    in_blocks = shape.operation == "tracklet_nce" and len(leaves[0]) > 8192
    loss = LOSSES[shape.operation, OURS](*leaves, backend="torch" if in_blocks else "reference")
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


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
