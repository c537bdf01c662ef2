"""UniFormerV2 as published and with this package's attention, and ART on each: time, memory and operations.

    python benchmarks/bench_model.py
    python benchmarks/bench_model.py --device cuda --out result.json --plots plots

    UniFormerV2 as published    the global blocks normalize and project every token of every frame; every MLP computes
                                x · sigmoid(1.702 x) operation by operation
    UniFormerV2, art_kernels    the same function by RegionCrossAttention and one fused activation
    ART on it as published      ARTModel on the first
    ART, art_kernels            ARTModel on the second

The rest of the backbone is the same code in all four, and they share one set of random parameters. Before timing, their
logits are compared. Each model runs once per round, and its time is compared with that of the published backbone in the
same round. Passes: "forward" in evaluation mode without gradients; "both", the passes of a training step with its loss
but without the optimizer. Operations are counted from the modules, in multiply-adds (GMAC) as in the literature on
video models, for these sizes and for L/14 with 16 frames, which is not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from art import ARTModel, BackboneClassifier
from art.backbones.uniformerv2 import FeedForward, GlobalBlock
from art.model.pretrained import VideoClassifier
from art.tools.profile import count_stages
from benchmarks.common.measure import DTYPES, peak_extra_bytes
from benchmarks.common.results import (
    RATIO_COLUMNS,
    TIME_COLUMNS,
    Columns,
    Record,
    Results,
    add_names,
    mebibytes,
    new_parser,
    per_device,
    print_footer,
    print_goals,
    print_table,
    run_command,
)
from benchmarks.common.timing import QUICK, TimingConfig, time_rounds

PUBLISHED, OURS = "UniFormerV2 as published", "UniFormerV2, art_kernels"
ART_PUBLISHED, ART_OURS = "ART on it as published", "ART, art_kernels"
PROVIDERS = (PUBLISHED, OURS, ART_PUBLISHED, ART_OURS)
PASSES = ("forward", "both")
DEFAULT_MODELS = {"cpu": ("b16-8",), "cuda": ("l14-16",)}
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16",)}
#: Largest allowed difference of logits, relative to the largest logit.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
#: Both passes of B/16 with 8 frames take less than four minutes on a CPU.
TIMINGS = {
    "cpu": TimingConfig(min_rounds=7, min_seconds=0.0, max_seconds=60.0, warmups=1),
    "cuda": TimingConfig(min_rounds=20, min_seconds=0.0, max_seconds=20.0, warmups=3),
}
#: The size for which the paper states operations: 1,332 GMAC for the backbone, 1,429 for ART on it.
COUNTED = "l14-16"
#: Prompts, classes and channels of the text features: those of FineGym99 through CLIP.
BANK = (16, 99, 512)


@dataclass(frozen=True)
class Model:
    """A model size: a registered backbone, T frames, B clips, and options of the backbone and of ART."""

    name: str
    backbone: str
    frames: int
    clips: int
    backbone_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the size as text."""
        return f"{self.backbone}, {self.frames} frames, {self.clips} clip{'s' if self.clips > 1 else ''}"


TINY = {"width": 48, "layers": 3, "heads": 3, "patch_size": 8, "input_size": 32, "global_blocks": [1, 2]}
MODELS = {
    model.name: model
    for model in (
        Model("b16-4", "uniformerv2_b16", 4, 1),
        Model("b16-8", "uniformerv2_b16", 8, 1),
        Model("l14-16", "uniformerv2_l14", 16, 4),
        Model("tiny", "uniformerv2_b16", 4, 2, TINY, {"latent_dim": 32, "feedforward_dim": 64}),
    )
}


@dataclass(frozen=True)
class Settings:
    """What to measure: names in `MODELS`, `TOLERANCE` ("bfloat16" is mixed precision) and `PASSES`; `quick` for minimal
    repetitions and no counts of large models."""

    device: str = "cpu"
    models: tuple[str, ...] = ("b16-8",)
    dtypes: tuple[str, ...] = ("float32",)
    passes: tuple[str, ...] = PASSES
    quick: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a model failed or differs from the published one."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    models = options.models or (("tiny",) if options.quick else DEFAULT_MODELS[options.device])
    dtypes = options.dtypes or DEFAULT_DTYPES[options.device]
    settings = Settings(options.device, models, dtypes, options.passes, options.quick)
    return run_command(parser, options, partial(run, settings), draw)


