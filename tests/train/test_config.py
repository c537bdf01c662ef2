"""Configurations: YAML files, includes, overrides, aliases, and the recipes in configs/."""

import json
import random
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml

from art.data.datasets.base import dataset_entry
from art.data.transforms.sampling import FrameSampling
from art.model.options import ARTOptions
from art.tools.extract import Extractor, ExtractSettings
from art.tools.profile import profile
from art.train.config import Config, ConfigError, config_from_dict, load_config, save_config, to_dict, variants
from art.train.loop import train
from art.train.optim import build_optimizers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = [
    f"{benchmark}_{backbone}"
    for benchmark, backbone in product(
        ("finegym99", "finegym288", "diving48", "kinetics400", "kinetics600", "ntu60_xview"),
        ("uniformerv2_b16", "uniformerv2_l14", "tea50"),
    )
]
FROZEN = list(product(("finegym99", "finegym288", "diving48", "something_v2"), ("vjepa2_l", "dinov3_b")))


def test_defaults_match_the_paper():
    config = load_config(None)
    assert (config.optim.epochs, config.optim.lr, config.optim.step_epochs) == (50, 0.01, 20)
    assert config.optim.schedule == "step"
    assert config.model == ARTOptions()


def test_overrides_apply_after_the_file_in_order(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\noptim:\n  lr: 0.5\n  epochs: 7\nmodel:\n  backbone_options: {width: 8}\n")
    config = load_config(path, ["optim.lr=1e-3", "optim.lr=0.25", "model.backbone_options.depth=[1, 1, 1]"])
    assert (config.seed, config.optim.lr, config.optim.epochs) == (3, 0.25, 7)
    assert config.model.backbone_options == {"width": 8, "depth": [1, 1, 1]}
    assert isinstance(config.model, ARTOptions)


def test_override_values_are_yaml():
    config = load_config(None, ["optim.backbone_lr=1e-5", "model.templates=['a {label}', 'the {label}']"])
    assert config.optim.backbone_lr == 1e-5
    assert config.model.templates == ["a {label}", "the {label}"]
    assert load_config(None, ["optim.backbone_lr=1", "optim.backbone_lr=null"]).optim.backbone_lr is None


def test_save_and_load_round_trip(tmp_path):
    config = load_config(
        None, ["model.backbone_options.width=8", "data.validation_split=val", "optim.clip_grad_norm=2"]
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config_from_dict(to_dict(config), "here") == config
    assert set(yaml.safe_load((tmp_path / "config.yaml").read_text())) == {f.name for f in fields(Config)}


def test_former_keys_are_accepted(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {max_bad_share: 0.25}\n")
    assert load_config(tmp_path / "run.yaml").data.max_failed_fraction == 0.25
    assert load_config(tmp_path / "run.yaml", ["data.max_bad_share=0.5"]).data.max_failed_fraction == 0.5
    assert list(variants(Config(), "data.max_bad_share=0.1,0.2")) == ["0.1", "0.2"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.epoch=3", ["optim.epoch: unknown key", "got the value 3", "optim.epochs, which expects int"]),
        ("lr=0.1", ["lr: unknown key", "nearest known key is optim.lr"]),
        ("model.margn=1", ["nearest known key is model.margin"]),
        ("optim.momentm.x=1", ["optim.momentm: unknown key", "optim.momentum"]),
        ("zzzz=1", ["zzzz: unknown key", "expected one of seed, output"]),
        ("optim.epochs=1.5", ["optim.epochs: got 1.5, expected int", "the command line"]),
        ("optim.epochs=many", ["optim.epochs: got 'many', expected int"]),
        ("optim.lr=null", ["optim.lr: got None, expected float"]),
        ("optim.lr.x=1", ["optim.lr: got {'x': 1}, expected float"]),
        ("optim=3", ["optim: got 3, expected a mapping"]),
        ("data.crop_scale=[a, b]", ["data.crop_scale: got ['a', 'b'], expected list[float]"]),
        ("kind=atr", ["kind: got 'atr'", "one of art, backbone", "did you mean art?"]),
        ("precision=fp8", ["precision: got 'fp8'", "fp32, bf16, fp16"]),
        ("device=gpu", ["device: got 'gpu'", "auto, cpu, cuda"]),
        ("optim.schedule=cosin", ["did you mean cosine?"]),
        ("optim.optimizer=adam", ["did you mean adamw?"]),
        ("optim.epochs=0", ["optim.epochs: got 0, expected at least 1"]),
        ("optim.lr=-1", ["optim.lr: got -1.0"]),
        ("optim.lr=.nan", ["optim.lr: got nan"]),
        ("optim.clip_grad_norm=0", ["optim.clip_grad_norm: got 0.0", "above 0"]),
        ("optim.layer_decay=1", ["optim.layer_decay: got 1.0", "above 0 and below 1"]),
        ("optim.ema=0", ["optim.ema: got 0.0", "above 0 and below 1"]),
        ("optim.accumulate=0", ["optim.accumulate: got 0, expected at least 1"]),
        ("optim.accumulate=3", ["optim.accumulate: got 3, expected a divisor of optim.batch_size=8"]),
        ("log.wandb=''", ["log.wandb: got ''", "a name, or null"]),
        ("log.histograms_every=0", ["log.histograms_every: got 0, expected at least 1"]),
        ("log.profile=[3]", ["log.profile: got [3], expected [first step, last step]"]),
        ("log.profile=[3, 2]", ["log.profile: got [3, 2]"]),
        ("log.tensorbord=false", ["nearest known key is log.tensorboard"]),
        ("parallel.timeout=0", ["parallel.timeout: got 0.0, expected a number of seconds above 0"]),
        ("data.max_failed_fraction=2", ["data.max_failed_fraction: got 2.0"]),
        ("data.max_bad_share=2", ["data.max_failed_fraction: got 2.0"]),
        ("data.crop_scale=[0.9, 0.5]", ["data.crop_scale: got [0.9, 0.5]"]),
        ("data.sampling=dens", ["data.sampling: got 'dens'", "sparse, dense", "did you mean dense?"]),
        ("data.stride=4", ["data.stride: got 4, expected 1 with data.sampling=sparse"]),
        ("data.stride=0", ["data.stride: got 0, expected at least 1"]),
        ("data.test_views=0", ["data.test_views: got 0, expected at least 1"]),
        ("data.test_crops=2", ["data.test_crops: got 2, expected one of 1, 3"]),
        ("data.crop_aspect=[2, 1]", ["data.crop_aspect: got [2.0, 1.0]"]),
        ("data.rand_augment=-1", ["data.rand_augment: got -1"]),
        ("data.rand_magnitude=11", ["data.rand_magnitude: got 11.0, expected a magnitude, 0 to 10"]),
        ("data.mixup=-0.5", ["data.mixup: got -0.5"]),
        ("data.mix_probability=2", ["data.mix_probability: got 2.0"]),
        ("model.num_frames=0", ["model: num_frames is 0"]),
        ("output=''", ["output: got ''"]),
        ("optim.lr", ["override 'optim.lr': expected dotted.key=value"]),
        ("optim.lr=[", ["the value cannot be read as YAML"]),
        ("optim.lr=${nowhere}", ["nowhere"]),
    ],
)
def test_invalid_overrides(override, expected):
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    message = str(error.value)
    assert all(part in message for part in expected), message
    assert "\n" not in message


def test_mixing_requires_pairs_and_excludes_nce():
    mixed = ["data.mixup=0.2", "data.cutmix=1"]
    with pytest.raises(ConfigError, match=r"optim\.batch_size: got 7, expected an even number with data\.mixup"):
        load_config(None, [*mixed, "optim.batch_size=7"])
    with pytest.raises(ConfigError, match=r"model\.weight_nce: got 1\.0, expected 0 with data\.mixup"):
        load_config(None, [*mixed, "model.weight_nce=1"])
    disabled = load_config(None, [*mixed, "optim.batch_size=7", "data.mix_probability=0"])
    assert not disabled.data.mixes and load_config(None, mixed).data.mixes


def test_accumulation_requires_even_microbatches_with_mixing_and_excludes_nce():
    with pytest.raises(ConfigError, match=r"optim\.accumulate: got 8, expected microbatches of an even .* not 8/8"):
        load_config(None, ["data.mixup=0.2", "optim.accumulate=8"])
    with pytest.raises(ConfigError, match=r"optim\.accumulate: got 2, expected 1 with model\.weight_nce"):
        load_config(None, ["optim.accumulate=2", "model.weight_nce=1"])
    assert load_config(None, ["data.mixup=0.2", "optim.accumulate=4"]).optim.accumulate == 4
    assert load_config(None, ["kind=backbone", "optim.accumulate=2", "model.weight_nce=1"]).optim.accumulate == 2


def test_frame_sampling():
    config = load_config(None, ["data.sampling=dense", "data.stride=4"])
    assert config.data.frame_sampling == FrameSampling("dense", 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim:\n  learning_rate: 1\n", ["optim.learning_rate: unknown key"]),
        ("optim:\n", ["optim: got None, expected a mapping", "run.yaml"]),
        ("- 1\n", ["holds a list, expected a mapping"]),
        ("a: [\n", ["cannot be read as YAML"]),
        ("seed: 1\nseed: 2\n", ["cannot be read as YAML", "duplicate key"]),
        ("seed: 99999999999999999999\n", ["seed: got 99999999999999999999", "2**63 - 1"]),
        ("data: {root: ' '}\n", ["data.root: got ' '", "the path of the directory of the clips"]),
        ('output: "a\\0b"\n', ["output: got 'a\\x00b'"]),
        ("data: {test_fraction: 1}\n", ["data.test_fraction: got 1.0", "above 0 and below 1"]),
        ('"two\\nlines": ' + "x" * 1000, ["two lines: unknown key", "xxx..."]),
        ("a: " + "[" * 900 + "]" * 900, ["cannot be read as YAML", "maximum recursion depth"]),
    ],
)
def test_invalid_files(tmp_path, text, expected):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert all(part in str(error.value) for part in expected), str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    content, generator = (CONFIGS / "motion.yaml").read_bytes(), random.Random(0)
    pieces = [
        b"\0",
        b"\xff",
        b": ",
        b"- ",
        b"{",
        b"]",
        b"&a ",
        b"*a",
        b"!!python/object:os.system",
        b"${a.b}",
        b"'",
        b"\n",
    ]
    refused = 0
    for seed in range(60):
        at = generator.randrange(len(content))
        path = tmp_path / f"{seed}.yaml"
        path.write_bytes(content[:at] + generator.choice(pieces) + content[at + generator.randrange(9) :])
        try:
            load_config(path)
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
    assert 10 < refused < 60


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")


@pytest.fixture
def files(tmp_path):
    """``files(name=text)`` writes YAML files; "__" in a name is a directory separator."""

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_later_files_override_included_ones(files):
    root = files(
        parts__base="seed: 1\noptim: {lr: 0.5, epochs: 3}\nmodel: {backbone_options: {width: 4}}\n",
        parts__fast="include: [base.yaml]\noptim: {lr: 0.25}\n",
        parts__small="data: {workers: 0}\noptim: {epochs: 2}\n",
        recipe="include: [parts/fast.yaml, parts/small.yaml]\nmodel: {backbone_options: {depth: [1]}}\noutput: x\n",
    )
    config = load_config(root / "recipe.yaml", ["seed=7"])
    assert (config.seed, config.output, config.data.workers) == (7, "x", 0)
    assert (config.optim.lr, config.optim.epochs) == (0.25, 2)
    assert config.model.backbone_options == {"width": 4, "depth": [1]}


def test_empty_mapping_clears_options(files):
    root = files(base="model: {text_options: {model: ViT-B-16}}\n", recipe="include: [base.yaml]\n")
    assert load_config(root / "recipe.yaml").model.text_options == {"model": "ViT-B-16"}
    assert load_config(root / "recipe.yaml", ["model.text_options={}"]).model.text_options == {}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("include: [nowhere.yaml]", FileNotFoundError, r"no file .*nowhere\.yaml \(included by .*recipe\.yaml\)"),
        ("include: base.yaml", ConfigError, r"recipe\.yaml: include is 'base\.yaml', expected a list of files"),
        ("include: [3]", ConfigError, r"include is \[3\], expected a list of files"),
        ("include: [recipe.yaml]", ConfigError, r"include is circular: .*recipe\.yaml"),
        ("include: [base.yaml]", ConfigError, r"optim\.lrr: unknown key"),
    ],
)
def test_invalid_includes(files, text, error, message):
    root = files(base="optim: {lrr: 1}\n", recipe=text)
    with pytest.raises(error, match=message):
        load_config(root / "recipe.yaml")


