"""Exported models on a CPU beside eager PyTorch.

    python benchmarks/bench_export.py
    python benchmarks/bench_export.py --models tiny --out result.json

    eager           ARTModel as it is, without gradients
    torch.export    the .pt2 file that `art export --format torch` writes, run by torch
    onnxruntime     the .onnx file of `--format onnx`, with as many threads as PyTorch has

One clip, float32, random weights and pixels, which cost the same as any. Each file is checked against the model before
it is timed, and a file's time is compared with that of the eager model in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the folder of `benchmarks` and `art_kernels` takes the place of this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor, nn

from art import ARTModel
from art.extras import import_extra
from art.tools.export import export_model
from benchmarks.command import add_names, conclude, positive
from benchmarks.findings import Findings
from benchmarks.table import Column, place, print_missing, print_table
from benchmarks.timing import REHEARSAL, Effort, summarize, time_rounds

EAGER, PROGRAM, ONNX = "eager", "torch.export", "onnxruntime"
PROVIDERS = (EAGER, PROGRAM, ONNX)
EFFORT = Effort(min_rounds=7, min_seconds=1.0, max_seconds=30.0, warmups=1)

#: Of configs/motion.yaml, and the defaults on UniFormerV2-B/16 with the bank of FineGym99 through CLIP.
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "classes": 20, "backbone": "tiny", "num_frames": 8, "latent_dim": 64, "num_heads": 2, "feedforward_dim": 128,
        "enhancement_layers": 0, "activation_layers": 2, "region_position": "sine",
    },
    "b16-8": {"classes": 99, "backbone": "uniformerv2_b16", "num_frames": 8},
}  # fmt: skip

_COLUMNS: tuple[Column, ...] = (
    ("model", -8, lambda record: record["model"]),
    ("", -14, lambda record: record["provider"]),
    ("ms", 9, lambda record: f"{record['median_ms']:.4g}"),
    ("20-80 %", 15, lambda record: f"{record['p20_ms']:.4g}-{record['p80_ms']:.4g}"),
    ("of eager", 9, lambda record: f"{record['ratio']:.3f}x"),
    ("20-80 %", 13, lambda record: f"{record['ratio_p20']:.3f}-{record['ratio_p80']:.3f}"),
    ("MiB", 8, lambda record: "" if record["file_bytes"] is None else f"{record['file_bytes'] / 2**20:.1f}"),
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        models: names of `MODELS`.
        quick: hardly any repetition.
    """

    models: tuple[str, ...] = tuple(MODELS)
    quick: bool = False


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0, or 1 where a model could not be exported or says something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_names(parser, "--models", "model", MODELS, default=tuple(MODELS))
    parser.add_argument("--threads", type=positive, metavar="N", help="threads (default: PyTorch's choice)")
    parser.add_argument("--quick", action="store_true", help="few repetitions: only to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result = run(Settings(options.models, options.quick))
    print_table(_COLUMNS, result["records"])
    for name, ratio in goals(result):
        print(
            f"{'reached' if ratio <= 1 else 'MISSED'}: ONNX's time, of eager PyTorch's ({name}): {ratio:.3f}, at most 1"
        )
    print(f"\n{place(result)}")
    print_missing(result)
    return conclude(result, options, None)


def run(settings: Settings) -> dict[str, Any]:
    """Measure everything that `settings` ask for: where, the settings, "records" and "failures", fit for JSON."""
    import_extra("onnxruntime", extra="onnx", needed_by="this benchmark")
    effort = REHEARSAL if settings.quick else EFFORT
    findings = Findings()
    for name in settings.models:
        with findings.recording_failure(model=name):
            findings.records.extend(_measure(name, effort))
    return findings.result("export", torch.device("cpu"), settings, effort, versions=_versions())


def goals(result: dict[str, Any]) -> list[tuple[str, float]]:
    """Of each model what its time in onnxruntime is of that in eager PyTorch; nothing where it was to be quick."""
    if result["arguments"]["quick"]:
        return []
    return [(record["model"], record["ratio"]) for record in result["records"] if record["provider"] == ONNX]


def build(name: str) -> ARTModel:
    """A model whose parameters are all at work: none is zero as at the start of a training."""
    options = dict(MODELS[name])
    names = [f"class {index}" for index in range(options.pop("classes"))]
    torch.manual_seed(0)
    model = ARTModel(names, semantics=torch.randn(16, len(names), 512), **options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _measure(name: str, effort: Effort) -> list[dict[str, Any]]:
    model = build(name)
    size = model.input_size
    clips = torch.randint(0, 256, (4, model.num_frames, 3, size, size), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = {PROGRAM: Path(folder) / "model.pt2", ONNX: Path(folder) / "model.onnx"}
        differences = {
            provider: export_model(model, clips, path, "onnx" if provider == ONNX else "torch").facts["check"]
            for provider, path in paths.items()
        }
        sizes = {provider: path.stat().st_size for provider, path in paths.items()}
        calls = {EAGER: _eager(model, clips[:1]), PROGRAM: _program(paths[PROGRAM], clips[:1])}
        calls[ONNX] = _onnx(paths[ONNX], clips[:1])
        rounds = time_rounds(calls, torch.device("cpu"), effort)
    records = []
    for provider in PROVIDERS:
        pairs = zip(rounds.seconds[provider], rounds.seconds[EAGER], strict=True)
        ratios = [own / eager for own, eager in pairs]
        fifths = statistics.quantiles(ratios, n=5, method="inclusive")
        check = differences.get(provider)
        records.append(
            {
                "model": name,
                "backbone": model.options.backbone,
                "frames": model.num_frames,
                "clips": 1,
                "dtype": "float32",
                "provider": provider,
                **asdict(summarize(rounds.seconds[provider])),
                "ratio": statistics.median(ratios),
                "ratio_p20": fifths[0],
                "ratio_p80": fifths[-1],
                "file_bytes": sizes.get(provider),
                "difference": 0.0 if check is None else check["difference"]["logits"],
            }
        )
    return records


def _eager(model: ARTModel, video: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return model(video).logits

    return call


def _program(path: Path, video: Tensor) -> Callable[[], object]:
    module = torch.export.load(path).module()

    def call() -> object:
        with torch.no_grad():
            return module(video=video)["logits"]

    return call


def _onnx(path: Path, video: Tensor) -> Callable[[], object]:
    onnxruntime = import_extra("onnxruntime", extra="onnx", needed_by="this benchmark")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"video": video.numpy()})


def _versions() -> dict[str, str]:
    libraries = (import_extra(name, extra="onnx", needed_by="this benchmark") for name in ("onnx", "onnxruntime"))
    return {library.__name__: str(library.__version__) for library in libraries}


if __name__ == "__main__":
    sys.exit(main())
