"""Extraction of features: agreement with the backbone, resuming, damaged files, and invalid settings."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from art.backbones import build_backbone
from art.data import features as store
from art.data.features import FeatureError, FeatureSplit, read_manifest, read_part
from art.extras import import_extra
from art.model.loading import build_model
from art.tools import extract as extraction
from art.tools.extract import Extractor, ExtractSettings, extract, plan
from art.train.batches import EvaluationBatches, open_split


@pytest.fixture
def settings(configured, tmp_path):
    return ExtractSettings(configured(tmp_path / "run"))


@pytest.fixture
def small_parts(monkeypatch):
    """Two clips per part."""
    monkeypatch.setattr(extraction, "PART_BYTES", 1)


def contents(directory):
    """Return the bytes of every file except the manifest, which has a date."""
    return {p.name: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file() and p.name != store.MANIFEST}


def online_tokens(settings, split):
    """Return the tokens of every clip, in order, as evaluation computes them."""
    config = settings.config
    torch.manual_seed(config.seed)
    clip_set = open_split(config.data, split)
    model = build_model("backbone", clip_set.class_names, config.model).eval()
    batches = EvaluationBatches(clip_set, config.data, config.optim, model, torch.device("cpu"), single_view=True)
    with torch.inference_mode():
        return torch.cat([model.backbone(batch.video).tokens for batch in batches])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_features_equal_those_of_the_backbone(settings, tmp_path, dtype, tolerance):
    settings = ExtractSettings(settings.config, dtype=dtype)
    written = extract(settings, tmp_path / "features", devices=["cpu"])
    clips = {split: len(open_split(settings.config.data, split)) for split in ("train", "test")}
    assert (written.clips, written.errors) == (sum(clips.values()), 0)
    for split in clips:
        features = FeatureSplit(tmp_path / "features", split)
        expected = online_tokens(settings, split)
        seen = []
        for batch in features.batches(2):
            torch.testing.assert_close(batch.features.tokens, expected[batch.clips], atol=tolerance, rtol=tolerance)
            assert batch.labels.tolist() == [open_split(settings.config.data, split).labels[i] for i in batch.clips]
            seen += batch.clips.tolist()
        assert sorted(seen) == list(range(clips[split])), "every clip once"


def test_batches_are_shuffled_reproducibly_and_select_a_subset(settings, tmp_path, small_parts):
    extract(settings, tmp_path / "features", devices=["cpu"])
    features = FeatureSplit(tmp_path / "features", "train")
    orders = [
        [
            clip
            for batch in features.batches(2, generator=torch.Generator().manual_seed(seed))
            for clip in batch.clips.tolist()
        ]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    subset = torch.arange(len(features)) % 2 == 0
    chosen = [clip for batch in features.batches(2, subset=subset) for clip in batch.clips.tolist()]
    assert sorted(chosen) == subset.nonzero()[:, 0].tolist()


def test_interrupted_extraction_resumes_to_identical_bytes(settings, tmp_path, small_parts, monkeypatch):
    whole = tmp_path / "whole"
    extract(settings, whole, devices=["cpu"])
    calls = []

    def fail_at_third(path, tensors, errors):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        store.write_part(path, tensors, errors)

    monkeypatch.setattr(extraction, "write_part", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        extract(settings, tmp_path / "resumed", devices=["cpu"])
    with pytest.raises(FeatureError, match="unfinished"):
        FeatureSplit(tmp_path / "resumed", "test")
    monkeypatch.setattr(extraction, "write_part", store.write_part)
    written = extract(settings, tmp_path / "resumed", devices=["cpu"])
    assert written.kept == 2
    assert contents(tmp_path / "resumed") == contents(whole)


def test_other_settings_are_an_error_that_names_the_field(settings, configured, tmp_path):
    extract(settings, tmp_path / "features", devices=["cpu"])
    with pytest.raises(FeatureError, match="has other features: dtype was 'float16', is 'bfloat16'"):
        extract(ExtractSettings(settings.config, dtype="bfloat16"), tmp_path / "features", devices=["cpu"])
    other = configured(tmp_path / "run", "seed=1")  # other random weights
    with pytest.raises(FeatureError, match=r"backbone was .*seed was 0, is 1"):
        extract(ExtractSettings(other), tmp_path / "features", devices=["cpu"])


@pytest.mark.parametrize("damage", ["bit", "cut", "removed"])
def test_damaged_part_is_an_error_that_names_it(settings, tmp_path, damage):
    extract(settings, tmp_path / "features", devices=["cpu"])
    part = tmp_path / "features" / "test" / "part-000000.safetensors"
    content = bytearray(part.read_bytes())
    if damage == "bit":
        content[-1] ^= 1
        part.write_bytes(content)
        with pytest.raises(FeatureError, match=r"part-000000\.safetensors is damaged"):
            read_part(part, verify=True)
    else:
        part.unlink()
        if damage == "cut":
            part.write_bytes(content[:-10])
        with pytest.raises(FeatureError, match=r"part-000000\.safetensors is missing or incomplete"):
            FeatureSplit(tmp_path / "features", "test")
        extract(settings, tmp_path / "features", devices=["cpu"])
        assert part.read_bytes() == content


def test_unreadable_clip_is_listed_with_its_reason(settings, tmp_path):
    data = settings.config.data
    root = shutil.copytree(data.root, tmp_path / "data")
    clip = open_split(data, "test").relative_path(1)
    (root / clip).write_bytes(b"no video")
    data.root, data.max_failed_fraction = str(root), 0.5
    written = extract(settings, tmp_path / "features", devices=["cpu"])
    features = FeatureSplit(tmp_path / "features", "test")
    assert written.errors == 1 and list(features.errors) == [1] and len(features) == len(features.paths) - 1
    assert clip in features.paths[1]
    data.max_failed_fraction = 0.0
    with pytest.raises(Exception, match=r"1 of \d+ clips .*cannot be read"):
        extract(settings, tmp_path / "strict", devices=["cpu"])


def test_values_beyond_float16_are_an_error(settings, tmp_path, monkeypatch):
    original = Extractor._forward

    def enlarge(self, videos):
        return {name: tensor * 1e6 for name, tensor in original(self, videos).items()}

    monkeypatch.setattr(Extractor, "_forward", enlarge)
    with pytest.raises(FeatureError, match=r"part-000000.*clip \d+ .*use --dtype bfloat16"):
        extract(settings, tmp_path / "features", devices=["cpu"])


def test_full_disk_and_plan(settings, tmp_path, monkeypatch):
    planned = plan(Extractor(settings, "cpu"), tmp_path / "features", measured_clips=2)
    extract(settings, tmp_path / "features", devices=["cpu"])
    stored = sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.safetensors"))
    assert abs(stored - planned.total_bytes) < 0.05 * stored + 2000
    assert planned.seconds is not None and planned.seconds > 0
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 5))
    with pytest.raises(ValueError, match=r"needs .* GiB, but the disk has 0\.0 GiB free"):
        extract(settings, tmp_path / "other", devices=["cpu"])
    assert not (tmp_path / "other").exists()


def test_several_views_are_seeded_and_differ(settings, tmp_path):
    settings = ExtractSettings(settings.config, views=2, dtype="float32")
    for name in ("one", "two"):
        extract(settings, tmp_path / name, devices=["cpu"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    tokens = load_file(tmp_path / "one" / "train" / "part-000000.safetensors")["tokens"]
    assert (tokens[:, 0] - tokens[:, 1]).abs().amax((1, 2, 3)).min() > 1e-3


def test_manifest_identifies_the_features(settings, tmp_path):
    extract(settings, tmp_path / "features", devices=["cpu"])
    manifest = read_manifest(tmp_path / "features")
    assert manifest["backbone"]["name"] == "tiny" and len(manifest["backbone"]["sha256"]) == 64
    assert manifest["splits"]["train"]["parts"] == 1
    manifest["format"] = 2
    (tmp_path / "features" / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FeatureError, match=r"manifest\.json has format 2; this version reads 1"):
        read_manifest(tmp_path / "features")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views: got 0"),
        ({"dtype": "int8"}, "dtype: got 'int8', expected one of float16"),
        ({"splits": ()}, "splits: got none"),
        ({"layers": (3,)}, "Tiny has tokens of its last layer only"),
    ],
)
def test_invalid_settings(settings, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        extract(ExtractSettings(settings.config, **options), tmp_path / "features", devices=["cpu"])
    assert not (tmp_path / "features").exists()


def test_stored_layers_and_prefix_of_a_timm_model():
    import_extra("timm", extra="timm", needed_by="this test")
    options = {"model": "vit_tiny_patch16_224", "input_size": 32}
    backbone = build_backbone("timm_vit", num_frames=2, **options).eval()
    video = torch.rand(3, 2, 3, 32, 32)
    with torch.inference_mode():
        features = backbone(video)
        named = backbone.named_features(video, (0, -1))
        hidden = backbone.model.forward_features(backbone.normalize(video).flatten(0, 1))
    assert list(named) == ["tokens", "class_token", "tokens.0", "tokens.-1", "prefix"]
    torch.testing.assert_close(named["tokens"], features.tokens)
    torch.testing.assert_close(named["class_token"], features.class_token)
    torch.testing.assert_close(named["tokens.-1"], features.tokens)
    torch.testing.assert_close(named["prefix"], hidden[:, :1].unflatten(0, (3, 2)))
    assert (named["tokens.0"] - named["tokens"]).abs().max() > 0.1
    with pytest.raises(ValueError, match="layers contains 12, expected -12 to 11"):
        backbone.named_features(video, (12,))


@pytest.mark.parametrize("name", ["videomae", "vivit", "timesformer"])
def test_stored_features_of_transformers_are_not_repeated_over_a_tubelet(name):
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tubelet = {"videomae": {"tubelet_size": 2}, "vivit": {"tubelet_size": [2, 16, 16]}, "timesformer": {}}[name]
    backbone = build_backbone(name, num_frames=4, input_size=32, **sizes, **tubelet).eval()
    video = torch.rand(2, 4, 3, 32, 32)
    with torch.inference_mode():
        features, named = backbone(video), backbone.named_features(video, (0,))
    steps = 4 if name == "timesformer" else 2
    assert named["tokens"].shape == named["tokens.0"].shape == (2, steps, 4, 24)
    torch.testing.assert_close(named["tokens"].repeat_interleave(4 // steps, 1), features.tokens)
    assert ("prefix" in named) == (name != "videomae")
    if "prefix" in named:
        torch.testing.assert_close(named["prefix"][:, 0, 0], features.class_token)
