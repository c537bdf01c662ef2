"""VideoClassifier: saving and loading, models of earlier versions, and prediction."""

import json

import pytest
import torch
from torch.testing import assert_close

from art import ARTModel, BackboneClassifier, VideoClassifier, load_model
from art.data.transforms.sampling import FrameSampling

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
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"latent_dim": 16', '"latent_dim": 32'))
    with pytest.raises(ValueError, match=r"model\.safetensors does not match its config\.json"):
        ARTModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"kind": "art"', '"kind": "arts"'))
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
    for added in ("sampling", "prompts", "input_size", "num_parameters"):
        del config[added]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for loaded in (load_model(tmp_path), VideoClassifier.from_pretrained(tmp_path)):
        assert torch.equal(loaded(video).logits, model(video).logits)
        assert loaded.sampling == model.sampling and loaded.prompts is None
