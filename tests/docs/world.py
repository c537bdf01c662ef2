"""A small world in which the commands of the documents run as they are written: what they name is there, but small.

Recipes keep their names. Each reads the real one, so that a key that is no more stops it, and then makes it small.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from documents import ROOT

from art.data.motion.filming import write_video

#: Over every recipe: small, on the CPU.
SMALL = """
device: cpu
precision: fp32
data: {workers: 0}
model: {latent_dim: 16, num_heads: 2, feedforward_dim: 16, activation_layers: 1}
optim: {epochs: 2, batch_size: 8, warmup_epochs: 0}
"""
OF_MOTION = """
report: false
eval_every: 100
model: {backbone_options: {width: 4, depth: [1, 1, 1]}}
"""
#: Over the recipes of the paper: its text encoder has to be downloaded, and its backbone has 86 million parameters.
OF_PAPER = """
report: false
data: {frame_size: 32}
model:
  num_frames: 4
  enhancement_layers: 1
  text_encoder: wordllama
  text_options: {}
  backbone_options: {width: 24, layers: 2, heads: 2, patch_size: 16, input_size: 32, global_blocks: [1]}
"""
CLIPS_PER_CLASS = 1
VIDEO = "0LtLS9wROrk"
CATEGORIES = (
    "Clabel: 0; set: 1; Glabel: 1; (VT) round-off, flic-flac with 0.5 turn on, 0.5 turn to salto off",
    "Clabel: 1; set: 22; Glabel: 170; (FX) 1 turn in back attitude, knee of free leg at horizontal",
    "Clabel: 2; set: 21; Glabel: 121; (FX) switch leap (leap forward with leg change to cross split)",
)

Shell = Callable[[str, Path], None]


def build(world: Path, sh: Shell) -> None:
    """Makes everything but what a command makes for another one; ``sh`` runs a command in a folder."""
    copy_repository(world)
    write_recipes(world)
    few = f"--train-per-class {CLIPS_PER_CLASS} --test-per-class {CLIPS_PER_CLASS}"
    sh(f"art prepare motion --root data/motion --size 32 --frames 8 {few} --workers 1", world)
    clips = sorted((world / "data/motion/clips/test").iterdir())
    write_clips(world, clips)
    write_finegym(world / "data/finegym", clips)
    write_kinetics(world / "data/k400", clips)
    write_own_clips(world / "data/mine", clips)
    sh(f"python - <<'END'\n{WEIGHTS}END", world)
    sh("art train configs/motion.yaml", world)
    sh(f"python - <<'END'\n{INTERRUPTED}END", world)
    for name in ("a", "b", "k400", "compare/art-seed0"):
        shutil.copytree(world / "runs/motion", world / "runs" / name)
    for name in ("art-seed0", "art-seed1", "backbone-seed0", "backbone-seed1"):
        (world / "runs/more" / name).mkdir(parents=True)
        shutil.copy(world / "runs/motion/evaluation.json", world / "runs/more" / name)
    for name in ("more", "ablate"):
        (world / "data" / name).symlink_to(world / "data/motion")


def copy_repository(world: Path) -> None:
    """What of the repository commands name; pictures and results, which some draw anew, stay behind."""
    for name in ("examples", "benchmarks", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "pictures", "results", "api", "hooks")
        shutil.copytree(ROOT / name, world / name, ignore=ignored)
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "setup.py", "mkdocs.yml", ".pre-commit-config.yaml"):
        shutil.copy(ROOT / name, world / name)
    (world / "csrc").symlink_to(ROOT / "csrc")


def write_recipes(world: Path) -> None:
    """``configs/``: each recipe by its name, made small; the real ones are in ``configs/real``."""
    shutil.copytree(ROOT / "configs", world / "configs/real")
    for name, text in {"small": SMALL, "motion": OF_MOTION, "paper": OF_PAPER}.items():
        (world / f"configs/real/only-{name}.yaml").write_text(text)
    for recipe in (ROOT / "configs").glob("*.yaml"):
        own = "motion" if recipe.stem == "motion" else "paper"
        files = ", ".join(f"real/{name}.yaml" for name in (recipe.stem, "only-small", f"only-{own}"))
        (world / "configs" / recipe.name).write_text(f"include: [{files}]\n")


#: A checkpoint of the small backbone in the published form, where the recipes of the paper have one.
WEIGHTS = """
import torch
from art import build_backbone
from art.backbones.uniformerv2_weights import published_state
from art.train.config import load_config

model = load_config("configs/finegym99_uniformerv2_b16.yaml").model
torch.save(published_state(build_backbone(model.backbone, num_frames=4, **model.backbone_options)), model.pretrained)
"""

#: A training of the recipe that was asked to stop in its third step of four.
INTERRUPTED = """
import os, signal
from art.cli import main
from art.train import train

