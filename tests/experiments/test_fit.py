"""``art fit``: folds, the independence of the estimate from the tested clips, the saved run, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from art.backbones import Features
from art.cli import main
from art.data.features import FeatureBatch
from art.experiments.fit import DEFAULTS, TRAIN_ONLY, ClipList, assign_folds, cross_validate, plan_folds

NAMES = ["run", "walk", "jump"]
MANIFEST = {
    "class_names": NAMES, "groups": [], "shape": {"num_steps": 1, "grid": [1, 1], "channels": 32},
    "backbone": {"framewise": False}, "dataset": {"root": "clips"},
}  # fmt: skip


def clip_list(count, group_size=1, labels=None):
    labels = [number % 3 for number in range(count)] if labels is None else labels
    groups = [str(number // group_size) for number in range(count)]
    return ClipList([f"{number}.mp4" for number in range(count)], labels, groups, NAMES, Path("clips"))


class Clips:
    """Features in memory, with the interface of ``JoinedFeatures``; ``signal`` separates the classes."""

    def __init__(self, count, signal, group_size=1, seed=0):
        self.manifest, self.num_bytes, self.missing = MANIFEST, 1024, []
        self.labels = torch.arange(count) % 3
        self.paths = [f"{number}.mp4" for number in range(count)]
        self.groups = [str(number // group_size) for number in range(count)]
        self.tokens = torch.randn(count, 1, 1, 32, generator=torch.Generator().manual_seed(seed))
        self.tokens[torch.arange(count), 0, 0, self.labels] += signal

    def __len__(self):
        return len(self.labels)

    def batches(self, batch_size, *, generator=None, subset=None):
        rows = torch.arange(len(self)) if subset is None else subset.nonzero()[:, 0]
        for chosen in rows.split(batch_size):
            tokens = self.tokens[chosen]
            yield FeatureBatch(Features(tokens, tokens[:, 0, 0], (1, 1)), self.labels[chosen], chosen)


def test_folds_have_all_classes_and_whole_groups():
    clips = clip_list(60, group_size=2)
    fold_of, folds = plan_folds(clips, None, DEFAULTS)
    assert folds == 5
    for fold in range(5):
        counts = torch.bincount(torch.tensor(clips.labels)[fold_of == fold], minlength=3)
        assert counts.sum() == 12 and counts.min() >= 3
    assert torch.equal(fold_of[::2], fold_of[1::2]), "both clips of a group are in the same fold"
    assert not torch.equal(assign_folds(clips, 5, seed=1), fold_of)


def test_folds_are_at_most_the_groups():
    fold_of, folds = plan_folds(clip_list(36, group_size=9), None, DEFAULTS)
    assert folds == 4 and torch.bincount(fold_of).tolist() == [9, 9, 9, 9]


def test_the_test_split_is_the_only_fold():
    fold_of, folds = plan_folds(clip_list(20)._replace(num_test=6, generated=False), None, DEFAULTS)
    assert folds == 0 and fold_of.tolist() == [TRAIN_ONLY] * 14 + [0] * 6


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        ([0, 0, 0, 1, 1, 1, 2], None, r"class 'jump' has 1 clip, .* at least 2 per class.*add clips, or remove"),
        ([0, 1, 2] * 4, 1, "folds: got 1, expected 2 to 12"),
        ([0, 1, 2] * 4, 13, "folds: got 13, expected 2 to 12"),
        ([0, 0, 1, 1, 2, 2], 2, r"holdout: 0\.2 of \d clips .* cannot be held out .*add clips"),
    ],
)
def test_clips_that_cannot_be_divided(labels, folds, message):
    with pytest.raises(ValueError, match=message):
        plan_folds(clip_list(len(labels), labels=labels), folds, DEFAULTS)


@pytest.mark.parametrize(("signal", "low", "high"), [(0.0, 0.15, 0.55), (20.0, 0.75, 1.0)])
def test_the_estimate_is_independent_of_the_tested_clips(signal, low, high):
    """Without signal, heads fit 24 clips of 32 channels perfectly; the estimate must be near chance."""
    clips = Clips(30, signal)
    settings = DEFAULTS.__class__(heads=("mean",), lrs=(1e-1,), seeds=1, epochs=30, batch_size=24, device="cpu")
    evaluation = cross_validate(clips, assign_folds(clip_list(30), 5, seed=0), settings, torch.device("cpu"))
    assert evaluation.total == 30 and evaluation.labels.tolist() == clips.labels.tolist()
    assert low <= evaluation.top1 <= high


def test_command(tmp_path, write_clip, capsys):
    root = tmp_path / "my clips"
    for label, name in enumerate(("right", "left")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            write_clip(root / name / f"{i}.mp4", label, row=i)
    out, small = tmp_path / "out", ["model.num_frames=3", "model.backbone_options={width: 4, depth: [1, 1, 1]}"]
    fit = ["fit", str(root), "--backbone", "tiny", "--out", str(out), *small]
    assert main([*fit, "--folds", "1"]) == 2 and "folds: got 1" in capsys.readouterr().err
    assert main([*fit, "--folds", "2", "heads=mean", "epochs=2", "lrs=0.01", "batch_size=4", "device=cpu"]) == 0
    printed = capsys.readouterr().out
    assert "of 8 clips, by 2-fold cross-validation" in printed and "always the largest class: 50.0 %" in printed
    content = json.loads((out / "fit.json").read_text())
    assert sum(map(sum, content["confusion"])) == 8 and content["interval"][0] < content["top1"] + 1e-9
    assert "2-fold cross-validation" in (out / "report.html").read_text()
    assert main(["evaluate", "--checkpoint", str(out)]) == 2
    assert "all of its clips were used for training" in capsys.readouterr().err
    assert main(["predict", "--checkpoint", str(out), str(root / "left" / "0.mp4")]) == 0
    assert "left" in capsys.readouterr().out
    assert main(["fit", str(tmp_path / "none"), "--backbone", "tiny", *small]) == 2
    assert "none" in capsys.readouterr().err
