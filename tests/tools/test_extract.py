"""Extraction of features: agreement with the backbone, resuming, damaged files, and invalid settings."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from art.backbones import Tiny, build_backbone
from art.cli import main
from art.data import features as store
from art.data.features import FeatureBatch, FeatureError, FeatureSplit, read_manifest, read_part
from art.data.files import WriteError
from art.experiments.probe_clips import ClipFrames, collect_clips
from art.experiments.probe_training import ProbeSettings, fit, make_candidate
from art.extras import import_extra
from art.model.loading import build_model
from art.tools.extract import Extractor, ExtractSettings, directory, extract, plan
from art.tools.extract.cluster import RayExtractor, extract_on_cluster
from art.train import lock
from art.train.batches import EvaluationBatches, open_split
from art.train.config import load_config
from art.train.lock import DirectoryInUse, DirectoryLock


@pytest.fixture
def settings(configured, tmp_path):
    return ExtractSettings(configured(tmp_path / "run"))


@pytest.fixture
def small_parts(monkeypatch):
    """Two clips per part."""
    monkeypatch.setattr(directory, "PART_BYTES", 1)


def contents(root):
    """Return the bytes of every file except the manifest, which has a date."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != store.MANIFEST)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def online_features(settings, split):
    """Return tokens and class tokens of every clip, in order, as evaluation computes them."""
    config = settings.config
    torch.manual_seed(config.seed)
    clip_set = open_split(config.data, split)
    model = build_model("backbone", clip_set.class_names, config.model).eval()
    batches = EvaluationBatches(clip_set, config.data, config.optim, model, torch.device("cpu"), single_view=True)
    with torch.inference_mode():
        features = [model.backbone(batch.video) for batch in batches]
    return torch.cat([each.tokens for each in features]), torch.cat([each.class_token for each in features])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_features_equal_those_of_the_backbone(settings, tmp_path, dtype, tolerance):
    settings = ExtractSettings(settings.config, dtype=dtype)
    written = extract(settings, tmp_path / "features", devices=["cpu"])
    clips = {split: len(open_split(settings.config.data, split)) for split in ("train", "test")}
    assert (written.clips, written.errors) == (sum(clips.values()), 0)
    for split in clips:
        features = FeatureSplit(tmp_path / "features", split)
        expected, class_tokens = online_features(settings, split)
        seen = []
        for batch in features.batches(2):
            torch.testing.assert_close(batch.features.tokens, expected[batch.clips], atol=tolerance, rtol=tolerance)
            cached = batch.features.class_token
            torch.testing.assert_close(cached, class_tokens[batch.clips], atol=tolerance, rtol=tolerance)
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
        return store.save_part(path, tensors, errors)

    monkeypatch.setattr(directory, "save_part", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        extract(settings, tmp_path / "resumed", devices=["cpu"])
    with pytest.raises(FeatureError, match="unfinished"):
        FeatureSplit(tmp_path / "resumed", "test")
    monkeypatch.undo()
    monkeypatch.setattr(directory, "PART_BYTES", 1)
    written = extract(settings, tmp_path / "resumed", devices=["cpu"])
    assert written.kept == 2
    assert contents(tmp_path / "resumed") == contents(whole)


# Extracts with one clip per part, and hangs when two parts are finished.
PROGRAM = """
import sys, time
from pathlib import Path
from art.tools.extract import ExtractSettings, directory, extract
from art.train.config import load_config

finish, calls = directory.finish_part, []

def hang_at_third(path, rows):
    calls.append(path)
    if len(calls) == 3:
        print("ready", flush=True)
        time.sleep(600)
    finish(path, rows)

if __name__ == "__main__":
    directory.PART_BYTES, directory.finish_part = 1, hang_at_third
    out, jobs, *overrides = sys.argv[1:]
    extract(ExtractSettings(load_config(None, overrides)), Path(out), devices=["cpu"] * int(jobs))
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_extraction_resumes_to_identical_bytes(settings, configured, tmp_path, small_parts, monkeypatch, jobs):
    (tmp_path / "program.py").write_text(PROGRAM)
    out = tmp_path / "features"
    command = [sys.executable, tmp_path / "program.py", out, str(jobs), *configured.small(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        monkeypatch.setattr(lock, "_ACQUIRE_TIMEOUT", 0.1)
        with pytest.raises(DirectoryInUse, match=rf"an extraction \(process {process.pid} on {socket.gethostname()}\)"):
            extract(settings, out, devices=["cpu"])
        process.kill()
    assert list(out.rglob("*.partial")) and (out / ".lock").exists()
    (out / "train" / ".tmpAbC").touch()  # as safetensors names a file that it is writing
    written = extract(settings, out, devices=["cpu"])
    assert written.kept == 2
    extract(settings, tmp_path / "whole", devices=["cpu"])
    assert contents(out) == contents(tmp_path / "whole")


def test_second_writer_is_refused_before_any_work(settings, configured, tmp_path, monkeypatch, capsys):
    out = tmp_path / "features"
    out.mkdir()
    monkeypatch.setattr(lock, "_ACQUIRE_TIMEOUT", 0.1)
    monkeypatch.setattr(directory, "Extractor", None)
    with DirectoryLock(out) as held:
        held.acquire()
        code = main(["extract", "configs/motion.yaml", "--out", str(out), *configured.small(tmp_path / "run")])
    error = capsys.readouterr().err
    assert code == 2
    assert f"{out} is in use: an extraction (process {os.getpid()} on {socket.gethostname()}) is writing to it" in error
    assert "choose another directory with --out" in error
    monkeypatch.undo()
    extract(settings, out, devices=["cpu"])
    assert not (out / ".lock").exists()


@contextmanager
def file_size_limit(size):
    """Writing more than ``size`` bytes to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_an_error_that_names_the_file(settings, tmp_path):
    out = tmp_path / "features"
    with (
        file_size_limit(10_000),
        pytest.raises(WriteError, match=r"train/part-000000\.safetensors cannot be written \("),
    ):
        extract(settings, out, devices=["cpu"])
    assert {path.name for path in out.rglob("*") if path.is_file()} == {store.MANIFEST, store.CONFIG}
    extract(settings, out, devices=["cpu"])
    assert store.verify(out) == 2


def test_other_settings_are_an_error_that_names_the_field(settings, configured, tmp_path):
    extract(settings, tmp_path / "features", devices=["cpu"])
    with pytest.raises(FeatureError, match="has other features: dtype was 'float16', is 'bfloat16'"):
        extract(ExtractSettings(settings.config, dtype="bfloat16"), tmp_path / "features", devices=["cpu"])
    other = configured(tmp_path / "run", "seed=1")  # other random weights
    with pytest.raises(FeatureError, match=r"backbone\.sha256 was .*seed was 0, is 1"):
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


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e6, r"^(tokens|class_token) of clip \d+ \(\w+\.mp4\) reaches .*, and float16 ends at .*use --dtype bfloat16"),
        (math.inf, r"^(tokens|class_token) of clip \d+ \(\w+\.mp4\) is not finite: check the weights of the backbone"),
    ],
)
def test_values_that_do_not_fit_are_an_error(settings, tmp_path, monkeypatch, scale, message):
    original = Tiny.named_features

    def enlarge(self, *arguments):
        return {name: tensor * scale for name, tensor in original(self, *arguments).items()}

    monkeypatch.setattr(Tiny, "named_features", enlarge)
    with pytest.raises(FeatureError, match=message):
        extract(settings, tmp_path / "features", devices=["cpu"])
    if scale == 1e6:
        extract(replace(settings, dtype="bfloat16"), tmp_path / "bfloat16", devices=["cpu"])