def run_on_gpu(deadline: float, *, quick: bool = False) -> dict[str, Any]:
    """Run the part of this benchmark that `python -m benchmarks.gpu` includes.

    Args:
        deadline: value of `time.monotonic()` after which no new case starts.
        quick: a tiny model on a CPU, in float32: Triton's interpreter does not support bfloat16.
    """
    settings = Settings("cuda", DEFAULT_MODELS["cuda"], DEFAULT_DTYPES["cuda"])
    return run(Settings(models=("tiny",), quick=True) if quick else settings, deadline=deadline)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__)
    models_text = f"{per_device(DEFAULT_MODELS)}; with --quick tiny"
    add_names(parser, "--models", "model", MODELS, default=None, default_text=models_text)
    add_names(parser, "--dtypes", "dtype", TOLERANCE, default=None, default_text=per_device(DEFAULT_DTYPES))
    add_names(parser, "--passes", "pass", PASSES, default=PASSES)
    return parser


def run(settings: Settings, *, deadline: float | None = None) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md, with "counts" by model and provider."""
    device = torch.device(settings.device)
    results = Results(
        "model", device, settings, QUICK if settings.quick else TIMINGS[device.type], deadline, print_records
    )
    counts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in dict.fromkeys((*settings.models, *(() if settings.quick else (COUNTED,)))):
        with results.catch_failure(model=name, what="counts"):
            counts[name] = {provider: count(provider, MODELS[name]) for provider in PROVIDERS}
    for dtype in settings.dtypes:
        for name in settings.models:
            with results.case(model=name, dtype=dtype):
                _measure_model(results, MODELS[name], dtype, counts[name])
    result = results.to_dict(counts=counts)
    _print_counts(counts)
    print_goals(goals(result))
    print_footer(result)
    return result


def count(provider: str, model: Model) -> list[dict[str, Any]]:
    """Count parameters, multiply-adds and activations by stage, for one clip in float32."""
    return [asdict(stage) for stage in count_stages(partial(build, provider, model), precision=nullcontext)]


def macs(stages: list[dict[str, Any]], pass_name: str = "forward") -> int:
    """Return the multiply-adds of a pass."""
    kinds = ("forward_macs",) if pass_name == "forward" else ("forward_macs", "backward_macs")
    excluded = ("loss",) if pass_name == "forward" else ()
    return sum(stage[kind] for stage in stages if stage["stage"] not in excluded for kind in kinds)


def _measure_model(results: Results, model: Model, dtype: str, counts: dict[str, list[dict[str, Any]]]) -> None:
    case = {"model": model.name, "dtype": dtype}
    if results.out_of_time(**case):
        return
    device = results.device
    models = build_all(model, device)
    size = models[ART_OURS].input_size
    video = torch.rand(model.clips, model.frames, 3, size, size, device=device)
    labels = torch.arange(model.clips, device=device)
    differences = compare(models, video, dtype)
    for pass_name in results.settings.passes:
        if results.out_of_time(**case, **{"pass": pass_name}):
            continue
        for each in models.values():
            each.train(pass_name == "both")
        calls = {name: pass_call(pass_name, each, video, labels, dtype) for name, each in models.items()}
        rounds = time_rounds(calls, device, results.timing)
        peaks = {name: peak_extra_bytes(call, device) for name, call in calls.items()}
        results.records += [
            {
                "model": model.name,
                "described": model.describe(),
                "dtype": dtype,
                "pass": pass_name,
                "provider": name,
                **asdict(timing),
                **rounds.ratios(name, PUBLISHED),
                "peak_extra_bytes": peaks[name],
                "peak_ratio": peaks[name] / peaks[PUBLISHED],
                "macs": model.clips * macs(counts[name], pass_name),
                "difference": differences[name],
            }
            for name, timing in rounds.timings().items()
        ]


def compare(models: Mapping[str, VideoClassifier], video: Tensor, dtype: str) -> dict[str, float]:
    """Return the relative difference of the logits on x_cls from those of the published backbone, and of ART's logits
    from those of ART on the published backbone.

    Raises:
        ArithmeticError: a difference exceeds `TOLERANCE`.
    """
    heads = {}
    with torch.no_grad(), _precision(video.device, dtype):
        for name, model in models.items():
            output = model.eval()(video)
            heads[name] = torch.cat([getattr(output, "video_logits", output.logits), output.logits]).float()
    found = {}
    for name, logits in heads.items():
        # Rounding may change which classes are selected as queries, so ART is compared with ART.
        other = heads[PUBLISHED if name in (PUBLISHED, OURS) else ART_PUBLISHED]
        found[name] = ((logits - other).abs().max() / other.abs().max()).item()
        if not found[name] <= TOLERANCE[dtype]:
            raise ArithmeticError(f"{name}: logits differ by {found[name]:.2g} of the largest from the published ones")
    return found


def pass_call(
    pass_name: str, model: VideoClassifier, video: Tensor, labels: Tensor, dtype: str
) -> Callable[[], object]:
    """Return a callable that runs "forward" without a graph, or "both" passes of a training step with its loss."""
    if pass_name == "forward":

        def forward() -> object:
            with torch.no_grad(), _precision(video.device, dtype):
                return model(video).logits

        return forward

    def both() -> None:
        with _precision(video.device, dtype):
            loss = model.loss(model(video), labels).total
        loss.backward()
        model.zero_grad(set_to_none=True)

    return both


def _precision(device: torch.device, dtype: str) -> Any:
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, DTYPES[dtype])


class PublishedFeedForward(nn.Module):
    """The MLP of all blocks as in the published code: x · sigmoid(1.702 x), operation by operation."""

    def __init__(self, mlp: FeedForward) -> None:
        super().__init__()
        self.c_fc, self.dropout, self.c_proj = mlp.c_fc, mlp.dropout, mlp.c_proj

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, without the residual."""
        hidden = self.c_fc(x)
        return self.c_proj(self.dropout(hidden * torch.sigmoid(1.702 * hidden)))


