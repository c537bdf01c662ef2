import json
import statistics
from pathlib import Path

import pytest

from art.experiments import runs as trainings
from art.experiments.compare import compare
from art.experiments.compare_table import as_markdown
from art.train.config import ConfigError


@pytest.fixture
def config(configured, tmp_path):
    return configured(tmp_path / "both", "optim.epochs=1", "seed=4")


def test_both_kinds_with_each_seed_in_one_table(config, tmp_path, monkeypatch):
    result = compare(config, 2)
    folder = tmp_path / "both"
    assert {path.name for path in folder.iterdir()} == {
        "backbone-seed4", "backbone-seed5", "art-seed4", "art-seed5", "compare.json", "compare.md", "compare.png",
    }  # fmt: skip
    assert json.loads((folder / "compare.json").read_text()) == result
    told = {(run["kind"], run["seed"]): run for run in result["runs"]}
    assert len(told) == 4
    for (kind, seed), run in told.items():
        evaluation = json.loads((folder / f"{kind}-seed{seed}" / "evaluation.json").read_text())
        assert run["top1"] == evaluation["top1"]
        assert evaluation["config"]["kind"] == kind
        assert evaluation["config"]["seed"] == seed
    differences = [told["art", seed]["top1"] - told["backbone", seed]["top1"] for seed in (4, 5)]
    assert result["paired"]["top1"]["by_seed"] == differences
    assert result["paired"]["top1"]["mean"] == pytest.approx(statistics.mean(differences))
    own = [told["art", seed]["top1"] for seed in (4, 5)]
    assert result["summary"]["art"]["top1"]["std"] == pytest.approx(statistics.stdev(own))
    assert result["summary"]["art"]["parameters"]["mean"] > result["summary"]["backbone"]["parameters"]["mean"]
    assert {"torch", "python", "date"} <= result["provenance"].keys()
    assert "relinked" in result["summary"]["art"]
    assert "relinked" not in result["summary"]["backbone"]
    assert result["paired"].keys() == {"top1", "mean_class_accuracy"}, "what only ART has cannot be compared"

    untrained(monkeypatch)
    assert compare(config, 2)["runs"] == result["runs"]


def untrained(monkeypatch):
    """From here on, a training is a failure."""

    def refuse(*_, **__):
        raise AssertionError("a run was trained")

    monkeypatch.setattr(trainings, "train", refuse)


@pytest.fixture
def linked(config, tmp_path):
    config.kind, config.output = "art", str(tmp_path / "linked")
    return config


def test_values_of_any_key_are_compared(linked, tmp_path, monkeypatch):
    result = compare(linked, 2, over="model.linking=index,greedy,optimal")
    folder, values = tmp_path / "linked", ("index", "greedy", "optimal")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        f"{value}-seed{seed}" for value in values for seed in (4, 5)
    }
    assert result["over"] == "model.linking"
    told = {(run["model.linking"], run["seed"]): run for run in result["runs"]}
    for (value, seed), run in told.items():
        evaluation = json.loads((folder / f"{value}-seed{seed}" / "evaluation.json").read_text())
        assert evaluation["config"]["model"]["linking"] == value
        assert run["relinked"] == evaluation["relinked"]
    assert [*result["summary"]] == [*values]
    assert result["paired"].keys() == {"greedy", "optimal"}
    for other in ("greedy", "optimal"):
        differences = [told[other, seed]["relinked"] - told["index", seed]["relinked"] for seed in (4, 5)]
        assert result["paired"][other]["relinked"]["by_seed"] == differences
    text = (folder / "compare.md").read_text()
    assert text == as_markdown(result)
    assert "| model.linking=optimal less index, paired by seed | " in text
    untrained(monkeypatch)
    assert compare(linked, 2, over="model.linking=index,optimal")["paired"] == result["paired"]["optimal"]