def test_errors_name_the_included_file(files):
    root = files(base="optim: {lr: fast}\n", recipe="include: [base.yaml]\n")
    with pytest.raises(ConfigError, match=r"optim\.lr: got 'fast', expected float \(from .*base\.yaml\)"):
        load_config(root / "recipe.yaml")


def test_motion_config_is_valid():
    assert load_config(CONFIGS / "motion.yaml") != load_config(None)
    clips = load_config(CONFIGS / "clips.yaml").data
    assert (clips.name, clips.frame_size, clips.cache, clips.train_split, clips.test_split) == (
        "folder", 128, False, "train", "test",
    )  # fmt: skip


def test_one_recipe_per_backbone_and_benchmark():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {
        *RECIPES, *("_".join(names) for names in FROZEN), "motion", "clips",
    }  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_follow_the_paper(recipe):
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


@pytest.mark.parametrize(("dataset", "backbone"), FROZEN)
def test_recipes_of_frozen_backbones(dataset, backbone):
    config = load_config(CONFIGS / f"{dataset}_{backbone}.yaml")
    model = config.model
    assert config.data.name == dataset and config.output == f"runs/{dataset}_{backbone}"
    assert {config.data.train_split, config.data.test_split} <= set(dataset_entry(dataset).splits)
    assert model.num_frames == (32 if (dataset, backbone) == ("diving48", "vjepa2_l") else 16)
    assert model.backbone_options == {"frozen": True, "input_size": 256}
    assert round(config.data.frame_size * model.test_crop) == 256
    assert model.pretrained == {
        "vjepa2_l": "facebook/vjepa2-vitl-fpc64-256", "dinov3_b": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    }[backbone]  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "mlp", "shapes"),
    [
        ("vjepa2_l", "mlp_ratio: 2.0", {"tokens": (2, 4, 24), "class_token": (24,)}),
        ("dinov3_b", "intermediate_size: 24", {"tokens": (4, 4, 24), "class_token": (24,), "prefix": (4, 5, 24)}),
    ],
)
def test_recipe_extracts(backbone, mlp, shapes, diving48):
    """With a smaller model, random weights, and fewer frames."""
    pytest.importorskip("transformers", exc_type=ImportError)
    options = f"hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, {mlp}, input_size: 32"
    overrides = [f"data.root={diving48}", f"model.backbone_options={{{options}}}", "model.pretrained=null"]
    config = load_config(CONFIGS / f"diving48_{backbone}.yaml", [*overrides, "model.num_frames=4", *SMALL[-5:]])
    extractor = Extractor(ExtractSettings(config), "cpu")
    tensors, errors = extractor.extract("train", [0, 3])
    assert not errors
    assert {name: tuple(tensor.shape[2:]) for name, tensor in tensors.items() if name != "clip"} == shapes
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_recipe_learning_rates_by_group():
    config = load_config(CONFIGS / "finegym99_uniformerv2_b16.yaml", ["optim.bank_lr=0.03"])
    parameters = {name: [torch.nn.Parameter(torch.zeros(2, 2))] for name in ("backbone", "head", "bank")}
    groups = {
        group["name"]: (type(optimizer).__name__, group["lr"], group["weight_decay"])
        for optimizer in build_optimizers(parameters, config.optim)
        for group in optimizer.param_groups
    }
    assert groups == {"backbone": ("AdamW", 1e-5, 0.05), "head": ("SGD", 0.01, 1e-4), "bank": ("SGD", 0.03, 0.0)}


