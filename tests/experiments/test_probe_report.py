"""The report of ``art probe``: numbers, selection, maps on the frames of the features, and missing frames."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from art.data.features import FeatureSplit, finish_part, part_path, save_part, write_index, write_manifest
from art.experiments.probe import probe
from art.experiments.probe_clips import ClipFrames, ClipUnreadable, collect_clips, evaluate_heads
from art.experiments.probe_report import accuracy_figure, selection_figures, write_report
from art.experiments.probe_training import ProbeSettings

NAMES = ["run & <b>hide</b>", "walk"]
STEPS, GRID, CHANNELS = 2, (2, 2), 8
SETTINGS = ProbeSettings(
    heads=("mean", "ep", "knn"), lrs=(1e-6, 1e-2), seeds=2, epochs=2, batch_size=8, options={"ep": {"num_queries": 2}},
    device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Features, the frames of the test clips as JPEG files, and the result and the heads of a probe."""
    root, features = tmp_path_factory.mktemp("data & <i>"), tmp_path_factory.mktemp("features")
    rows = {
        split: [{"path": f"{split}{n}", "start": None, "end": None, "label": n % 2} for n in range(count)]
        for split, count in (("train", 16), ("test", 6))
    }
    generator = torch.Generator().manual_seed(0)
    for row in rows["test"]:
        (root / row["path"]).mkdir()
        for number, level in enumerate((40, 90, 150, 210), start=1):
            Image.new("RGB", (64, 48), (level, level, level)).save(root / row["path"] / f"{number:05d}.jpg")
    write_manifest(features, _manifest(root, rows))
    for split, clips in rows.items():
        tokens = torch.randn(len(clips), 1, STEPS, 4, CHANNELS, generator=generator)
        labels = torch.tensor([row["label"] for row in clips])
        tokens[torch.arange(len(clips)), 0, 1, 3, labels] += 6
        part = {"tokens": tokens, "class_token": tokens.mean((2, 3)), "clip": torch.arange(len(clips))}
        path = part_path(features, split, 0)
        finish_part(path, save_part(path, part, {}))
        write_index(features, split, clips, 1)
    train, test = (FeatureSplit(features, split) for split in ("train", "test"))
    result, heads = probe(train, test, SETTINGS)
    return SimpleNamespace(root=root, result=result, heads=heads, test=test)