class PublishedGlobalBlock(nn.Module):
    """A global block as in the published code, with the parameters of ours.

    Every token of every frame is normalized with affine parameters and projected to a key and a value, by the
    parameters of `nn.MultiheadAttention` and plain matrix products. The published code also copies the tokens into
    another order and back; this is omitted: the tokens are read in the order of our backbone.
    """

    def __init__(self, block: GlobalBlock) -> None:
        super().__init__()
        width, heads = block.attn.embed_dim, block.attn.num_heads
        with torch.device("meta"):
            self.attn = nn.MultiheadAttention(width, heads)
        self.attn.load_state_dict(block.attn.state_dict(keep_vars=True), assign=True)
        self.ln_1, self.ln_2, self.ln_3 = block.ln_1, block.ln_2, block.ln_3
        self.mlp, self.drop_path = PublishedFeedForward(block.mlp), block.drop_path

    def forward(self, query: Tensor, regions: Tensor) -> Tensor:
        """Return `query` [B,1,C] after attending to `regions` [B,M,C]."""
        query = query + self.drop_path(self._attend(self.ln_1(query), self.ln_3(regions)))
        return query + self.drop_path(self.mlp(self.ln_2(query)))

    def _attend(self, query: Tensor, regions: Tensor) -> Tensor:
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        q, k, v = (
            (x @ weight.T + bias).unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2)  # [B, H, 1 or M, C/H]
            for x, weight, bias in zip((query, regions, regions), weights, biases, strict=True)
        )
        scores = q @ k.mT / self.attn.head_dim**0.5
        return self.attn.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def build(provider: str, model: Model, source: VideoClassifier | None = None) -> VideoClassifier:
    """Build a provider's model.

    Args:
        provider: one of `PROVIDERS`.
        model: its size.
        source: a model of `ART_OURS` whose parameters are shared; None creates new ones on the default device.
    """
    names = [f"class {index}" for index in range(BANK[1])]
    options = {"num_frames": model.frames, "backbone_options": model.backbone_options, **model.options}
    with torch.device("meta") if source is not None else torch.device(torch.get_default_device()):
        if provider in (ART_PUBLISHED, ART_OURS):
            built: VideoClassifier = ARTModel(names, model.backbone, semantics=torch.randn(BANK), **options)
        else:
            built = BackboneClassifier(names, model.backbone, **options)
    if source is not None:
        own = built.state_dict()
        shared = {name: value for name, value in source.state_dict(keep_vars=True).items() if name in own}
        built.load_state_dict(shared, assign=True)
    if provider in (PUBLISHED, ART_PUBLISHED):
        transformer: Any = built.backbone.transformer
        for block in transformer.resblocks:
            block.mlp = PublishedFeedForward(block.mlp)
        for index, block in enumerate(transformer.dec):
            transformer.dec[index] = PublishedGlobalBlock(block)
    return built


