"""``ablate``: runs that are trained once, tables, picture."""

import json
import statistics
from pathlib import Path

import pytest

from art.cli import main
from art.experiments import ablate, make_plan
from art.experiments import runs as trainings
from art.experiments.ablate import results
from art.experiments.ablation_markdown import as_markdown
from art.train.config import ConfigError, save_config, to_dict


def test_two_tables_with_a_row_in_common(configured, tmp_path, monkeypatch, capsys):
    config = configured(tmp_path / "ablate", "kind=art", "optim.epochs=1", "seed=4")
    result = ablate(config, 2, ["bank"])
    folder = tmp_path / "ablate"
    names = {"components-mtc", "bank-video", "bank-prototype", "components-bank"}
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}-seed{seed}" for name in names for seed in (4, 5)), "ablate.json", "ablate.md", "ablate.png",
    }  # fmt: skip
    assert json.loads((folder / "ablate.json").read_text()) == result
    assert (folder / "ablate.md").read_text() == as_markdown(result)
    assert (folder / "ablate.png").read_bytes().startswith(b"\x89PNG")
    top1 = {(run["run"], run["seed"]): run["top1"] for run in result["runs"]}
    evaluation = json.loads((folder / "bank-video-seed5" / "evaluation.json").read_text())
    assert evaluation["config"]["model"]["weight_prototype"] == 0
    assert evaluation["top1"] == top1["bank-video", 5]
    (table,) = result["tables"]
    assert [row["run"] for row in table["rows"]] == [
        "components-mtc", "bank-video", "bank-prototype", "components-bank",
    ]  # fmt: skip
    assert table["rows"][0]["difference"] is None
    for row in table["rows"][1:]:
        own = [top1[row["run"], seed] - top1["components-mtc", seed] for seed in (4, 5)]
        assert row["difference"]["top1"]["by_seed"] == own, "against the first row"
        assert row["summary"]["top1"]["mean"] == pytest.approx(statistics.mean(top1[row["run"], s] for s in (4, 5)))

    trained = []
    original = trainings.train

    def noting(config, *, resume):
        trained.append(config.output)
        return original(config, resume=resume)

    monkeypatch.setattr(trainings, "train", noting)
    save_config(config, tmp_path / "whole.yaml")
    arguments = ["--seeds", "1", "--only", "bank,margin", "--devices", "cpu"]
    assert main(["ablate", str(tmp_path / "whole.yaml"), *arguments]) == 0
    assert "| λ = 0.8 | " in capsys.readouterr().out
    again = json.loads((folder / "ablate.json").read_text())
    assert [path.rpartition("/")[2] for path in trained] == ["margin-0.2-seed4", "margin-0.4-seed4", "margin-0.8-seed4"]
    assert [row["run"] for row in again["tables"][1]["rows"]].count("components-bank") == 1
    assert len(again["runs"]) == 7
    assert len((folder / "ablate.md").read_text().split("### ")) == 3


def test_parts_are_compared_with_the_row_before(configured, tmp_path):
    config = configured(tmp_path, "kind=art")
    plan = make_plan(config, 1, ["components", "tracklets"])
    for place, (run,) in enumerate(plan.members().values()):
        told = {"clips": 6, "top1": place**2 / 100, "mean_class_accuracy": 0.5, "localization": None}
        told |= {"training": {"parameters": 1, "step_seconds": 1.0, "data_seconds": 1.0}, "config": to_dict(run)}
        Path(run.output).mkdir()
        (Path(run.output) / "evaluation.json").write_text(json.dumps(told))
    parts, values = results(config, plan)["tables"]

    def points(table):
        made = [row["difference"] and row["difference"]["top1"]["by_seed"] for row in table["rows"]]
        return [own and round(100 * own[0]) for own in made]

    assert points(parts) == [None, 1, 3, 5, 7, 9]
    assert points(values) == [None, 25 - 36, 49 - 36, 64 - 36], "with the first row"


def test_what_cannot_be_trained_stops_before_any_training(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("a run was trained"))
    config = configured(tmp_path / "ablate", "kind=art")
    with pytest.raises(ConfigError, match=r"tracklets-4: .*num_tracklets is 4, expected at most .* classes, 3"):
        ablate(config, 1, ["tracklets"])
    assert not (tmp_path / "ablate").exists()


def _spread(mean, std=None):
    return {"mean": mean, "std": std, "min": mean, "max": mean}


def test_the_table_by_hand():
    def row(title, top1, difference):
        told = {"top1": _spread(top1, 0.01), "mean_class_accuracy": _spread(0.4)}
        told |= {"step_seconds": _spread(0.25), "parameters": _spread(1234567)}
        paired = None if difference is None else {"top1": {"by_seed": difference, **_spread(-0.005, 0.02)}}
        return {"title": title, "summary": told, "difference": paired}

    result = {
        "config": {"optim": {"epochs": 3}},
        "seeds": [0, 1],
        "runs": [{"clips": 200}] * 4,
        "provenance": {"torch": "2", "machine": "m", "date": "2026-01-02T03:04"},
        "tables": [
            {"title": "Parts", "against": "before", "rows": [row("a", 0.5, None), row("b", 0.495, [0.01, -0.02])]}
        ],
    }
    lines = as_markdown(result).splitlines()
    assert lines[0].startswith("Last checkpoint of each of 4 runs of 3 epochs, on 200 test clips; seeds 0, 1; torch 2")
    assert lines[0].endswith("One clip is 0.5 points.")
    assert "top-1 to the row before, points" in lines[4]
    assert lines[6] == "| a | 50.00 ± 1.00 | 40.00 | | | | 0.25 | 1,234,567 |"
    assert lines[7] == "| b | 49.50 ± 1.00 | 40.00 | -0.50 ± 2.00 | +1.00 | -2.00 | 0.25 | 1,234,567 |"


@pytest.mark.parametrize("name", ["ablation", "ablation-seeds"])
def test_the_page_about_ablations_quotes_its_results(name):
    docs = Path(__file__).parents[2] / "docs"
    result = json.loads((docs / "results" / f"motion-{name}.json").read_text())
    assert as_markdown(result) in (docs / "ablations.md").read_text(), "see docs/readme_material.py"
