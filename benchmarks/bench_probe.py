"""Training step of efficient probing on frozen features: pooling before the projection vs. the published formulation.

    python benchmarks/bench_probe.py
    python benchmarks/bench_probe.py --device cuda --out result.json --plots plots

Forward and backward of the head and the cross-entropy, with gradients of the parameters only:

    published           projects every token, then each query pools its part of the channels
    published compiled  the same under torch.compile
    folded              the same algebra as ours in plain PyTorch: pool the tokens, then project
    art_kernels         art.heads.EfficientProbing, which pools with region_attention

Before timing, logits and gradients of each are compared with float64.

A second table compares a pass over feature files alone, from the page cache to batches in float32, with one that also
trains a head, as `art probe` does.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from art.backbones import Features
from art.data.features import FORMAT, FeatureSplit, finish_part, part_path, save_part, write_index, write_manifest
from art.experiments.probe_training import ProbeSettings, fit, make_candidate
from art.heads import EfficientProbing, FeatureShape
from benchmarks.common.measure import (
    COMPILERS,
    DTYPES,
    OURS,
    Limits,
    chosen_backend,
    compiler_unsupported_reason,
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
    add_names,
    new_parser,
    print_footer,
    print_table,
    run_command,
)
from benchmarks.common.timing import QUICK, TimingConfig, time_calls

#: Logits for a head and the tokens [B, N, C].
Forward = Callable[[EfficientProbing, Tensor], Tensor]
CLASSES = 174  # Something-Something V2
TIMINGS = {
    "cpu": TimingConfig(min_rounds=5, min_seconds=0.5, max_seconds=20.0, warmups=1),
    "cuda": TimingConfig(min_rounds=20, min_seconds=0.5, max_seconds=10.0, warmups=3),
}


@dataclass(frozen=True)
class ProbeShape:
    """B clips of N tokens with C channels, and Q queries."""

    name: str
    clips: int
    tokens: int
    channels: int
    queries: int

    def operations(self) -> int:
        """Operations that a training step cannot avoid: scores and sums, and the gradients of the queries."""
        pooled = 2 * self.clips * self.tokens * self.channels * self.queries
        projected = 2 * self.clips * self.channels * (self.channels + CLASSES)
        return 4 * pooled + 3 * projected

    def moved_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the tokens, read once in each pass."""
        return 2 * self.clips * self.tokens * self.channels * dtype.itemsize


SHAPES = {
    shape.name: shape
    for shape in (
        ProbeShape("vjepa2-l", 8, 2048, 1024, 16),
        ProbeShape("vjepa2-l-32", 8, 2048, 1024, 32),
        ProbeShape("videomae-b", 8, 1568, 768, 16),
        ProbeShape("tiny", 2, 48, 32, 4),
    )
}


def published(head: EfficientProbing, tokens: Tensor) -> Tensor:
    """Project every token, then pool."""
    count, channels = head.queries.shape
    values = head.value(tokens).unflatten(-1, (count, -1))
    weights = (tokens @ head.queries.mT * channels**-0.5).softmax(1)
    return head.classifier(torch.einsum("bnq,bnqd->bqd", weights, values).flatten(1))


def folded(head: EfficientProbing, tokens: Tensor) -> Tensor:
    """Pool, then project, with PyTorch's operators."""
    weights = (head.queries @ tokens.mT * tokens.shape[-1] ** -0.5).softmax(-1)
    return head.classifier(head.project(weights @ tokens))


def ours(head: EfficientProbing, tokens: Tensor) -> Tensor:
    """The head itself."""
    return head(Features(tokens[:, None], tokens[:, 0], (1, tokens.shape[1]))).logits


