"""A training step of the recipes, and the activations that it saves for the backward pass.

    python benchmarks/bench_training_step.py
    python benchmarks/bench_training_step.py --device cuda --out result.json
    python benchmarks/bench_training_step.py --recipes none --activations uniformerv2_b16,uniformerv2_l14

Measures both passes with the loss, and the optimizer step, of the FineGym99 recipes for UniFormerV2-B/16 and L/14, and
the rate that the passes reach. `--activations` counts the MiB per clip that autograd saves under bfloat16 autocast,
each storage once, without parameters and buffers, with and without gradient checkpointing and ART's enhancement layers;
it requires no GPU.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from art import ARTModel
from art.tools.profile import count_stages, model_maker
from art.train.config import Config, load_config
from art.train.optim import build_optimizers
from art.train.runtime import autocast
from benchmarks.common.measure import Limits, measure_limits
from benchmarks.common.results import (
    ROOT,
    Record,
    Results,
    add_names,
    new_parser,
    print_footer,
    print_table,
    run_command,
)
from benchmarks.common.timing import QUICK, TimingConfig, time_calls

#: Recipes by short name; each is a file in configs/.
RECIPES = {"b16": "finegym99_uniformerv2_b16", "l14": "finegym99_uniformerv2_l14"}
#: Number of classes of FineGym99.
CLASSES = 99
#: Clips per step; 3 are the paper's 24 on 8 devices.
CLIPS = {"cpu": (1,), "cuda": (1, 3, 8)}
#: The recipes use bfloat16; a CPU without instructions for it is measured in float32.
PRECISIONS = {"cpu": "fp32", "cuda": "bf16"}
TIMINGS = {
    "cpu": TimingConfig(min_rounds=2, min_seconds=0.0, max_seconds=0.0, warmups=1),
    "cuda": TimingConfig(min_rounds=10, min_seconds=0.0, max_seconds=10.0, warmups=2),
}
#: Overrides for a model whose step takes a second.
QUICK_OVERRIDES = (
    "model.num_frames=2",
    "model.backbone_options={width: 48, layers: 3, heads: 3, patch_size: 8, input_size: 32, global_blocks: [1, 2]}",
    "model.latent_dim=32", "model.feedforward_dim=64",
)  # fmt: skip
BACKBONES = ("uniformerv2_b16", "uniformerv2_l14")
ACTIVATION_FRAMES, ACTIVATION_CLASSES = 8, 20


@dataclass(frozen=True)
class Settings:
    """What to measure: names in `RECIPES`, backbones whose activations are counted; `quick` for tiny models."""

    device: str = "cpu"
    recipes: tuple[str, ...] = tuple(RECIPES)
    activations: tuple[str, ...] = ()
    quick: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if anything failed."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    settings = Settings(options.device, options.recipes, options.activations, options.quick)
    return run_command(parser, options, partial(run, settings), draw)


def run_on_gpu(deadline: float, *, quick: bool = False) -> dict[str, Any]:
    """Run the part of this benchmark that `python -m benchmarks.gpu` includes.

    Args:
        deadline: value of `time.monotonic()` after which no new case starts.
        quick: a tiny model on a CPU.
    """
    return run(Settings(recipes=("b16",), quick=True) if quick else Settings("cuda"), deadline=deadline)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__)
    add_names(parser, "--recipes", "recipe", RECIPES, default=tuple(RECIPES), allow_none=True)
    add_names(parser, "--activations", "backbone", BACKBONES, default=(), default_text="none", allow_none=True)
    return parser


def run(settings: Settings, *, deadline: float | None = None) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md, with "activations" by backbone."""
    device, quick = torch.device(settings.device), settings.quick
    precision = PRECISIONS[device.type]
    dtype = "bfloat16" if precision == "bf16" else "float32"
    results = Results("training_step", device, settings, QUICK if quick else TIMINGS[device.type], deadline)
    limits = measure_limits(device, [dtype], QUICK, quick=quick)
    for name in settings.recipes:
        overrides = (*(QUICK_OVERRIDES if quick else ()), f"precision={precision}")
        config = load_config(ROOT / "configs" / f"{RECIPES[name]}.yaml", overrides)
        for clips in CLIPS[device.type]:
            case = {"recipe": name, "clips": clips}
            if not results.out_of_time(**case):
                with results.case(**case):
                    results.records.append(measure_step(results, name, config, clips, limits))
    activations = []
    for backbone in settings.activations:
        with results.catch_failure(activations=backbone):
            activations += count_activations(backbone)
    result = results.to_dict(**asdict(limits), activations=activations)
    _print_tables(result)
    print_footer(result)
    return result