def _manifest(root, rows):
    return {
        "format": 1, "num_frames": 4, "sampling": {"kind": "sparse", "stride": 1}, "input_size": 32, "test_crop": 1.0,
        "layers": [], "frame_size": None, "precision": "fp32", "dtype": "float32", "views": 1, "seed": 0,
        "backbone": {
            "name": "made", "options": {}, "pretrained": "/weights/made.safetensors", "sha256": "ab" * 32,
            "license": "apache-2.0", "framewise": False,
        },
        "shape": {"num_steps": STEPS, "grid": list(GRID), "channels": CHANNELS},
        "dataset": {"name": "csv", "root": str(root)}, "class_names": NAMES, "groups": [],
        "splits": {split: {"parts": 1, "clips": len(clips)} for split, clips in rows.items()},
        "versions": {"torch": "made", "date": "2026-01-02"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(probed, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "report.html"
    write_report(path, probed.result, probed.heads, probed.test)
    return path.read_text(encoding="utf-8")


def test_page_has_the_numbers_and_their_explanations(probed, page):
    for name, row in probed.result["heads"].items():
        line = re.search(rf"<tr><td><bdi title=\"{name}\">.*?</tr>", page)[0]
        low, high = row["interval_over_clips"]
        assert f"{100 * np.mean(row['top1']):.1f} %" in line and f"{100 * low:.1f} to {100 * high:.1f}" in line
        if name != "knn":
            assert f"{row['parameters']:,}" in line and f"{100 * row['best_on_test']:.1f} %" in line
    assert page.count("<th>") == page.count("</th>") and "must not be compared with the first column" in page
    assert all(text in page for text in ("bootstrap interval", "(Student&#x27;s t)", "average several segments"))


def test_page_names_the_origin_and_escapes_names(probed, page):
    origin = page[page.index('<section id="origin">') :]
    for text in (
        "ab" * 32,
        "apache-2.0",
        "/weights/made.safetensors",
        str(probed.root),
        "torch made",
        "lrs=1e-06,0.01",
    ):
        assert text in unescape(origin), text
    assert "<b>hide" not in page and "<i>" not in page.replace("<i></i>", "").replace("<i style", "")
    assert "run &amp; &lt;b&gt;hide&lt;/b&gt;" in page
    assert "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"', "", page) and "<script" not in page
    assert len(page) < 2**20


def test_page_shows_the_map_of_each_head_that_has_one_and_every_prediction(probed, page):
    maps = page[page.index('<section id="maps">') : page.index('<section id="queries">')]
    cards = maps.split("<article")[1:]
    assert 1 <= len(cards) <= 6 and "Without maps, because they do not attend: mean, knn." in maps
    evaluation = evaluate_heads(probed.heads, probed.test)
    for card in cards:
        path = re.search(r"test\d", card)[0]
        row = evaluation["ep"].indices.tolist().index(probed.test.paths.index(path))
        for each in evaluation.values():
            assert f"{100 * each.probabilities[row].max():.1f} %" in card
        assert card.count("<img") == 2, "the frames, and the map of ep"
    queries = page[page.index('<section id="queries">') : page.index('<section id="best">')]
    assert queries.count("<img") == 2 and "map 2" in queries


def test_the_frames_are_those_of_the_features(probed):
    clip = collect_clips(probed.heads, probed.test, [3], ClipFrames(probed.test))[0]
    assert clip.path == "test3" and clip.label == 1 and clip.problem == ""
    assert clip.frames.shape == (STEPS, 32, 32, 3)
    assert clip.frames.mean((1, 2, 3)) == pytest.approx([90, 210], abs=3), "the middle of each time step"
    assert clip.maps["ep"].shape == (STEPS, 2, *GRID) and "mean" not in clip.maps
    assert clip.maps["ep"].sum((0, 2, 3)) == pytest.approx([1, 1], abs=1e-5)
    largest = np.unravel_index(clip.maps["ep"].mean(1).argmax(), (STEPS, *GRID))
    tokens = next(probed.test.batches(8)).features.tokens
    with torch.no_grad():
        expected = probed.heads["ep"].queries @ tokens[3].flatten(0, 1).T / CHANNELS**0.5
    wanted = expected.softmax(1).mean(0).unflatten(0, (STEPS, *GRID)).numpy()
    assert largest == np.unravel_index(wanted.argmax(), wanted.shape)


def test_evaluation_equals_that_of_the_probe(probed):
    for name, evaluation in evaluate_heads(probed.heads, probed.test).items():
        assert evaluation.top1 == pytest.approx(probed.result["heads"][name]["top1"][0]), name


@pytest.fixture
def moved(probed):
    """Features whose dataset has other files than at the extraction: ``moved(root)``."""

    def move(root):
        split = FeatureSplit(probed.test.directory, "test")
        split.manifest["dataset"]["root"] = str(root)
        return split

    return move


def test_missing_frames_are_named_and_maps_are_drawn_alone(probed, moved, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, probed.result, probed.heads, moved(tmp_path / "gone"))
    text = path.read_text(encoding="utf-8")
    maps = text[text.index('<section id="maps">') : text.index('<section id="queries">')]
    assert (
        "Frames are missing, so the maps are drawn alone: " in maps and f"{tmp_path / 'gone'}, does not exist" in maps
    )
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', maps)
    assert len(images) == len(maps.split("<article")) - 1, "one for the map of ep in each card"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[0]))).convert("RGB")).astype(float)
    assert pixels.std() > 5, "not blank"
    assert "Clips of confused pairs are missing: the directory of the dataset" in unescape(text)


def test_a_clip_that_is_gone_is_named(probed, moved, tmp_path):
    frames = ClipFrames(moved(tmp_path))  # the directory exists, but is empty
    with pytest.raises(ClipUnreadable, match=r"test0: there is no such file"):
        frames.read(frames.clip_set.clips[0])
    clip = collect_clips(probed.heads, moved(tmp_path), [0], frames)[0]
    assert clip.frames is None and clip.problem == "test0: there is no such file"


def test_charts_show_intervals_chance_and_the_selection(probed):
    rows = probed.result["heads"]
    axes, parameters, flops = accuracy_figure(probed.result).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)
    ranges = [sorted(line.get_xdata()) for line in axes.lines]
    for row in rows.values():
        assert any(ends == pytest.approx([100 * value for value in row["interval_over_clips"]]) for ends in ranges)
    assert any(ends == pytest.approx([100 * probed.result["chance"]] * 2) for ends in ranges)
    assert len(parameters.patches) == len(flops.patches) == 2, "none for knn"
    figures = selection_figures(probed.result)
    assert set(figures) == {"mean", "ep"}
    ring = next(line for line in figures["ep"].axes[0].lines if line.get_marker() == "o")
    assert ring.get_xdata()[0] == rows["ep"]["epochs"]
    assert ring.get_ydata()[0] == pytest.approx(100 * rows["ep"]["holdout_accuracy"])
