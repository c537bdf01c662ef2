"""VideoClassifier: saving and loading, models of earlier versions, and prediction."""

import dataclasses
import json

import pytest
import torch
from torch.testing import assert_close

from art import ARTModel, BackboneClassifier, VideoClassifier, build_model, load_model
from art.data.files import DamagedFile
from art.data.transforms.sampling import FrameSampling
from art.model.files import read_config, write_config

LABELS = torch.tensor([1, 3])


def test_predict_averages_views_and_crops(make_art, monkeypatch):
    frames = torch.randint(256, (6, 3, 40, 64), dtype=torch.uint8)
    calls = []

    def read(path, num_frames, **options):
        calls.append((path, num_frames, options))
        return frames[: num_frames * options["views"]]

    monkeypatch.setattr("art.data.transforms.augment.read_clip", read)
    model = make_art().train()
    model.sampling = FrameSampling("dense", 4)
    predicted = dict(model.predict("a.mp4", 4, views=2, crops=3))
    defaults = {"start": None, "end": None, "decoder": "pyav"}
    assert calls == [("a.mp4", 3, {"sampling": FrameSampling("dense", 4), "views": 2, **defaults})]
    assert model.training
    shown = torch.stack([view[..., left : left + 40] for view in frames.split(3) for left in (0, 12, 24)])
    with torch.no_grad():
        expected = model.eval()(model.center_crop(shown)).logits.softmax(1).mean(0)
    assert_close(torch.tensor([predicted[name] for name in model.class_names]), expected)
    model.predict("a.mp4")
    assert calls[-1][2]["views"] == 1
    with pytest.raises(ValueError, match="crops must be 1 or 3, got 2"):
        model.predict("a.mp4", crops=2)


