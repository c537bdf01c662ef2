"""Exported models vs. eager PyTorch on a CPU.

    python benchmarks/bench_export.py
    python benchmarks/bench_export.py --models tiny --out result.json --plots plots

    eager           ARTModel without gradients; the baseline
    torch.export    the .pt2 file of `art export --format torch`, run by torch
    onnxruntime     the .onnx file of `--format onnx`, with the number of threads of PyTorch

One clip, float32, random weights and pixels. Each file is checked against the model before timing, and its time is
compared with that of the eager model in the same round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from art import ARTModel
from art.extras import import_extra
from art.tools.export import export_model
from benchmarks.common.results import (
    RATIO_COLUMNS,
    TIME_COLUMNS,
    Record,
    Results,
    add_names,
    mebibytes,
    new_parser,
    print_footer,
    print_goals,
    print_table,
    run_command,
)
from benchmarks.common.timing import QUICK, TimingConfig, time_rounds

EAGER, PROGRAM, ONNX = "eager", "torch.export", "onnxruntime"
PROVIDERS = (EAGER, PROGRAM, ONNX)
TIMING = TimingConfig(min_rounds=7, min_seconds=1.0, max_seconds=30.0, warmups=1)

#: The model of configs/motion.yaml; and the defaults on UniFormerV2-B/16 with the text features of FineGym99 through
#: CLIP.
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "classes": 20, "backbone": "tiny", "num_frames": 8, "latent_dim": 64, "num_heads": 2, "feedforward_dim": 128,
        "enhancement_layers": 0, "activation_layers": 2, "region_position": "sine",
    },
    "b16-8": {"classes": 99, "backbone": "uniformerv2_b16", "num_frames": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What to measure: names in `MODELS`; `quick` for minimal repetitions."""

    models: tuple[str, ...] = tuple(MODELS)
    quick: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if an export failed or computes something else."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    models = options.models or (("tiny",) if options.quick else tuple(MODELS))
    return run_command(parser, options, partial(run, Settings(models, options.quick)), draw)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__, devices=("cpu",))
    add_names(parser, "--models", "model", MODELS, default=None, default_text="all; with --quick tiny")
    return parser


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md, with "versions"."""
    device = torch.device("cpu")
    results = Results("export", device, settings, QUICK if settings.quick else TIMING, report=print_records)
    versions: dict[str, str] = {}
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            versions[name] = str(import_extra(name, extra="onnx", needed_by=ONNX).__version__)
    except ModuleNotFoundError as error:
        results.skip(str(error), provider=ONNX)
        versions = {}
    for name in settings.models:
        with results.case(model=name):
            _measure_model(results, name, with_onnx=bool(versions))
    result = results.to_dict(versions=versions)
    print_goals(goals(result))
    print_footer(result)
    return result


def goals(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Return (description, value, upper bound): onnxruntime must not be slower than eager PyTorch; nothing for a quick
    run."""
    if result["arguments"]["quick"]:
        return []
    return [
        (f"time in onnxruntime over that of eager PyTorch ({record['model']})", record["ratio"], 1.0)
        for record in result["records"]
        if record["provider"] == ONNX
    ]


def build(name: str) -> ARTModel:
    """Build a model; parameters that are initialized to zero are redrawn, as if it were trained."""
    options = dict(MODELS[name])
    names = [f"class {index}" for index in range(options.pop("classes"))]
    torch.manual_seed(0)
    model = ARTModel(names, semantics=torch.randn(16, len(names), 512), **options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _measure_model(results: Results, name: str, *, with_onnx: bool) -> None:
    model = build(name)
    size = model.input_size
    clips = torch.randint(0, 256, (4, model.num_frames, 3, size, size), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as directory:
        paths = {PROGRAM: Path(directory) / "model.pt2"}
        if with_onnx:
            paths[ONNX] = Path(directory) / "model.onnx"
        checks = {
            provider: export_model(model, clips, path, "onnx" if provider == ONNX else "torch").facts["check"]
            for provider, path in paths.items()
        }
        sizes = {provider: path.stat().st_size for provider, path in paths.items()}
        calls = {EAGER: _eager_call(model, clips[:1]), PROGRAM: _program_call(paths[PROGRAM], clips[:1])}
        if with_onnx:
            calls[ONNX] = _onnx_call(paths[ONNX], clips[:1])
        rounds = time_rounds(calls, results.device, results.timing)
    results.records += [
        {
            "model": name,
            "backbone": model.options.backbone,
            "frames": model.num_frames,
            "clips": 1,
            "dtype": "float32",
            "provider": provider,
            **asdict(timing),
            **rounds.ratios(provider, EAGER),
            "file_bytes": sizes.get(provider),
            "difference": checks[provider]["difference"]["logits"] if provider in checks else 0.0,
        }
        for provider, timing in rounds.timings().items()
    ]


def _eager_call(model: ARTModel, video: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return model(video).logits

    return call


def _program_call(path: Path, video: Tensor) -> Callable[[], object]:
    module = torch.export.load(path).module()

    def call() -> object:
        with torch.no_grad():
            return module(video=video)["logits"]

    return call


def _onnx_call(path: Path, video: Tensor) -> Callable[[], object]:
    onnxruntime = import_extra("onnxruntime", extra="onnx", needed_by="this benchmark")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"video": video.numpy()})


def print_records(records: list[Record]) -> None:
    """Print the table of one model; "MiB" is the size of the file."""
    print(f"\n{records[0]['model']}: {records[0]['backbone']}, {records[0]['frames']} frames, one clip")
    print_table(
        {
            "provider": lambda record: record["provider"],
            **TIME_COLUMNS,
            **RATIO_COLUMNS,
            "MiB": lambda record: mebibytes(record["file_bytes"]),
            "difference": lambda record: f"{record['difference']:.1e}",
        },
        records,
    )


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw the time of each provider, one panel per model."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct, save_figures

    rows = []
    for model in distinct(result["records"], "model"):
        own = [record for record in result["records"] if record["model"] == model]
        times = [record["median_ms"] for record in own]
        rows.append([BarPanel(f"{model}: ms", [record["provider"] for record in own], times, ONNX)])
    subtitle = f"one clip, float32, {result['machine']['device']}, {result['machine']['threads']} threads"
    return save_figures({"export": bar_figure(rows, "Exported models", subtitle)} if rows else {}, directory)


if __name__ == "__main__":
    sys.exit(main())