take_step = train._Training._step

def step(training, batch):
    if training.state.position.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return take_step(training, batch)

train._Training._step = step
assert main(["train", "configs/motion.yaml", "output=runs/interrupted", "report=false"]) == 130
"""


def write_clips(world: Path, clips: list[Path]) -> None:
    """A user's clips beside each other, a table of them, and the folder of weights."""
    for name in ("clip.mp4", "a.mp4", "b.mp4"):
        shutil.copy(clips[0], world / name)
    (world / "clips.csv").write_text("path\n" + "".join(f"{clip.relative_to(world)}\n" for clip in clips[:3]))
    (world / "weights").mkdir()


def write_finegym(root: Path, clips: list[Path]) -> None:
    """FineGym as it is published: whole videos, and where in them each sub-action is."""
    (root / "annotations").mkdir(parents=True)
    (root / "events").mkdir()
    segments = {f"A_{i:04}_{i + 1:04}": {"stages": 1, "timestamps": [[i / 24, i / 24 + 0.2]]} for i in range(12)}
    event = "E_000000_000010"
    times = {VIDEO: {event: {"event": 2, "segments": segments, "timestamps": [[0.0, 10.0]]}}}
    shutil.copy(clips[0], root / "events" / f"{VIDEO}_{event}.mp4")
    lines = [f"{VIDEO}_{event}_{segment} {i % len(CATEGORIES)}\n" for i, segment in enumerate(segments)]
    for name, text in {
        "gym99_categories.txt": "\n".join(CATEGORIES) + "\n",
        "set_categories.txt": "set: 1; VT\nset: 21; FX_leap_jump_hop\nset: 22; FX_turns\n",
        "gym99_train_element_v1.1.txt": "".join(lines[:8]),
        "gym99_val_element.txt": "".join(lines[8:]),
        "finegym_annotation_info_v1.1.json": json.dumps(times),
    }.items():
        (root / "annotations" / name).write_text(text)


def write_kinetics(root: Path, clips: list[Path]) -> None:
    """Kinetics-400 as it is published, with two classes."""
    for split, begin in (("train", 0), ("val", 4)):
        lines = ["label,youtube_id,time_start,time_end,split"]
        (root / split).mkdir(parents=True)
        for i in range(begin, begin + 4):
            lines.append(f"{('jumping', 'air drumming')[i % 2]},{i:011},0,10,{split}")
            shutil.copy(clips[i], root / split / f"{i:011}_000000_000010.mp4")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def write_own_clips(root: Path, clips: list[Path]) -> None:
    """A user's clips in a folder for each class, and in lists."""
    for split, count in (("train", 8), ("test", 4)):
        for i in range(count):
            folder = root / split / ("left", "right")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(clips[i], folder / f"{i}.mp4")
    for name, split in (("train", "train"), ("val", "test")):
        found = sorted((root / split).rglob("*.mp4"))
        lines = [f"{clip.relative_to(root)} {int(clip.parent.name == 'right')}\n" for clip in found]
        (root / f"{name}.txt").write_text("".join(lines))


def almost_rendered(prepared: Path, root: Path, settings: Mapping[str, int]) -> None:
    """A data set with these settings of which all clips but one are there, as after an interruption."""
    told = json.loads((prepared / "dataset.json").read_text()) | settings
    joints = json.loads((prepared / "joints.json").read_text())
    length, size = told["frames"], told["size"]
    positions = [next(iter(joints["clips"].values()))[0]] * length
    names = [
        f"clips/{split}/{label:02}_{i:03}.mp4"
        for split in ("train", "test")
        for label in range(len(told["classes"]))
        for i in range(told[f"{split}_per_class"])
    ]
    assert set(joints["clips"]) & set(names), "clips are called otherwise now"
    root.mkdir(parents=True)
    clip = root / ".clip.mp4"
    write_video(clip, np.full((length, size, size, 3), 128, dtype=np.uint8), told["fps"])
    for name in names[1:]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).hardlink_to(clip)
    joints["clips"] = dict.fromkeys(names[1:], positions)
    (root / "joints.json").write_text(json.dumps(joints))
    (root / "dataset.json").write_text(json.dumps(told))


def finished(template: Path, world: Path, configs: Mapping[str, object]) -> None:
    """Runs with these configurations, finished: each is a finished run under another configuration.

    Args:
        template: that run.
        world: where the outputs of the configurations lie.
        configs: by name, :class:`art.train.config.Config`.
    """
    from art.train.config import save_config, to_dict

    for config in configs.values():
        run = world / config.output
        shutil.copytree(template, run, ignore=shutil.ignore_patterns("training_state*", "best"))
        save_config(config, run / "config.yaml")
        evaluation = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps({**evaluation, "config": to_dict(config)}))
