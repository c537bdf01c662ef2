"""``art extract``, ``art features`` and ``art probe``: selection of settings, results, reproducibility and errors."""

from __future__ import annotations

import json

import pytest
import torch

from art import load_model
from art.backbones import Features
from art.cli import main
from art.data.features import FeatureBatch, FeatureSplit
from art.experiments.probe import clip_interval, costs, nearest_neighbors, probe, seed_interval
from art.experiments.probe_training import (
    ProbeSettings,
    holdout_mask,
    make_candidate,
    make_head,
    parse_settings,
    select,
)
from art.heads import EfficientProbing, Head
from art.heads.pooling import LinearProbe

NAMES = ["run", "walk", "jump"]
MANIFEST = {
    "class_names": NAMES, "groups": [], "shape": {"num_steps": 2, "grid": [2, 2], "channels": 8},
    "backbone": {"framewise": False},
}  # fmt: skip


class MadeFeatures:
    """A :class:`FeatureSplit` in memory, whose classes differ in one channel of a single token."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.manifest, self.num_bytes = MANIFEST, 1024
        self.labels = torch.arange(count) % 3
        self.paths = self.groups = [f"{number}.mp4" for number in range(count)]
        self.tokens = torch.randn(count, 2, 4, 8, generator=generator)
        self.tokens[torch.arange(count), 1, 2, self.labels] += 6

    def __len__(self):
        return len(self.labels)

    def batches(self, batch_size, *, generator=None, subset=None):
        rows = torch.arange(len(self)) if subset is None else subset.nonzero()[:, 0]
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)]
        for chosen in rows.split(batch_size):
            tokens = self.tokens[chosen]
            yield FeatureBatch(Features(tokens, tokens.mean((1, 2)), (2, 2)), self.labels[chosen], chosen)


SETTINGS = ProbeSettings(
    heads=("mean", "ep", "knn"), lrs=(1e-6, 1e-2), seeds=2, epochs=4, batch_size=8, options={"ep": {"num_queries": 2}},
    device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return probe(MadeFeatures(48, 0), MadeFeatures(30, 1), SETTINGS)


def test_settings_are_selected_on_held_out_clips(result):
    rows, heads = result
    assert rows["heads"]["ep"]["lr"] == 1e-2, "the other rate does not change the weights"
    assert rows["clips"] == {"train": 48, "holdout": 9, "test": 30}
    assert rows["chance"] == pytest.approx(1 / 3)
    for name in ("mean", "ep"):
        row = rows["heads"][name]
        assert len(row["top1"]) == 2 and min(row["top1"]) > 0.5
        assert row["parameters"] == sum(parameter.numel() for parameter in heads[name].parameters())
        low, high = row["interval_over_clips"]
        assert low <= sum(row["top1"]) / 2 <= high
    assert rows["heads"]["mean"]["flops"] == 2 * 8 * 3
    # Scores and sums of 2 queries over 8 tokens, W of 8 x 8 channels, and the classifier.
    assert rows["heads"]["ep"]["flops"] == 2 * (2 * 2 * 8 * 8 + 8 * 8 + 8 * 3)
    assert rows["heads"]["knn"]["top1"][0] > 0.5


def test_results_are_reproducible_and_do_not_depend_on_the_other_heads(result):
    rows, heads = result
    alone, again = probe(MadeFeatures(48, 0), MadeFeatures(30, 1), parse_settings([
        "heads=ep", "lrs=1e-6,1e-2", "seeds=2", "epochs=4", "batch_size=8", "ep.num_queries=2", "device=cpu",
    ]))  # fmt: skip
    assert alone["heads"]["ep"]["top1"] == rows["heads"]["ep"]["top1"]
    for name, value in again["ep"].state_dict().items():
        assert torch.equal(value, heads["ep"].state_dict()[name]), name


def test_shared_steps_select_and_train_as_separate_steps_do(result, monkeypatch):
    for head in (LinearProbe, EfficientProbing):
        monkeypatch.setattr(head, "forward_together", staticmethod(Head.forward_together))
    rows, heads = result
    separate, others = probe(MadeFeatures(48, 0), MadeFeatures(30, 1), SETTINGS)
    for name in ("mean", "ep"):
        for key in ("lr", "epochs", "holdout_accuracy", "best_on_test", "top1"):
            assert separate["heads"][name][key] == rows["heads"][name][key], f"{name}: {key}"
        for key, value in others[name].state_dict().items():
            torch.testing.assert_close(value, heads[name].state_dict()[key], rtol=1e-4, atol=1e-6)


def test_holdout_has_a_part_of_each_class_and_whole_groups():
    labels = torch.arange(60) % 3
    groups = [f"video {number // 4}" for number in range(60)]
    mask = holdout_mask(labels, groups, 0.25, seed=0)
    assert torch.equal(mask, holdout_mask(labels, groups, 0.25, seed=0))
    assert not torch.equal(mask, holdout_mask(labels, groups, 0.25, seed=1))
    chosen = {group for group, held in zip(groups, mask.tolist(), strict=True) if held}
    assert all((group in chosen) == held for group, held in zip(groups, mask.tolist(), strict=True))
    assert all(3 <= count <= 7 for count in torch.bincount(labels[mask], minlength=3).tolist())
    with pytest.raises(ValueError, match=r"holdout: 0\.25 of 3 clips in 1 groups cannot be held out"):
        holdout_mask(labels[:3], ["one video"] * 3, 0.25, seed=0)


def test_select_prefers_the_mean_over_seeds_then_the_lowest_loss():
    class Row:
        def __init__(self, lr, accuracy, loss):
            self.lr, self.accuracy, self.loss = lr, accuracy, loss

    rows = [Row(1.0, [0.2, 0.9], [0.1, 0.1]), Row(1.0, [0.2, 0.1], [0.1, 0.1])]
    rows += [Row(2.0, [0.6, 0.6, 0.5], [2.0, 1.0, 0.5])] * 2
    assert select(rows) == (2.0, 2, 0.6, 1.0)


def test_intervals():
    assert seed_interval([0.5]) is None
    low, high = seed_interval([0.7, 0.8, 0.9])  # t = 4.303 for two degrees of freedom
    assert (low, high) == pytest.approx((0.8 - 4.303 * 0.1 / 3**0.5, 0.8 + 4.303 * 0.1 / 3**0.5))
    low, high = clip_interval(torch.tensor([1.0] * 80 + [0.0] * 20).numpy())
    assert low == pytest.approx(0.72, abs=0.02) and high == pytest.approx(0.88, abs=0.02)


def test_nearest_neighbors_selects_their_number_without_the_test_split():
    train, test = MadeFeatures(48, 0), MadeFeatures(30, 1)
    held_out = holdout_mask(train.labels, train.paths, 0.2, 0)
    chosen = nearest_neighbors(train, test, held_out, SETTINGS)["neighbors"]
    test.labels = test.labels.roll(1)
    assert nearest_neighbors(train, test, held_out, SETTINGS)["neighbors"] == chosen


def test_time_position_is_learned_for_backbones_that_process_frames_separately():
    framewise = {**MANIFEST, "backbone": {"framewise": True}}
    settings = ProbeSettings(options={"ep": {"num_queries": 2}})
    assert make_head("ep", MANIFEST, settings, 0).time_position is None
    assert make_head("ep", framewise, settings, 0).time_position is not None
    assert make_head("mean", framewise, settings, 0).time_position is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head=ep"], "head: unknown setting; did you mean 'heads'"),
        (["lrs=fast"], "lrs: got 'fast', expected a number, or several"),
        (["lrs=0"], "lrs: got .* above 0"),
        (["seeds=0"], "seeds: got 0, expected at least 1"),
        (["heads=ep,ep"], "expected different names"),
        (["ep.num_queries=3", "heads=mean"], "ep: has options, but is not in heads=mean"),
        (["holdout=1"], r"holdout: got 1\.0"),
        (["time_position=sine"], "time_position: got 'sine'"),
    ],
)
def test_invalid_settings(overrides, message):
    with pytest.raises(ValueError, match=message):
        parse_settings(overrides)


def test_commands(configured, tmp_path, capsys):
    """From clips to a table, with the files that a user gets."""
    config, features = tmp_path / "config.yaml", tmp_path / "features"
    config.write_text("")
    options = [item for item in configured.small(tmp_path / "run") if not item.startswith("optim.epochs")]
    assert main(["extract", str(config), "--out", str(features), "--dry-run", *options]) == 0
    assert "MiB per clip" in capsys.readouterr().out and not features.exists()
    assert main(["extract", str(config), "--out", str(features), *options]) == 0
    assert main(["features", str(features), "--verify"]) == 0
    assert "verified 2 files" in capsys.readouterr().out
    probed = ["heads=mean,ep,knn", "epochs=2", "seeds=2", "lrs=0.01", "holdout=0.3", "ep.num_queries=4", "device=cpu"]
    assert main(["probe", str(features), *probed]) == 0
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in ("mean", "ep", "knn")) and "6 test clips" in table
    content = json.loads((features / "probe" / "probe.json").read_text())
    assert content["heads"]["ep"]["epochs"] in (1, 2) and "torch" in content["provenance"]
    model = load_model(features / "probe" / "ep" / "checkpoints" / "last")
    assert model.kind == "probe" and model.head.queries.shape == (4, 24)
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(features / "probe" / "ep")]) == 0
    top1 = 100 * content["heads"]["ep"]["top1"][0]
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("all clips, top-1"))
    assert f"{top1:.2f} %" in line, "the same accuracy online as on stored features"
    assert "of the maps is constant" in printed
    assert main(["probe", str(features), "heads=eq"]) == 2
    assert "head 'eq' is unknown" in capsys.readouterr().err
    assert main(["probe", str(tmp_path / "none")]) == 2
    assert "manifest.json does not exist" in capsys.readouterr().err
    assert len(FeatureSplit(features, "train")) == 9


@pytest.mark.parametrize("name", ["attentive", "art"])
def test_costs_of_heads_that_pass_views_of_parameters_to_modules(name):
    candidate = make_candidate(name, MANIFEST, SETTINGS, 1e-3, 0, 1, torch.device("cpu"))
    before = [parameter.requires_grad for parameter in candidate.head.parameters()]
    assert costs(candidate, MadeFeatures(4, 0))["flops"] > 0
    assert [parameter.requires_grad for parameter in candidate.head.parameters()] == before