PROVIDERS: dict[str, Forward] = {
    "published": published, "published compiled": published, "folded": folded, OURS: ours,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What to measure: names in `SHAPES` and `DTYPES`; `quick` for minimal repetitions."""

    device: str = "cpu"
    shapes: tuple[str, ...] = ("vjepa2-l", "vjepa2-l-32", "videomae-b")
    dtypes: tuple[str, ...] = ("float32",)
    quick: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a provider failed or computed wrong values."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    shapes = options.shapes or (("tiny",) if options.quick else Settings.shapes)
    settings = Settings(options.device, shapes, options.dtypes, options.quick)
    return run_command(parser, options, partial(run, settings), draw)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__)
    default = f"{', '.join(Settings.shapes)}; with --quick tiny"
    add_names(parser, "--shapes", "shape", SHAPES, default=None, default_text=default)
    add_names(parser, "--dtypes", "dtype", DTYPES, default=Settings.dtypes)
    return parser


def run(settings: Settings, *, deadline: float | None = None) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md."""
    device = torch.device(settings.device)
    timing = QUICK if settings.quick else TIMINGS[device.type]
    results = Results("probe", device, settings, timing, deadline, print_records)
    limits = measure_limits(device, settings.dtypes, timing, quick=settings.quick)
    for dtype in settings.dtypes:
        for name in settings.shapes:
            with results.case(shape=name, dtype=dtype):
                _measure_shape(results, SHAPES[name], dtype, limits)
    reading: list[Record] = []
    if not results.out_of_time(shape="reading"):
        with results.catch_failure(shape="reading"):
            reading = measure_reading(device, timing, clips=16 if settings.quick else 512)
            print_table({name: partial(_value, name) for name in reading[0]}, reading)
    result = results.to_dict(**asdict(limits), reading=reading)
    print_footer(result)
    return result


def _measure_shape(results: Results, shape: ProbeShape, dtype: str, limits: Limits) -> None:
    case = {"shape": shape.name, "dtype": dtype}
    if results.out_of_time(**case):
        return
    torch.manual_seed(0)
    features = FeatureShape(1, (1, shape.tokens), shape.channels)
    names = [str(number) for number in range(CLASSES)]
    head = EfficientProbing(features, names, num_queries=shape.queries).to(results.device, DTYPES[dtype])
    tokens = torch.randn(shape.clips, shape.tokens, shape.channels, device=results.device, dtype=DTYPES[dtype])
    labels = torch.arange(shape.clips, device=results.device)
    exact = step(published, copy.deepcopy(head).double(), tokens.double(), labels)
    calls: dict[str, Callable[[], object]] = {}
    entries: dict[str, Record] = {}
    for provider, forward in PROVIDERS.items():
        if provider.endswith("compiled"):
            reason = compiler_unsupported_reason(results.device)
            if reason is not None:
                results.skip(reason, **case, provider=provider)
                continue
            forward = torch.compile(forward, backend=COMPILERS[results.settings.quick])
        with results.catch_failure(**case, provider=provider):
            found = step(forward, head, tokens, labels)
            errors = {name: relative_error(found[name], exact[name]) for name in exact}
            require_accurate(errors, entries["published"]["errors"] if entries else errors, floor=1e-6)
            backend = chosen_backend("region_attention", tokens) if provider == OURS else None
            entries[provider] = {"errors": errors, "served_by": backend}
            calls[provider] = partial(step, forward, head, tokens, labels)
    results.records += measure_providers(
        results, calls, {**case, **asdict(shape)}, entries, dtype=dtype, limits=limits,
        moved_bytes=shape.moved_bytes(DTYPES[dtype]), operations=shape.operations(),
    )  # fmt: skip


def step(forward: Forward, head: EfficientProbing, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return logits and gradients of the parameters."""
    logits = forward(head, tokens)
    parameters = dict(head.named_parameters())
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), [*parameters.values()])
    return {"logits": logits.detach(), **dict(zip(parameters, gradients, strict=True))}


def measure_reading(device: torch.device, timing: TimingConfig, *, clips: int) -> list[Record]:
    """Return the rate of a pass over features like those of `motion`, alone and with training of one head."""
    settings = ProbeSettings(epochs=1)
    with tempfile.TemporaryDirectory() as directory:
        split = write_features(Path(directory), clips)
        calls: dict[str, Callable[[], object]] = {"reading": lambda: sum(1 for _ in split.batches(settings.batch_size))}
        for name in ("mean", "ep"):
            candidate = make_candidate(name, split.manifest, settings, 1e-3, 0, 1, device)
            everything = torch.ones(clips, dtype=torch.bool)
            calls[f"reading and {name}"] = partial(fit, [candidate], split, settings, everything, device)
        timings = time_calls(calls, device, timing)
    alone = timings["reading"].median_ms
    return [
        {"pass": name, "clips_per_second": 1000 * clips / each.median_ms, "of_reading": alone / each.median_ms}
        for name, each in timings.items()
    ]


def write_features(directory: Path, clips: int) -> FeatureSplit:
    """Write random features in two parts; returns them without a cache."""
    shape, names = FeatureShape(8, (14, 14), 144), [str(number) for number in range(20)]
    facts = {
        "format": FORMAT, "backbone": {"framewise": False}, "class_names": names, "shape": shape._asdict(),
        "layers": [], "groups": [], "dataset": {"name": "random", "root": ""}, "dtype": "float16", "views": 1,
    }  # fmt: skip
    write_manifest(directory, {**facts, "splits": {"train": {"parts": 2, "clips": clips}}})
    for number, clip in enumerate(torch.arange(clips).chunk(2)):
        tokens = torch.randn(len(clip), 1, 8, 196, shape.channels).half()
        path = part_path(directory, "train", number)
        path.parent.mkdir(exist_ok=True)
        tensors = {"tokens": tokens, "class_token": tokens[:, :, 0, 0].clone(), "clip": clip}
        finish_part(path, save_part(path, tensors, {}))
    rows = [{"path": f"{clip}", "start": None, "end": None, "label": clip % 20} for clip in range(clips)]
    write_index(directory, "train", rows, 2)
    return FeatureSplit(directory, "train", cache_bytes=0)


def _value(name: str, record: Record) -> str:
    return record[name] if isinstance(record[name], str) else f"{record[name]:.2f}"


def print_records(records: list[Record]) -> None:
    """Print the table of one shape and dtype; the columns are explained in README.md."""
    first = records[0]
    sizes = f"{first['clips']} clips of {first['tokens']} tokens × {first['channels']}, {first['queries']} queries"
    print(f"\n{first['shape']}, {first['dtype']}: {sizes}")
    provider = {"provider": lambda record: record["provider"]}
    print_table({**provider, **TIME_COLUMNS, **SPEEDUP_COLUMNS, **LIMIT_COLUMNS}, records)


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw time and memory: one figure per dtype."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct, save_figures

    figures = {}
    for dtype in distinct(result["records"], "dtype"):
        rows = []
        for shape in distinct(result["records"], "shape"):
            own = [each for each in result["records"] if (each["dtype"], each["shape"]) == (dtype, shape)]
            names, times = [each["provider"] for each in own], [each["median_ms"] for each in own]
            memory = [each["peak_extra_bytes"] / 2**20 for each in own]
            panels = [BarPanel(f"{shape}: ms", names, times, OURS)]
            rows.append([*panels, BarPanel("extra memory, MiB", names, memory, OURS, labeled=False)])
        subtitle = f"{dtype}, forward and backward, {result['machine']['device']}"
        figures[f"probe-{dtype}"] = bar_figure(rows, "Efficient probing", subtitle)
    return save_figures(figures, directory)


if __name__ == "__main__":
    sys.exit(main())