def test_plan_and_small_disk(settings, tmp_path, monkeypatch):
    planned = plan(Extractor(settings, "cpu"), tmp_path / "features", measured_clips=2)
    extract(settings, tmp_path / "features", devices=["cpu"])
    stored = sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.safetensors"))
    assert abs(stored - planned.total_bytes) < 0.05 * stored + 2000
    assert planned.seconds is not None and planned.seconds > 0
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 5))
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


def test_dry_run_and_verification(configured, tmp_path, capsys):
    out = tmp_path / "features"
    command = ["extract", "configs/motion.yaml", "--out", str(out), *configured.small(tmp_path / "run")]
    assert main([*command, "--dry-run"]) == 0
    assert not out.exists()
    pattern = (
        r"15 clips, each with 1 view of 588 tokens\n"
        r"0\.03 MiB per clip, 0\.00 GiB in total; [\d.]+ GiB are free\n"
        r"about [\d.]+ min with 1 process\n"
    )
    text = capsys.readouterr().out
    assert re.fullmatch(pattern, text), text
    assert main(command) == 0
    assert re.search(
        r"decode .* s, forward .* s, other .* s: \d+ % decoding and forward passes", capsys.readouterr().out
    )
    assert main(["features", str(out), "--verify"]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"^  (?:tokens|class_token) +mean .*, std .*, largest", text, re.MULTILINE)) == 4
    assert text.endswith("verified 2 files\n")
    part = out / "train" / "part-000000.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert main(["features", str(out), "--verify"]) == 2
    assert f"{part} is damaged: its SHA-256 differs" in capsys.readouterr().err


