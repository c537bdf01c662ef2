from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from art.data.transforms.sampling import FrameSampling
from art.model.options import ARTOptions
from art.train.config import Config, ConfigError, config_from_dict, load_config, save_config, to_dict


def test_defaults_are_the_papers():
    config = load_config(None)
    assert (config.optim.epochs, config.optim.lr, config.optim.step_epochs) == (50, 0.01, 20)
    assert config.optim.schedule == "step"
    assert config.model == ARTOptions()


def test_file_then_overrides_in_order(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\noptim:\n  lr: 0.5\n  epochs: 7\nmodel:\n  backbone_options: {width: 8}\n")
    config = load_config(path, ["optim.lr=1e-3", "optim.lr=0.25", "model.backbone_options.depth=[1, 1, 1]"])
    assert (config.seed, config.optim.lr, config.optim.epochs) == (3, 0.25, 7)
    assert config.model.backbone_options == {"width": 8, "depth": [1, 1, 1]}
    assert isinstance(config.model, ARTOptions)


def test_null_and_lists_are_read_as_yaml():
    config = load_config(None, ["optim.backbone_lr=1e-5", "model.templates=['a {label}', 'the {label}']"])
    assert config.optim.backbone_lr == 1e-5
    assert config.model.templates == ["a {label}", "the {label}"]
    assert load_config(None, ["optim.backbone_lr=1", "optim.backbone_lr=null"]).optim.backbone_lr is None


def test_a_saved_configuration_is_read_back_the_same(tmp_path):
    config = load_config(
        None, ["model.backbone_options.width=8", "data.validation_split=val", "optim.clip_grad_norm=2"]
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config_from_dict(to_dict(config), "here") == config
    assert set(yaml.safe_load((tmp_path / "config.yaml").read_text())) == {f.name for f in fields(Config)}


@pytest.mark.parametrize(
    ("override", "told"),
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
        ("data.max_bad_share=2", ["data.max_bad_share: got 2.0"]),
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
def test_a_mistake_is_named(override, told):
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    message = str(error.value)
    assert all(part in message for part in told), message
    assert "\n" not in message


def test_mixed_clips_need_pairs_and_no_contrast_of_classes():
    mixed = ["data.mixup=0.2", "data.cutmix=1"]
    with pytest.raises(ConfigError, match=r"optim\.batch_size: got 7, expected an even number with data\.mixup"):
        load_config(None, [*mixed, "optim.batch_size=7"])
    with pytest.raises(ConfigError, match=r"model\.weight_nce: got 1\.0, expected 0 with data\.mixup"):
        load_config(None, [*mixed, "model.weight_nce=1"])
    never = load_config(None, [*mixed, "optim.batch_size=7", "data.mix_probability=0"])
    assert not never.data.mixes and load_config(None, mixed).data.mixes


def test_parts_of_a_batch_keep_pairs_together_and_need_no_contrast_of_the_whole():
    with pytest.raises(ConfigError, match=r"optim\.accumulate: got 8, expected parts of an even number .* not 8/8"):
        load_config(None, ["data.mixup=0.2", "optim.accumulate=8"])
    with pytest.raises(ConfigError, match=r"optim\.accumulate: got 2, expected 1 with model\.weight_nce"):
        load_config(None, ["optim.accumulate=2", "model.weight_nce=1"])
    assert load_config(None, ["data.mixup=0.2", "optim.accumulate=4"]).optim.accumulate == 4
    assert load_config(None, ["kind=backbone", "optim.accumulate=2", "model.weight_nce=1"]).optim.accumulate == 2


def test_how_frames_are_sampled():
    config = load_config(None, ["data.sampling=dense", "data.stride=4"])
    assert config.data.frame_sampling == FrameSampling("dense", 4)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optim:\n  learning_rate: 1\n", ["optim.learning_rate: unknown key"]),
        ("optim:\n", ["optim: got None, expected a mapping", "run.yaml"]),
        ("- 1\n", ["holds a list, expected a mapping"]),
        ("a: [\n", ["cannot be read as YAML"]),
        ("seed: 1\nseed: 2\n", ["cannot be read as YAML", "duplicate key"]),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, told):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert all(part in str(error.value) for part in told), str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_that_come_with_the_package_are_valid(path):
    assert load_config(path) != load_config(None)