def build_all(model: Model, device: torch.device) -> dict[str, VideoClassifier]:
    """Build all providers with one shared set of parameters. Parameters that are initialized to zero are redrawn:
    otherwise the global blocks would be the identity and there would be nothing to compare."""
    torch.manual_seed(0)
    source = build(ART_OURS, model).to(device)
    for parameter in source.backbone.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return {name: source if name == ART_OURS else build(name, model, source) for name in PROVIDERS}


def goals(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Return (description, value, upper bound) of what ART may cost relative to the published backbone alone; nothing
    for a quick run."""
    found: list[tuple[str, float, float]] = []
    if result["arguments"]["quick"]:
        return found
    for record in result["records"]:
        if record["provider"] == ART_OURS:
            suffix = f"of ART over that of the published backbone ({record['model']}, {record['dtype']})"
            if record["pass"] == "forward":
                found.append((f"forward time {suffix}", record["ratio"], 1.0))
            else:
                if result["machine"]["kind"] == "cuda":
                    found.append((f"training step time {suffix}", record["ratio"], 1.03))
                found.append((f"training step peak memory {suffix}", record["peak_ratio"], 1.05))
    if COUNTED in result["counts"]:
        found.append(("GMAC of ART on L/14 at 16×224", macs(result["counts"][COUNTED][ART_OURS]) / 1e9, 1332.0))
    return found


def print_records(records: list[Record]) -> None:
    """Print the table of one model and dtype; the baseline is the published backbone."""
    print(f"\n{records[0]['model']}, {records[0]['dtype']}: {records[0]['described']}")
    print_table(
        {
            "pass": lambda record: record["pass"],
            "model": lambda record: record["provider"],
            **TIME_COLUMNS,
            **RATIO_COLUMNS,
            "MiB": lambda record: mebibytes(record["peak_extra_bytes"]),
            "memory of baseline": lambda record: f"{record['peak_ratio']:.3f}x",
            "GMAC": lambda record: f"{record['macs'] / 1e9:.2f}",
            "difference": lambda record: f"{record['difference']:.1e}",
        },
        records,
    )


def _print_counts(counts: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    columns: Columns = {
        "stage": lambda stage: stage["stage"],
        "Mparameters": lambda stage: f"{stage['parameters'] / 1e6:.2f}",
        "GMAC": lambda stage: f"{stage['forward_macs'] / 1e9:.2f}",
        "with backward": lambda stage: f"{(stage['forward_macs'] + stage['backward_macs']) / 1e9:.2f}",
        "MiB saved": lambda stage: mebibytes(stage["activation_bytes"]),
    }
    for name, found in counts.items():
        for provider in (PUBLISHED, ART_OURS):
            total = macs(found[provider]) / 1e9
            print(f"\n{provider}, {MODELS[name].backbone}, {MODELS[name].frames} frames, 1 clip: {total:,.1f} GMAC")
            print_table(columns, [stage for stage in found[provider] if stage["forward_macs"]])
    print()


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw one figure per model and dtype: a row per pass with time, memory and operations."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct, save_figures

    metrics: Mapping[str, Callable[[Record], float]] = {
        "ms": lambda record: record["median_ms"],
        "extra memory, MiB": lambda record: record["peak_extra_bytes"] / 2**20,
        "GMAC": lambda record: record["macs"] / 1e9,
    }
    figures = {}
    for model in distinct(result["records"], "model"):
        for dtype in distinct(result["records"], "dtype"):
            records = [r for r in result["records"] if (r["model"], r["dtype"]) == (model, dtype)]
            rows = []
            for pass_name in distinct(records, "pass"):
                own = [record for record in records if record["pass"] == pass_name]
                label = "training step" if pass_name == "both" else pass_name
                names = [record["provider"] for record in own]
                rows.append(
                    [
                        BarPanel(f"{label}: {name}", names, list(map(value, own)), ART_OURS, labeled=name == "ms")
                        for name, value in metrics.items()
                    ]
                )
            if rows:
                subtitle = f"{records[0]['described']}, {dtype}, {result['machine']['device']}"
                figures[f"model-{model}-{dtype}"] = bar_figure(rows, "UniFormerV2 and ART on it", subtitle)
    return save_figures(figures, directory)


if __name__ == "__main__":
    sys.exit(main())
