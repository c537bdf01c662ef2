"""What the commands of the documents need beside the world, and which of them cannot run here, with the reason."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import socket
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import world as small
from documents import ROOT
from reader import Reader, remove, written
from safetensors.torch import save_file

from art.cli import build_parser
from art.experiments import make_plan
from art.train.config import Config, load_config, variants

#: What stands for something of the reader's own, and what is there in its place; and what this machine has not.
REPLACED = (
    (r"\bCONFIG\b", "configs/motion.yaml"),
    (r"\bHOST\b", "127.0.0.1"),
    (r"(?<![\w.])/shared/", "shared/"),
    (r"(?<=--devices )cuda:0,cuda:1", "cpu"),
    (r"(?<=--devices )cuda\b", "cpu"),
    # Sixteen ranks on two cores show what four show.
    (r"(?<=--nproc-per-node )8\b", "2"),
    (r"(?<=--ntasks-per-node=)8\b", "2"),
)
#: The same, of single commands.
OWN_NAMES = {
    # Elsewhere the recipe writes no report here, as it does by default: that takes as long as the training.
    "art train configs/motion.yaml data.root=data/few output=runs/few": {"output": "report=true optim.epochs=1 output"},
    "art export --checkpoint DIR --format onnx --out motion.onnx --clips a.mp4 b.mp4": {
        # What ``art export`` does with clips is the same for both formats, and ONNX takes two seconds more.
        "DIR": "runs/motion/checkpoints/last", "onnx --out motion.onnx": "torch --out motion.pt2",
    },
    # Two machines that find each other are in tests/train/test_engine_torchrun.py.
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id motion1 "
    "--max-restarts 3 -m art train CONFIG --auto-resume output=/shared/runs/motion": {"--nnodes 2": "--nnodes 1"},
    # Of these, two ranks show what four show.
    "torchrun --nproc-per-node 4 -m art train configs/motion.yaml parallel.strategy=fsdp": {"node 4": "node 2"},
    "torchrun --nproc-per-node 4 --max-restarts 3 -m art train CONFIG --auto-resume checkpoints.every_steps=200":
        {"node 4": "node 2"},
    "art prepare finegym99 --root DIR --to NEW --cut": {"DIR": "data/finegym", "NEW": "data/new"},
    "art prepare NAME --root DIR --to OUT": {"NAME": "kinetics400", "DIR": "data/k400", "OUT": "data/out --splits val"},
    "art shards NAME --root DIR --to OUT": {"NAME": "motion", "DIR": "data/motion", "OUT": "data/out"},
}  # fmt: skip

#: Commands that are not run, each with the reason; of the rest, none may be left out.
EXCLUDED = {
    "python -m art_kernels compile": "an hour; `make test` runs it for a selection",
    "python -m art_kernels compile --targets sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,gfx942 --out build/kernels":
        "an hour; `make test` runs it for a selection",
    "python -m art_kernels compile --only tracklet_contrast --out build/kernels": "1,855 variants; see above",
    "python -m art_kernels compile --only tracklet_nce --out build/kernels": "many minutes; see above",
    "python -m art_kernels compile --only tracklet_pooling --out build/kernels": "many minutes; see above",
    "python -m art_kernels compile --only tracklet_linking --out build/kernels": "`make test` runs this very command",
    "python -m art_kernels compile --targets sm_90 --only '^tracklet_linking' --out build/kernels":
        "`make test` compiles the same kernels",
    "python -m benchmarks.gpu": "needs a GPU; tests/benchmarks/test_bench_gpu.py rehearses it",
    "ART_TEST_KILLS=20 pytest tests/train/test_engine_killed.py": "the suite runs this file, with fewer kills",
    "python -m mkdocs serve": "goes on until it is stopped; `make docs`, of the tests, builds the same site",
    "python -m benchmarks.kept_activations": "a minute and a half; tests/benchmarks/test_kept_activations.py",
    "tensorboard --logdir runs": "a server of TensorBoard's, which goes on until it is stopped",
    "mlflow ui --backend-store-uri URI": "a server of MLflow's, which is not among the packages of the tests",
    "wandb sync": "sends to Weights & Biases",
    "hf auth login": "asks for a token of the reader's",
}  # fmt: skip

#: Benchmarks take minutes, with their own --quick many seconds; tests/benchmarks runs each of them in small. Here their
#: options are looked at, but of this one, which only counts.
BENCHMARK = "python benchmarks/bench_"
COUNTS = "python benchmarks/bench_region_attention.py --floor"

#: A command whose result another one, or the Python of a page, begins with. It is run there, and not again by itself.
AFTER = {
    "docs/export.md":
        "art export --checkpoint runs/motion --format torch --out motion.pt2 --outputs logits,class_token,maps",
    "python examples/onnx_predict.py motion.onnx clip.mp4":
        "art export --checkpoint runs/motion --format onnx --out motion.onnx",
}  # fmt: skip

#: What docs/readme_material.py is given, by its option; its page says how they are made.
MATERIAL: dict[str, tuple[str, ...]] = {
    "--compare": ("art compare configs/motion.yaml --seeds 2",),
    "--linking": ("art compare configs/motion.yaml --seeds 2 --over model.linking=index,optimal",),
    "--without-residual": (
        "art compare configs/motion.yaml --seeds 2 --over model.linking=index,optimal model.response_residual=false",
    ),
    "--ablation": ("art ablate configs/motion.yaml --seeds 1 model.enhancement_layers=1",),
    "--ablation-seeds": ("art ablate configs/motion.yaml --seeds 2 --only components model.enhancement_layers=1",),
    "--run": (),
    "--more": (),
}

Prepare = Callable[[Reader, Path, str], None]


def as_run(words: str, text: str) -> str:
    """The text of a command with everything replaced that this machine has not, or the reader of a page has instead."""
    for name, other in OWN_NAMES.get(words, {}).items():
        text = text.replace(name, other)
    for pattern, other in REPLACED:
        text = re.sub(pattern, other, text)
    if "29500" in text:
        text = text.replace("29500", str(free_port()))
    text = re.sub(r"^(art serve [^#\n]*)", rf"\1 --port {free_port()} ", text)
    return re.sub(r"^make ", "make --dry-run ", text)


def free_port() -> int:
    """One that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare(reader: Reader, world: Path, text: str) -> None:
    """What the command writes is not there yet, but for what it goes on with."""
    if "--resume" in text:
        shutil.copytree(reader.template / "runs/interrupted", world / "runs/motion", dirs_exist_ok=True)
    else:
        for name in written(text):
            remove(world / name)
    for pattern, prepared in PREPARED.items():
        if re.search(pattern, text):
            prepared(reader, world, text)


