"""The recipes in configs/: the paper's backbones on the paper's benchmarks."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from art.data.datasets.registry import dataset_entry
from art.tools.profile import profile
from art.train.config import load_config
from art.train.loop import train
from art.train.optim import build_optimizers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BENCHMARKS = ("finegym99", "finegym288", "diving48", "kinetics400", "kinetics600", "ntu60_xview")
BACKBONES = ("uniformerv2_b16", "uniformerv2_l14", "tea50")
RECIPES = [f"{benchmark}_{backbone}" for benchmark, backbone in product(BENCHMARKS, BACKBONES)]


def test_there_is_one_for_each_backbone_on_each_benchmark():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*RECIPES, "motion"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_paper_s(recipe):
    config = load_config(CONFIGS / f"{recipe}.yaml")
    assert config.output == f"runs/{recipe}"
    assert recipe == f"{config.data.name}_{config.model.backbone}"
    splits = dataset_entry(config.data.name).splits
    assert {config.data.train_split, config.data.test_split} <= set(splits)
    model, optim = config.model, config.optim
    assert (model.num_frames, model.num_tracklets, model.latent_dim, model.dropout) == (16, 2, 256, 0.5)
    assert (model.margin, model.weight_mtc, model.weight_sema, model.linking) == (0.6, 5.0, 5.0, "index")
    assert (optim.epochs, optim.lr, optim.schedule, optim.step_epochs) == (50, 0.01, "step", 20)
    assert optim.optimizer == "sgd" and optim.momentum > 0
    transformer = config.model.backbone.startswith("uniformerv2")
    assert (optim.backbone_optimizer == "adamw") == transformer
    assert (optim.backbone_lr is not None and optim.backbone_lr < 1e-4) == transformer


def test_backbone_head_and_bank_move_at_rates_of_their_own():
    config = load_config(CONFIGS / "finegym99_uniformerv2_b16.yaml", ["optim.bank_lr=0.03"])
    parameters = {name: [torch.nn.Parameter(torch.zeros(2, 2))] for name in ("backbone", "head", "bank")}
    groups = {
        group["name"]: (type(optimizer).__name__, group["lr"], group["weight_decay"])
        for optimizer in build_optimizers(parameters, config.optim)
        for group in optimizer.param_groups
    }
    assert groups == {"backbone": ("AdamW", 1e-5, 0.05), "head": ("SGD", 0.01, 1e-4), "bank": ("SGD", 0.03, 0.0)}


def test_the_weights_that_a_recipe_wants_are_asked_for(tmp_path, dives):
    config = load_config(
        CONFIGS / "diving48_tea50.yaml", [f"data.root={dives}", f"output={tmp_path / 'run'}", *SMALL[1:]]
    )
    with pytest.raises(FileNotFoundError, match=r"weights/res2net50_26w_4s\.pth"):
        train(config)


SMALL = [
    "model.pretrained=null", "model.text_encoder=wordllama", "model.text_options={}", "model.num_frames=2",
    "precision=fp32", "device=cpu", "data.workers=0", "data.frame_size=40", "optim.batch_size=2", "optim.epochs=1",
    "report=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def dives(tmp_path_factory, write_clip):
    """Six clips in the form of Diving48."""
    root = tmp_path_factory.mktemp("dives")
    (root / "rgb").mkdir()
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]]
    (root / "Diving48_vocab.json").write_text(json.dumps(vocabulary))
    for split, count in (("train", 4), ("test", 2)):
        names = [f"-mmq0_T{split[:4]:-<4}_{i:05}" for i in range(count)]
        entries = [{"vid_name": name, "label": i % 2, "start_frame": 0, "end_frame": 6} for i, name in enumerate(names)]
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))
        for i, name in enumerate(names):
            write_clip(root / "rgb" / f"{name}.mp4", i % 2, i % 3)
    return root


def test_a_recipe_trains_and_is_measured(tmp_path, dives):
    config = load_config(CONFIGS / "diving48_tea50.yaml", [f"data.root={dives}", f"output={tmp_path / 'run'}", *SMALL])
    result = train(config)
    assert result.evaluation.total == 2
    assert result.evaluation.class_names == load_classes(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir()


def load_classes(run):
    names = json.loads((run / "checkpoints" / "last" / "config.json").read_text())["class_names"]
    assert len(names) == 2
    return tuple(names)


def test_the_stages_of_a_recipe_are_counted_without_data_or_weights():
    config = load_config(CONFIGS / "finegym99_uniformerv2_b16.yaml", ["model.pretrained=null"])
    counted = profile(config, clips=1, classes=99, repetitions=1, measure=False)
    assert {"backbone", "heads"} <= {stage["stage"] for stage in counted["stages"]}
