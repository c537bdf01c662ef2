"""``ablate``: tables, planned runs, results, and the figure."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from art.cli import main
from art.experiments import TABLES, ablate, ablation_tables, make_plan
from art.experiments import compare as compare_module
from art.experiments.ablate import ablation_figure, collect_results, format_plan, to_markdown
from art.model.art_model import aggregate
from art.parser import ABLATIONS
from art.train.config import ConfigError, save_config, to_dict

pytestmark = pytest.mark.slow

MEAN_OVER_TIME = 1e6  # temperature


@pytest.fixture
def full(configured, tmp_path):
    """The full method."""
    return configured(tmp_path / "ablate", "kind=art", "optim.epochs=1", "seed=4")


def test_tables_and_runs(full):
    plan = make_plan(full, 2)
    assert [table.name for table in plan.tables] == [*TABLES] == [*ABLATIONS] == [*ablation_tables(full)]
    rows = plan.row_variants
    assert rows["components"] == tuple(
        f"components-{name}" for name in ("baseline", "regions", "enhancement", "aggregation", "mtc", "bank")
    )
    assert rows["mtc"] == (
        "components-aggregation", "mtc-spatial", "mtc-temporal", "mtc-tracklet", "mtc-spatial+temporal",
        "mtc-spatial+tracklet", "mtc-temporal+tracklet", "components-mtc",
    )  # fmt: skip
    assert rows["bank"] == ("components-mtc", "bank-video", "bank-prototype", "components-bank")
    assert rows["tracklets"] == ("tracklets-1", "components-bank", "tracklets-3", "tracklets-4")
    assert rows["margin"] == ("margin-0.2", "margin-0.4", "components-bank", "margin-0.8")
    assert len(plan.variants) == 20
    runs = [*plan.runs().values()]
    assert [run.seed for run in runs] == [4] * 20 + [5] * 20  # one seed of every row before the next seed
    assert len({run.output for run in runs}) == 40
    assert not any(run.report for run in runs)


def test_rows_override_only_their_keys(full):
    def changes(variant):
        one, other = ({**values.pop("model"), **values} for values in (to_dict(full), to_dict(variant)))
        return {key: other[key] for key in one if one[key] != other[key] and key not in ("report", "output")}

    changed = {name: changes(variant) for name, variant in make_plan(full, 1).variants.items()}
    assert changed["components-bank"] == {}
    assert changed["components-baseline"] == {"kind": "backbone"}
    assert changed["components-regions"] == {
        "enhancement_layers": 0, "temperature": MEAN_OVER_TIME, "weight_mtc": 0.0, "weight_sema": 0.0,
    }  # fmt: skip
    assert changed["mtc-temporal"] == {"weight_spatial": 0.0, "weight_tracklet": 0.0, "weight_sema": 0.0}
    assert changed["bank-video"] == {"weight_prototype": 0.0}
    assert changed["tracklets-3"] == {"num_tracklets": 3}
    assert changed["margin-0.8"] == {"margin": 0.8}


def test_high_temperature_is_the_mean_over_time():
    generator = torch.Generator().manual_seed(0)
    responses, semantics = torch.randn(2, 5, 3, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    aggregated, saliency = aggregate(responses, semantics, temperature=MEAN_OVER_TIME)
    assert (saliency - 1 / 5).abs().max() < 1e-6
    assert (aggregated - responses.mean(1)).abs().max() < 1e-5


def test_names_of_runs_do_not_depend_on_the_selected_tables(full):
    plan = make_plan(full, 1)
    for table in ("bank", "margin"):
        selected = make_plan(full, 1, [table])
        assert selected.row_variants == {table: plan.row_variants[table]}
        assert selected.variants.keys() == set(plan.row_variants[table])


def test_value_of_the_configuration_is_included(configured, tmp_path):
    config = configured(tmp_path, "kind=art", "model.margin=0.5", "model.num_tracklets=8")
    plan = make_plan(config, 1)
    assert [row.title for row in plan.tables[4].rows] == [f"λ = {value}" for value in (0.2, 0.4, 0.5, 0.6, 0.8)]
    assert plan.row_variants["margin"][2] == plan.row_variants["tracklets"][4] == "components-bank"


@pytest.mark.parametrize(
    ("overrides", "only", "message"),
    [
        (["model.enhancement_layers=0"], [], r"model\.enhancement_layers: is 0, .* --only mtc,bank,tracklets,margin"),
        (["model.weight_spatial=0"], ["mtc"], r"model\.weight_spatial: is 0"),
        (["model.weight_prototype=0"], ["bank"], r"model\.weight_prototype: is 0"),
        (["model.weight_temporal=0"], ["margin"], r"model\.weight_temporal: is 0"),
        (["model.temperature=1e7"], ["components"], r"model\.temperature: got 1e\+07"),
        (["kind=backbone"], ["margin"], "kind: got 'backbone', expected art"),
        ([], ["margins"], "only: got 'margins', expected some of components, mtc, bank, tracklets, margin"),
    ],
)
def test_rows_without_effect_are_rejected(configured, tmp_path, overrides, only, message):
    with pytest.raises(ValueError, match=message) as raised:
        make_plan(configured(tmp_path, "kind=art", *overrides), 1, only)
    assert isinstance(raised.value, ConfigError) == (only != ["margins"])


def test_other_tables_do_not_require_the_component(configured, tmp_path):
    config = configured(tmp_path, "kind=art", "model.enhancement_layers=0")
    assert len(make_plan(config, 1, ["bank", "margin"]).variants) == 7
    with pytest.raises(ValueError, match="seeds: got 0"):
        make_plan(config, 0)


def test_time_is_estimated_from_a_step(full, monkeypatch):
    def profile(config, *, clips, classes, repetitions):
        assert (config.kind, clips, classes) == ("art", 4, 3)
        stages = [{"inference": 10_000, "forward": 200_000, "backward": 300_000}, {"backward": 100_000}]
        return {"stages": [{"ms": ms} for ms in stages]}

    # The package's attribute "ablate" is the function, not the module.
    monkeypatch.setattr(sys.modules["art.experiments.ablate"], "profile", profile)
    text = format_plan(make_plan(full, 2, ["margin"]), 3)
    assert "4 configurations, 2 seeds: 8 runs, 8 left" in text
    assert "model.margin=0.8" in text
    # Nine clips are two steps of four (600 s), the six test clips 1.5 batches (10 s); eight runs in three rounds.
    assert "about 61 minutes with 3 in parallel" in text and "1215 s per run" in text


def write_evaluation(config, top1=0.5, **training):
    directory = Path(config.output)
    directory.mkdir(parents=True, exist_ok=True)
    evaluation = {"clips": 6, "top1": top1, "mean_class_accuracy": 0.5, "localization": None, "training": training}
    (directory / "evaluation.json").write_text(json.dumps({**evaluation, "config": to_dict(config)}))


def test_time_is_estimated_from_finished_runs(full):
    plan = make_plan(full, 1, ["margin"])
    for seconds, run in zip((60, 120), plan.runs().values(), strict=False):
        write_evaluation(run, seconds=seconds)
    text = format_plan(plan, 1)
    assert "4 runs, 2 left" in text
    assert "about 3 minutes with 1 in parallel" in text
    assert "90 s per run, estimated from the mean of 2 finished runs" in text
    for run in plan.runs().values():
        write_evaluation(run, seconds=1)
    assert format_plan(plan, 1).endswith("4 runs, 0 left\n")


def test_tables_share_runs(configured, tmp_path, monkeypatch, capsys):
    config = configured(tmp_path / "ablate", "kind=art", "optim.epochs=1", "seed=4")
    result = ablate(config, 2, ["bank"])
    output = tmp_path / "ablate"
    variants = ["components-mtc", "bank-video", "bank-prototype", "components-bank"]
    assert {path.name for path in output.iterdir()} == {
        *(f"{name}-seed{seed}" for name in variants for seed in (4, 5)), "ablate.json", "ablate.md", "ablate.png",
    }  # fmt: skip
    assert json.loads((output / "ablate.json").read_text()) == result
    assert (output / "ablate.md").read_text() == to_markdown(result)
    assert (output / "ablate.png").read_bytes().startswith(b"\x89PNG")
    top1 = {(run["run"], run["seed"]): run["top1"] for run in result["runs"]}
    evaluation = json.loads((output / "bank-video-seed5" / "evaluation.json").read_text())
    assert evaluation["config"]["model"]["weight_prototype"] == 0
    assert evaluation["top1"] == top1["bank-video", 5]
    (table,) = result["tables"]
    assert [row["run"] for row in table["rows"]] == variants
    assert table["rows"][0]["difference"] is None
    for row in table["rows"][1:]:
        differences = [top1[row["run"], seed] - top1["components-mtc", seed] for seed in (4, 5)]
        assert row["difference"]["top1"]["by_seed"] == differences  # to the first row
        assert row["summary"]["top1"]["mean"] == pytest.approx(statistics.mean(top1[row["run"], s] for s in (4, 5)))

    trained = []
    original = compare_module.train

    def train(config, *, resume):
        trained.append(Path(config.output).name)
        return original(config, resume=resume)

    monkeypatch.setattr(compare_module, "train", train)
    save_config(config, tmp_path / "full.yaml")
    arguments = ["--seeds", "1", "--only", "bank,margin", "--devices", "cpu"]
    assert main(["ablate", str(tmp_path / "full.yaml"), *arguments]) == 0
    assert "| λ = 0.8 | " in capsys.readouterr().out
    result = json.loads((output / "ablate.json").read_text())
    assert trained == ["margin-0.2-seed4", "margin-0.4-seed4", "margin-0.8-seed4"]
    assert [row["run"] for row in result["tables"][1]["rows"]].count("components-bank") == 1
    assert len(result["runs"]) == 7
    assert len((output / "ablate.md").read_text().split("### ")) == 3


def test_differences_to_the_previous_or_first_row(configured, tmp_path):
    config = configured(tmp_path, "kind=art")
    plan = make_plan(config, 1, ["components", "tracklets"])
    for i, (run,) in enumerate(plan.variant_runs().values()):
        write_evaluation(run, top1=i**2 / 100, parameters=1, step_seconds=1.0, data_seconds=1.0)

    def points(table):
        differences = [row["difference"] and row["difference"]["top1"]["by_seed"] for row in table["rows"]]
        return [by_seed and round(100 * by_seed[0]) for by_seed in differences]

    components, tracklets = collect_results(config, plan)["tables"]
    assert points(components) == [None, 1, 3, 5, 7, 9]
    assert points(tracklets) == [None, 25 - 36, 49 - 36, 64 - 36]


def test_invalid_variant_stops_before_any_training(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "train", lambda *_, **__: pytest.fail("a run was trained"))
    config = configured(tmp_path / "ablate", "kind=art")
    with pytest.raises(ConfigError, match=r"tracklets-4: .*num_tracklets is 4, expected at most .* classes, 3"):
        ablate(config, 1, ["tracklets"])
    assert not (tmp_path / "ablate").exists()


def test_markdown():
    def stats(mean, std=None):
        return {"mean": mean, "std": std, "min": mean, "max": mean}

    def row(title, top1, by_seed):
        summary = {"top1": stats(top1, 0.01), "mean_class_accuracy": stats(0.4)}
        summary |= {"step_seconds": stats(0.25), "parameters": stats(1234567)}
        difference = None if by_seed is None else {"top1": {"by_seed": by_seed, **stats(-0.005, 0.02)}}
        return {"title": title, "summary": summary, "difference": difference}

    result = {
        "config": {"optim": {"epochs": 3}},
        "seeds": [0, 1],
        "runs": [{"clips": 200}] * 4,
        "provenance": {"torch": "2", "machine": "m", "date": "2026-01-02T03:04"},
        "tables": [
            {"title": "Parts", "against": "before", "rows": [row("a", 0.5, None), row("b", 0.495, [0.01, -0.02])]}
        ],
    }
    lines = to_markdown(result).splitlines()
    assert lines[0].startswith("Last checkpoint of each of 4 runs of 3 epochs, on 200 test clips; seeds 0, 1; torch 2")
    assert lines[0].endswith("One clip is 0.5 points.")
    assert "top-1 to the row before, points" in lines[4]
    assert lines[6] == "| a | 50.00 ± 1.00 | 40.00 | | | | 0.25 | 1,234,567 |"
    assert lines[7] == "| b | 49.50 ± 1.00 | 40.00 | -0.50 ± 2.00 | +1.00 | -2.00 | 0.25 | 1,234,567 |"


@pytest.mark.docs
@pytest.mark.parametrize("name", ["ablation", "ablation-seeds"])
def test_documentation_quotes_the_results(name):
    docs = Path(__file__).parents[2] / "docs"
    result = json.loads((docs / "results" / f"motion-{name}.json").read_text())
    assert to_markdown(result) in (docs / "ablations.md").read_text(), "run docs/readme_material.py"


FIGURE_TABLES = [
    {"title": "Parts", "rows": [{"title": "none", "run": "a"}, {"title": "all", "run": "b"}]},
    {"title": "K", "rows": [{"title": "K = 1", "run": "c"}, {"title": "K = 2", "run": "b"}]},
]
FIGURE_RUNS = [
    {"run": name, "seed": seed, "top1": top1 + 0.02 * seed}
    for name, top1 in (("a", 0.4), ("b", 0.6), ("c", 0.5))
    for seed in (0, 1)
]


def test_figure_has_a_panel_per_table_and_a_dot_per_run():
    first, second = ablation_figure(FIGURE_TABLES, FIGURE_RUNS).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["none", "all"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["K = 1", "K = 2"]
    dots = [np.asarray(collection.get_offsets()) for collection in first.collections[::2]]
    assert np.allclose(dots[0], [[40, 0], [42, 0]]) and np.allclose(dots[1], [[60, 1], [62, 1]])
    assert [text.get_text() for text in second.texts] == ["51.0", "61.0"]
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first row is at the top
    with pytest.raises(ValueError, match="tables is empty"):
        ablation_figure([], FIGURE_RUNS)
    with pytest.raises(ValueError, match="runs lacks 'c'"):
        ablation_figure(FIGURE_TABLES, FIGURE_RUNS[:4])