@pytest.mark.parametrize("kind", ["art", "backbone"])
def test_save_and_load_are_bit_exact(make_art, make_baseline, video, tmp_path, kind, monkeypatch):
    model = make_art() if kind == "art" else make_baseline()
    model.loss(model(video), LABELS).total.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    model.update_bank()
    model.eval().save_pretrained(tmp_path / "saved")

    def no_encoder(*_, **__):
        raise AssertionError("loading a model must not build a text encoder")

    monkeypatch.setattr("art.model.art_model.build_text_encoder", no_encoder)
    loaded = load_model(tmp_path / "saved")
    assert type(loaded) is type(model)
    assert loaded.class_names == model.class_names
    assert loaded.options == model.options
    assert torch.equal(loaded(video).logits, model(video).logits)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_loading_errors(make_art, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a directory written by save_pretrained"):
        ARTModel.from_pretrained(tmp_path)
    make_art().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of kind 'art', expected backbone"):
        BackboneClassifier.from_pretrained(tmp_path)
    config = read_config(tmp_path)
    write_config(tmp_path / "config.json", config | {"options": config["options"] | {"latent_dim": 32}})
    with pytest.raises(ValueError, match=r"model\.safetensors does not match its config\.json"):
        ARTModel.from_pretrained(tmp_path)
    write_config(tmp_path / "config.json", config | {"kind": "arts"})
    with pytest.raises(ValueError, match=r"holds a model of kind 'arts', expected art"):
        ARTModel.from_pretrained(tmp_path)


def test_interrupted_save_keeps_the_previous_model(make_art, tmp_path, monkeypatch):
    model = make_art()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("art.model.pretrained.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_config_of_earlier_versions(make_art, video, tmp_path):
    model = make_art().eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for added in ("sampling", "prompts", "input_size", "num_parameters", "sha256"):
        del config[added]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for loaded in (load_model(tmp_path), VideoClassifier.from_pretrained(tmp_path)):
        assert torch.equal(loaded(video).logits, model(video).logits)
        assert loaded.sampling == model.sampling and loaded.prompts is None


def test_damaged_files_are_named(make_art, tmp_path):
    make_art().save_pretrained(tmp_path)
    for name, damage, message in (
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not match its checksum"),
        ("model.safetensors", lambda data: data[: len(data) // 2], "does not match its checksum"),
        ("config.json", lambda data: data.replace(b'"mtc"', b'"mtd"').replace(b"walk", b"wolk"), "does not match its"),
        ("config.json", lambda data: b"", "is empty"),
        ("config.json", lambda data: b"[]", "contains a list"),
        ("config.json", lambda data: data[:-9], "cannot be read as JSON"),
        ("config.json", lambda data: b"[" * 100_000, "cannot be read as JSON"),
    ):
        original = (tmp_path / name).read_bytes()
        damaged = damage(original)
        assert damaged != original
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DamagedFile, match=rf"{name}: .*{message}"):
            load_model(tmp_path)
        (tmp_path / name).write_bytes(original)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config, sort_keys=True))  # reformatting is not damage
    load_model(tmp_path)


@pytest.mark.parametrize(
    "damage", [{"options": {"num_frames": "3"}}, {"options": None}, {"class_names": 5}, {"sampling": 1}]
)
def test_invalid_values_without_a_checksum_are_reported(make_baseline, tmp_path, damage):
    make_baseline().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config | damage))
    with pytest.raises(DamagedFile, match=r"config\.json: no model can be built from it \([^\n]*\)$"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(DamagedFile, match=r"model\.safetensors: cannot be read as safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("form", ["run", "checkpoint", "safetensors", "pth", "wrapped"])
def test_model_starts_from_a_saved_model(make_art, tmp_path, form, caplog):
    saved = make_art().eval()
    directory = tmp_path / "run" / "checkpoints" / "last"
    saved.save_pretrained(directory)
    paths = {"run": tmp_path / "run", "checkpoint": directory, "safetensors": directory / "model.safetensors"}
    if form in ("pth", "wrapped"):
        paths[form] = tmp_path / "mine.pth"
        state = saved.state_dict()
        torch.save(
            {"state_dict": {f"module.{n}": v for n, v in state.items()}} if form == "wrapped" else state, paths[form]
        )
    options = dataclasses.replace(saved.options, pretrained=str(paths[form]))
    same = build_model("art", saved.class_names, options)
    assert same.options == options
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in saved.state_dict().items())
    assert "new weights" not in caplog.text
    caplog.clear()
    names = [*saved.class_names[:-1], "other"]
    other = build_model("art", [*names, "one more"] if form in ("pth", "wrapped") else names, options)
    assert "classification head" in caplog.text
    assert "with new weights: semantics, video_head, final_head" in caplog.text
    for name, value in saved.state_dict().items():
        kept = name.partition(".")[0] not in ("semantics", "video_head", "final_head")
        if kept:
            assert torch.equal(value, other.state_dict()[name])
    assert not torch.equal(saved.final_head.weight, other.final_head.weight[: len(saved.class_names)])
    baseline = build_model("backbone", saved.class_names, options)
    assert torch.equal(baseline.video_head.weight, saved.video_head.weight)


def test_errors_of_pretrained(make_baseline, tmp_path):
    saved = make_baseline()
    saved.save_pretrained(tmp_path / "saved")

    def build(path, **changes):
        return build_model(
            "backbone", saved.class_names, dataclasses.replace(saved.options, pretrained=str(path), **changes)
        )

    with pytest.raises(FileNotFoundError, match=r"pretrained is .*nowhere"):
        build(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="directory without a checkpoint"):
        build(tmp_path)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"pretrained: .*text\.safetensors is not a safetensors file"):
        build(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"pretrained .*saved does not match the model"):
        build(tmp_path / "saved", backbone_options={"width": 6, "depth": [1, 1, 1]})
    data = bytearray((tmp_path / "saved" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "saved" / "model.safetensors").write_bytes(data)
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        build(tmp_path / "saved" / "model.safetensors")


def test_saved_files_have_the_default_permissions(tmp_path):
    BackboneClassifier(["walk", "jump"], num_frames=2, backbone_options={"width": 4}).save_pretrained(tmp_path)
    (tmp_path / "other").touch()
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, modes
