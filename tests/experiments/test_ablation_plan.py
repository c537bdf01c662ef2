"""Which rows the ablations have, what each leaves out of the model, and which of them are one run."""

import json
from pathlib import Path

import pytest
import torch

from art.cli import ABLATIONS
from art.experiments import TABLES, ablation_tables, make_plan
from art.experiments import ablation_plan as planning
from art.experiments.ablation_plan import as_list, estimate
from art.experiments.ablation_tables import MEAN_OVER_TIME
from art.model.tracklets import aggregate
from art.train.config import ConfigError, to_dict


@pytest.fixture
def whole(configured, tmp_path):
    """The whole method."""
    return configured(tmp_path / "ablate", "kind=art", "optim.epochs=1", "seed=4")


def test_the_tables_by_hand(whole):
    plan = make_plan(whole, 2)
    assert [table.name for table in plan.tables] == [*TABLES] == [*ABLATIONS] == [*ablation_tables(whole)]
    assert plan.of_row["components"] == tuple(
        f"components-{name}" for name in ("baseline", "regions", "enhancement", "aggregation", "mtc", "bank")
    )
    assert plan.of_row["mtc"] == (
        "components-aggregation", "mtc-spatial", "mtc-temporal", "mtc-tracklet", "mtc-spatial+temporal",
        "mtc-spatial+tracklet", "mtc-temporal+tracklet", "components-mtc",
    )  # fmt: skip
    assert plan.of_row["bank"] == ("components-mtc", "bank-video", "bank-prototype", "components-bank")
    assert plan.of_row["tracklets"] == ("tracklets-1", "components-bank", "tracklets-3", "tracklets-4")
    assert plan.of_row["margin"] == ("margin-0.2", "margin-0.4", "components-bank", "margin-0.8")
    assert len(plan.variants) == 20
    assert len(plan.runs()) == 40
    runs = [*plan.runs().values()]
    assert [run.seed for run in runs] == [4] * 20 + [5] * 20, "a seed of every row before the next"
    assert len({run.output for run in runs}) == 40
    assert not any(run.report for run in runs)


def test_a_row_changes_what_it_says_and_nothing_else(whole):
    variants = make_plan(whole, 1).variants
    told = {name: _changes(whole, variant) for name, variant in variants.items()}
    assert told["components-bank"] == {}
    assert told["components-baseline"] == {"kind": "backbone"}
    assert told["components-regions"] == {
        "enhancement_layers": 0, "temperature": MEAN_OVER_TIME, "weight_mtc": 0.0, "weight_sema": 0.0,
    }  # fmt: skip
    assert told["mtc-temporal"] == {"weight_spatial": 0.0, "weight_tracklet": 0.0, "weight_sema": 0.0}
    assert told["bank-video"] == {"weight_prototype": 0.0}
    assert told["tracklets-3"] == {"num_tracklets": 3}
    assert told["margin-0.8"] == {"margin": 0.8}


def _changes(one, other):
    one, other = ({**values.pop("model"), **values} for values in (to_dict(one), to_dict(other)))
    return {key: other[key] for key in one if one[key] != other[key] and key not in ("report", "output")}


def test_without_aggregation_a_tracklet_is_the_mean_over_time():
    generator = torch.Generator().manual_seed(0)
    responses, semantics = torch.randn(2, 5, 3, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    aggregated, saliency = aggregate(responses, semantics, temperature=MEAN_OVER_TIME)
    assert (saliency - 1 / 5).abs().max() < 1e-6
    assert (aggregated - responses.mean(1)).abs().max() < 1e-5


def test_the_name_of_a_run_does_not_depend_on_what_else_is_asked(whole):
    every = make_plan(whole, 1)
    for table in ("bank", "margin"):
        alone = make_plan(whole, 1, [table])
        assert alone.of_row == {table: every.of_row[table]}
        assert alone.variants.keys() == set(every.of_row[table])


def test_the_own_value_of_the_configuration_is_among_the_values(configured, tmp_path):
    config = configured(tmp_path, "kind=art", "model.margin=0.5", "model.num_tracklets=8")
    plan = make_plan(config, 1)
    assert [row.title for row in plan.tables[4].rows] == [f"λ = {value}" for value in (0.2, 0.4, 0.5, 0.6, 0.8)]
    assert plan.of_row["margin"][2] == plan.of_row["tracklets"][4] == "components-bank"


@pytest.mark.parametrize(
    ("overrides", "only", "told"),
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
def test_a_row_that_would_leave_out_nothing_is_refused(configured, tmp_path, overrides, only, told):
    with pytest.raises(ValueError, match=told) as raised:
        make_plan(configured(tmp_path, "kind=art", *overrides), 1, only)
    assert isinstance(raised.value, ConfigError) == (only != ["margins"])


def test_tables_that_do_not_need_a_part_do_without_it(configured, tmp_path):
    config = configured(tmp_path, "kind=art", "model.enhancement_layers=0")
    assert len(make_plan(config, 1, ["bank", "margin"]).variants) == 7


def test_no_seed_is_refused(whole):
    with pytest.raises(ValueError, match="seeds: got 0"):
        make_plan(whole, 0)


def test_a_plan_without_runs_estimates_from_a_step(whole, monkeypatch):
    def measured(config, *, clips, classes, repetitions):
        assert (config.kind, clips, classes) == ("art", 4, 3)
        return {"stages": [{"ms": {"inference": 100, "forward": 2000, "backward": 3000}}, {"ms": {"backward": 1000}}]}

    monkeypatch.setattr(planning, "profile", measured)
    plan = make_plan(whole, 2, ["margin"])
    told = estimate(plan)
    # Nine clips are two steps of four; the six of the test split one and a half batches.
    assert told.seconds_a_run == pytest.approx(2 * 6 + 1.5 * 0.1)
    assert told.seconds(3) == pytest.approx(3 * told.seconds_a_run), "eight runs, three at once"
    text = as_list(plan, 3)
    assert "4 configurations, 2 seeds: 8 runs, 8 left" in text
    assert "model.margin=0.8" in text


def test_a_plan_with_runs_estimates_from_them(whole):
    plan = make_plan(whole, 1, ["margin"])
    for seconds, run in zip((10, 20), plan.runs().values(), strict=False):
        _write_finished(run, seconds)
    told = estimate(plan)
    assert (told.seconds_a_run, len(told.left)) == (15, 2)
    assert "2 finished runs" in told.source
    for run in plan.runs().values():
        _write_finished(run, 1)
    assert estimate(plan).left == ()
    assert "4 runs, 0 left" in as_list(plan, 1)


def _write_finished(config, seconds):
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    told = {"clips": 6, "top1": 0.5, "mean_class_accuracy": 0.5, "localization": None, "training": {"seconds": seconds}}
    (folder / "evaluation.json").write_text(json.dumps({**told, "config": to_dict(config)}))