@pytest.fixture(scope="module")
def diving48(tmp_path_factory, write_clip):
    """Root of a Diving48 dataset with four training clips and two test clips."""
    root = tmp_path_factory.mktemp("diving48")
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


SMALL = [
    "model.text_encoder=wordllama", "model.text_options={}", "model.num_frames=2", "precision=fp32", "device=cpu",
    "data.workers=0", "data.frame_size=40", "optim.batch_size=2", "optim.epochs=1", "report=false",
]  # fmt: skip


@pytest.mark.slow
def test_recipe_trains(tmp_path, diving48):
    overrides = [f"data.root={diving48}", f"output={tmp_path / 'run'}", *SMALL]
    with pytest.raises(FileNotFoundError, match=r"weights/res2net50_26w_4s\.pth"):
        train(load_config(CONFIGS / "diving48_tea50.yaml", overrides))
    result = train(load_config(CONFIGS / "diving48_tea50.yaml", [*overrides, "model.pretrained=null"]))
    assert result.evaluation.total == 2
    saved = json.loads((tmp_path / "run" / "checkpoints" / "last" / "config.json").read_text())["class_names"]
    assert list(result.evaluation.class_names) == saved and len(saved) == 2


@pytest.mark.slow
def test_recipe_can_be_profiled_without_data_or_weights():
    config = load_config(CONFIGS / "finegym99_uniformerv2_b16.yaml", ["model.pretrained=null"])
    counted = profile(config, clips=1, classes=99, repetitions=1, measure=False)
    assert {"backbone", "heads"} <= {stage["stage"] for stage in counted["stages"]}