def test_where_the_limb_is_known_the_comparison_carries_it(linked, monkeypatch):
    compare(linked, 1, over="model.linking=index,optimal")
    shares = {
        "tracklets": {"single": 0.25, "best": 0.5, "any": 0.75},
        "random_region": {"single": 0.1, "best": 0.2, "any": 0.3},
    }
    for value in ("index", "optimal"):
        path = Path(linked.output) / f"{value}-seed4" / "evaluation.json"
        evaluation = json.loads(path.read_text())
        path.write_text(json.dumps({**evaluation, "localization": {"overall": shares}}))
    result = compare(linked, 1, over="model.linking=index,optimal")
    assert result["runs"][0]["limb_best"] == 0.5
    assert result["summary"]["optimal"]["limb_any_chance"]["mean"] == 0.3
    assert result["paired"]["limb_single"]["by_seed"] == [0.0]
    text = as_markdown(result)
    assert text.count("random regions") == 1, "the chances are the same with both values"
    assert "| random regions on the body | | 10.00 (10.00 … 10.00) | 20.00 " in text
    result["summary"]["optimal"]["limb_any_chance"]["mean"] = 0.4
    assert "| random regions on the body, model.linking=optimal | | 10.00 " in as_markdown(result)


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ("model.linking=index,optmal", "model: linking is 'optmal', expected 'index' or 'greedy' or 'optimal'"),
        ("model.linkin=index,optimal", r"model\.linkin: unknown key .* the nearest known key is model\.linking"),
        ("model.linking=index", r"model\.linking: got 1 values to compare \('index'\), expected at least 2"),
        ("model.linking=index,index", r"model\.linking: got the value index twice"),
        ("optim.lr=1e-3,0.001", r"optim\.lr: got the value 0\.001 twice"),
        ("optim.lr=0.1,fast", r"optim\.lr: got 'fast', expected float"),
        ("model=1,2", r"model: is a group of keys, expected one of model\.backbone, "),
        ("model.linking", r"over 'model\.linking': expected dotted\.key=value,value"),
        ("seed=1,2", "seed: is what a comparison sets for each run"),
        ("model.backbone=tiny,tinny", r"model\.backbone=tinny: .*tinny"),
        ("data.root=CLIPS,nowhere", r"data\.root=nowhere: .*nowhere"),
    ],
)
def test_a_wrong_key_or_value_stops_before_any_training(linked, clips, monkeypatch, over, told):
    untrained(monkeypatch)
    with pytest.raises(ConfigError, match=told):
        compare(linked, 2, over=over.replace("CLIPS", str(clips)))
    assert not Path(linked.output).exists()


def test_a_run_that_stopped_is_continued(config, in_step, tmp_path):
    class Crash(Exception):
        pass

    def crash(_):
        raise Crash

    in_step(2, crash)
    with pytest.raises(Crash):
        compare(config, 1)
    assert not (tmp_path / "both" / "backbone-seed4" / "evaluation.json").exists()
    assert [run["steps"] for run in compare(config, 1)["runs"]] == [2, 2]


def test_a_folder_with_another_configuration_is_not_mixed_in(config, tmp_path):
    compare(config, 1)
    config.optim.lr = 0.5
    with pytest.raises(ConfigError, match=r"backbone-seed4: cannot resume with another configuration: optim\.lr"):
        compare(config, 1)


def test_no_seed_is_refused(config):
    with pytest.raises(ValueError, match="seeds: got 0"):
        compare(config, 0)


def test_the_table_by_hand():
    def spread(mean, std, least, most):
        return {"mean": mean, "std": std, "min": least, "max": most}

    costs = {"step_seconds": spread(0.25, None, 0.25, 0.25), "data_seconds": spread(None, None, None, None)}
    rows = {
        "top1": spread(0.5, 0.05, 0.45, 0.55),
        "mean_class_accuracy": spread(0.4, None, 0.4, 0.4),
        "parameters": spread(1234567, 0, 1234567, 1234567),
        **costs,
    }
    result = {
        "over": "kind",
        "seeds": [0, 1],
        "runs": [{"clips": 10}],
        "provenance": {"torch": "2", "machine": "m", "date": "d"},
        "summary": {"backbone": rows, "art": rows},
        "paired": {
            name: {"by_seed": [0.01, -0.02], **spread(-0.005, 0.02, -0.02, 0.01)}
            for name in ("top1", "mean_class_accuracy")
        },
    }
    text = as_markdown(result)
    assert "| ART on it | 50.00 ± 5.00 (45.00 … 55.00) | 40.00 (40.00 … 40.00) | 0.25 | - | 1,234,567 |" in text
    assert "-0.50 ± 2.00 (-2.00 … +1.00)" in text
    assert "Difference in top-1 by seed, points: 0: +1.00, 1: -2.00." in text
    assert "query" not in text, "runs without tracklets"