def measure_step(results: Results, name: str, config: Config, clips: int, limits: Limits) -> Record:
    """Time both passes with the loss, and the optimizer step.

    Returns:
        Recipe, clips, precision, "passes" and "update" as the entries of `Timing`; "tflops" of the passes, and
        "matrix_fraction", that over the rate of a large matrix product.
    """
    device = results.device
    make = model_maker(config, CLASSES)
    stages = count_stages(make, precision=partial(autocast, torch.device("cpu"), config.precision))
    torch.manual_seed(0)
    model = make().to(device).train()
    optimizers = build_optimizers(model.parameter_groups(), config.optim)
    size = model.input_size
    video = torch.rand(clips, model.options.num_frames, 3, size, size, device=device)
    labels = torch.arange(clips, device=device) % CLASSES

    def passes() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(device, config.precision):
            loss = model.loss(model(video), labels).total
        loss.backward()

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()
        model.update_bank()

    passes()  # the optimizers need gradients
    timings = time_calls({"passes": passes, "update": update}, device, results.timing)
    operations = 2 * clips * sum(stage.forward_macs + stage.backward_macs for stage in stages)
    tflops = operations / (1e9 * timings["passes"].median_ms)
    (rate,) = limits.matrix_tflops.values()
    return {
        "recipe": name,
        "clips": clips,
        "precision": config.precision,
        **{part: asdict(timing) for part, timing in timings.items()},
        "tflops": tflops,
        "matrix_fraction": tflops / rate,
    }


def saved_mib(model: ARTModel, *, device: str = "cpu") -> float:
    """Return the MiB that the forward pass of one clip and its loss save for the backward pass."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # keeps addresses from being reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    video = torch.rand(1, model.num_frames, 3, model.input_size, model.input_size, device=device)
    labels = torch.zeros(1, dtype=torch.long, device=device)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast(torch.device(device).type, torch.bfloat16):
        model.loss(model(video), labels)
    return sum(sizes.values()) / 2**20


def count_activations(backbone: str) -> list[Record]:
    """Count the saved activations of ART on a backbone, with and without gradient checkpointing of its blocks."""

    def build(checkpointing: bool, layers: int) -> ARTModel:
        torch.manual_seed(0)
        return ARTModel(
            [f"class {i}" for i in range(ACTIVATION_CLASSES)],
            backbone=backbone,
            num_frames=ACTIVATION_FRAMES,
            backbone_options={"gradient_checkpointing": checkpointing},
            enhancement_layers=layers,
            semantics=torch.randn(16, ACTIVATION_CLASSES, 256),
        ).train()

    found = []
    for checkpointing in (False, True):
        total, without = (saved_mib(build(checkpointing, layers)) for layers in (4, 0))
        found.append(
            {
                "backbone": backbone,
                "checkpointing": checkpointing,
                "mib_per_clip": total,
                "enhancement_mib": total - without,
            }
        )
    return found


def _print_tables(result: dict[str, Any]) -> None:
    if result["records"]:
        print()
        print_table(
            {
                "recipe": lambda record: record["recipe"],
                "clips": lambda record: str(record["clips"]),
                "precision": lambda record: record["precision"],
                "passes, ms": lambda record: f"{record['passes']['median_ms']:.4g}",
                "update, ms": lambda record: f"{record['update']['median_ms']:.4g}",
                "TFLOP/s": lambda record: f"{record['tflops']:.3g}",
                "of a matrix product": lambda record: f"{100 * record['matrix_fraction']:.0f}%",
            },
            result["records"],
        )
    if result["activations"]:
        print("\n| backbone | checkpointing | MiB a clip | of these, the four enhancement layers |")
        print("| --- " * 4 + "|")
    for row in result["activations"]:
        fraction = f"{row['enhancement_mib']:.0f} ({100 * row['enhancement_mib'] / row['mib_per_clip']:.0f} %)"
        checkpointing = "blocks" if row["checkpointing"] else "none"
        print(f"| `{row['backbone']}` | {checkpointing} | {row['mib_per_clip']:.0f} | {fraction} |")


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw the times of the passes and of the optimizer step of each recipe."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct, save_figures

    rows = []
    for recipe in distinct(result["records"], "recipe"):
        own = [record for record in result["records"] if record["recipe"] == recipe]
        names = [
            f"{part}, {r['clips']} clip{'s' if r['clips'] > 1 else ''}" for r in own for part in ("passes", "update")
        ]
        times = [record[part]["median_ms"] for record in own for part in ("passes", "update")]
        rows.append([BarPanel(f"{recipe}, {own[0]['precision']}: ms", names, times, "passes")])
    heading = "A training step of the recipes"
    figures = {"training-step": bar_figure(rows, heading, result["machine"]["device"])} if rows else {}
    return save_figures(figures, directory)


if __name__ == "__main__":
    sys.exit(main())
