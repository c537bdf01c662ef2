import json
import statistics

import pytest

from art.engine import compare as comparing
from art.engine.compare import as_markdown, compare
from art.engine.config import ConfigError


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

    def refuse(*_, **__):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(comparing, "train", refuse)
    assert compare(config, 2)["runs"] == result["runs"]
    changed = comparing.copy.deepcopy(config)
    changed.optim.lr = 0.5
    with pytest.raises(AssertionError, match="trained again"):
        compare(changed, 2)


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