def _rendered(reader: Reader, world: Path, text: str) -> None:
    options = _parsed(text)
    counts = {"train_per_class": 40, "test_per_class": 16, "size": 112, "frames": 24, "fps": 12, "seed": 0}
    settings = {
        name: default if getattr(options, name) is None else getattr(options, name) for name, default in counts.items()
    }
    small.almost_rendered(reader.template / "data/motion", world / options.root, settings)


def _compared(reader: Reader, world: Path, text: str) -> None:
    """All runs but one of each value are finished."""
    options, config = _parsed(text), _config(world, text)
    runs = {
        f"{value}-{seed}": _run_of(variant, f"{config.output}/{value}-seed{seed}", seed)
        for value, variant in variants(config, options.over).items()
        for seed in range(config.seed + 1, config.seed + options.seeds)
    }
    small.finished(reader.template / "runs/motion", world, runs)


def _ablated(reader: Reader, world: Path, text: str) -> None:
    """All runs but two are finished."""
    options = _parsed(text)
    if options.dry_run:
        return
    only = options.only.split(",") if options.only else []
    runs = make_plan(_config(world, text), options.seeds, only).runs()
    small.finished(reader.template / "runs/motion", world, dict(list(runs.items())[2:]))


def _pretrained(reader: Reader, world: Path, text: str) -> None:
    """The backbone that docs/ablations.md begins with."""
    last = reader.template / "runs/motion/checkpoints/last"
    (world / "runs/ablate-pretrained/checkpoints").mkdir(parents=True)
    (world / "runs/ablate-pretrained/checkpoints/last").symlink_to(last)
    if not text.startswith("python"):  # which makes it
        from art import load_model

        state = {name: value.contiguous() for name, value in load_model(last).backbone.state_dict().items()}
        save_file(state, world / "runs/ablate-pretrained/backbone.safetensors")


def _material(reader: Reader, world: Path, text: str) -> None:
    """The outputs of the commands that docs/readme_material.py draws."""
    for name in ("pictures", "results"):
        shutil.copytree(ROOT / "docs" / name, world / "docs" / name, dirs_exist_ok=True)
    words = shlex.split(text)
    for option, output in zip(words[2::2], words[3::2], strict=True):
        for command in MATERIAL[option]:
            whole = f"{command} output={output}"
            for pattern, prepared in PREPARED.items():
                if re.search(pattern, whole):
                    prepared(reader, world, whole)
            reader.check(whole, world)


def _repository(reader: Reader, world: Path, text: str) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=world, check=True)


PREPARED: dict[str, Prepare] = {
    r"art prepare motion": _rendered,
    r"art compare": _compared,
    r"runs/ablate-pretrained/backbone.safetensors": _pretrained,
    r"art ablate": _ablated,
    r"readme_material": _material,
    r"pre-commit install": _repository,
}


def _config(world: Path, text: str) -> Config:
    """The configuration of a command, whose paths are relative to the world."""
    options = _parsed(text)
    return load_config(world / options.config, options.overrides)


def _run_of(config: Config, output: str, seed: int) -> Config:
    """One of a comparison's runs."""
    return dataclasses.replace(config, output=output, seed=seed, report=False)


def _parsed(text: str) -> Namespace:
    tokens = shlex.split(text.replace("\\\n", " "), comments=True)
    options, rest = build_parser().parse_known_args(tokens[tokens.index("art") + 1 :])
    if hasattr(options, "overrides"):
        options.overrides += rest
    return options