def test_probe_on_the_cache_equals_a_probe_online(settings, tmp_path):
    extract(replace(settings, dtype="float32"), tmp_path / "features", devices=["cpu"])
    cached = FeatureSplit(tmp_path / "features", "train")
    tokens, class_tokens = online_features(settings, "train")

    class Online:
        """The same clips in the same order, with features that the backbone has just computed."""

        def batches(self, *arguments, **options):
            for batch in cached.batches(*arguments, **options):
                features = batch.features._replace(tokens=tokens[batch.clips], class_token=class_tokens[batch.clips])
                yield FeatureBatch(features, batch.labels, batch.clips)

    probe = ProbeSettings(heads=("mean", "ep"), seeds=1, epochs=3, batch_size=4)
    heads = []
    for split in (cached, Online()):
        candidates = [
            make_candidate(name, cached.manifest, probe, 1e-2, 0, probe.epochs, torch.device("cpu"))
            for name in probe.heads
        ]
        before = [parameter.clone() for parameter in candidates[1].head.parameters()]
        fit(candidates, split, probe, torch.ones(len(cached), dtype=torch.bool), torch.device("cpu"))
        assert not torch.equal(before[0], next(candidates[1].head.parameters()))
        heads.append([candidate.head for candidate in candidates])
    for ours, expected in zip(*heads, strict=True):
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, expected.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_views_and_layers_of_a_timm_model(configured, tmp_path):
    import_extra("timm", extra="timm", needed_by="this test")
    options = "model.backbone_options={model: vit_tiny_patch16_224, input_size: 32}"
    small = [each for each in configured.small(tmp_path / "run") if "backbone_options" not in each]
    config = load_config(None, [*small, "model.backbone=timm_vit", options])
    settings = ExtractSettings(config, ("test",), layers=(-2, 0), views=3, dtype="float32")
    out = tmp_path / "features"
    extract(settings, out, devices=["cpu"])
    manifest = read_manifest(out)
    assert manifest["layers"] == [-2, 0] and manifest["prefix_tokens"] == 1
    assert manifest["backbone"]["mean"] == [0.5, 0.5, 0.5] and "timm" in manifest["versions"]
    part = read_part(out / "test" / "part-000000.safetensors")
    assert part["tokens"].shape == part["tokens.-2"].shape == (6, 3, 3, 4, 192)
    assert part["prefix"].shape == (6, 3, 3, 1, 192) and part["class_token"].shape == (6, 3, 192)
    split = FeatureSplit(out, "test", layers=("last", "-2"))
    batch = next(split.batches(6))
    assert batch.features.grid == (4, 2)
    torch.testing.assert_close(batch.features.tokens, torch.cat([part["tokens"], part["tokens.-2"]], 3)[:, 0])
    probe = ProbeSettings(heads=("art",), layers=("last", "-2"))
    head = make_candidate("art", manifest, probe, 1e-3, 0, 1, torch.device("cpu")).head
    assert head(batch.features, return_maps=True).maps.shape[2:] == (3, 4, 2)
    maps = collect_clips({"art": head}, split, [0], ClipFrames(split))[0].maps["art"]
    assert maps.shape[::2] == (3, 2) and maps.shape[3] == 2
    np.testing.assert_allclose(maps.sum((0, 2, 3)), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"layers: .* has no layer '5'; expected some of last, -2, 0"):
        FeatureSplit(out, "test", layers=("5",))
    for changed, field in (
        ({"views": 2}, "views was 3, is 2"),
        ({"layers": (-2,)}, r"layers was \[-2, 0\], is \[-2\]"),
    ):
        with pytest.raises(FeatureError, match=f"has other features: .*{field}"):
            extract(replace(settings, **changed), out, devices=["cpu"])


def test_stage_of_ray_writes_the_same_files(settings, configured, tmp_path, small_parts):
    whole, out = tmp_path / "whole", tmp_path / "features"
    extract(settings, whole, devices=["cpu"])
    with pytest.raises(FileNotFoundError, match=r"features/manifest\.json does not exist"):
        RayExtractor(settings, out, "cpu")
    out.mkdir()
    shutil.copy(whole / store.MANIFEST, out)
    stage = RayExtractor(settings, out, "cpu")
    for split, count in (("train", 9), ("test", 6)):
        result = stage({"split": np.array([split] * count), "number": np.arange(count)})
        assert result["number"].tolist() == list(range(count)) and bool((result["forward"] > 0).all())
    written = contents(whole)
    assert contents(out) == {name: written[name] for name in written if "part" in name}
    with pytest.raises(FeatureError, match="seed was 0, is 1"):
        RayExtractor(ExtractSettings(configured(tmp_path / "run", "seed=1")), out, "cpu")
    with pytest.raises(ValueError, match="concurrency: got 0"):
        extract_on_cluster(settings, out, concurrency=0)


@pytest.mark.slow
def test_extraction_with_ray(settings, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
    pytest.importorskip("ray.data", reason="pandas, of the extra [ray], is not installed", exc_type=ImportError)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        written = extract_on_cluster(settings, tmp_path / "features")
    finally:
        ray.shutdown()
    assert (written.clips, written.kept) == (15, 0) and written.seconds["forward"] > 0
    extract(settings, tmp_path / "whole", devices=["cpu"])
    assert contents(tmp_path / "features") == contents(tmp_path / "whole")


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
