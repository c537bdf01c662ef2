"""Several runs: finished, failed and stopped ones; ``compare``: its runs, statistics, and tables."""

import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path

import pytest

from art.experiments import compare as compare_module
from art.experiments.compare import LOG, RunsFailed, check_runs, compare, is_finished, to_markdown, train_all
from art.train.checkpoint import read_history
from art.train.config import ConfigError
from art.train.runtime import Interrupted

pytestmark = pytest.mark.slow


@pytest.fixture
def config(configured, tmp_path):
    return configured(tmp_path / "both", "optim.epochs=1", "seed=4")


@pytest.fixture
def art_config(config, tmp_path):
    config.kind, config.output = "art", str(tmp_path / "linking")
    return config


def forbid_training(monkeypatch):
    monkeypatch.setattr(compare_module, "train", lambda *_, **__: pytest.fail("a run was trained"))


def test_both_kinds_with_two_seeds(config, tmp_path, monkeypatch):
    result = compare(config, 2)
    output = tmp_path / "both"
    assert {path.name for path in output.iterdir()} == {
        "backbone-seed4", "backbone-seed5", "art-seed4", "art-seed5", "compare.json", "compare.md", "compare.png",
    }  # fmt: skip
    assert json.loads((output / "compare.json").read_text()) == result
    runs = {(run["kind"], run["seed"]): run for run in result["runs"]}
    assert len(runs) == 4
    for (kind, seed), run in runs.items():
        evaluation = json.loads((output / f"{kind}-seed{seed}" / "evaluation.json").read_text())
        assert run["top1"] == evaluation["top1"]
        assert evaluation["config"]["kind"] == kind
        assert evaluation["config"]["seed"] == seed
    differences = [runs["art", seed]["top1"] - runs["backbone", seed]["top1"] for seed in (4, 5)]
    assert result["paired"]["top1"]["by_seed"] == differences
    assert result["paired"]["top1"]["mean"] == pytest.approx(statistics.mean(differences))
    top1 = [runs["art", seed]["top1"] for seed in (4, 5)]
    assert result["summary"]["art"]["top1"]["std"] == pytest.approx(statistics.stdev(top1))
    assert result["summary"]["art"]["parameters"]["mean"] > result["summary"]["backbone"]["parameters"]["mean"]
    assert {"torch", "python", "date"} <= result["provenance"].keys()
    assert "relinked" in result["summary"]["art"]
    assert "relinked" not in result["summary"]["backbone"]
    assert result["paired"].keys() == {"top1", "mean_class_accuracy"}  # metrics of both kinds

    forbid_training(monkeypatch)
    assert compare(config, 2)["runs"] == result["runs"]


def test_values_of_any_key(art_config, tmp_path, monkeypatch):
    result = compare(art_config, 2, over="model.linking=index,greedy,optimal")
    output, values = tmp_path / "linking", ("index", "greedy", "optimal")
    assert {path.name for path in output.iterdir() if path.is_dir()} == {
        f"{value}-seed{seed}" for value in values for seed in (4, 5)
    }
    assert result["over"] == "model.linking"
    runs = {(run["model.linking"], run["seed"]): run for run in result["runs"]}
    for (value, seed), run in runs.items():
        evaluation = json.loads((output / f"{value}-seed{seed}" / "evaluation.json").read_text())
        assert evaluation["config"]["model"]["linking"] == value
        assert run["relinked"] == evaluation["relinked"]
    assert [*result["summary"]] == [*values]
    assert result["paired"].keys() == {"greedy", "optimal"}
    for other in ("greedy", "optimal"):
        differences = [runs[other, seed]["relinked"] - runs["index", seed]["relinked"] for seed in (4, 5)]
        assert result["paired"][other]["relinked"]["by_seed"] == differences
    text = (output / "compare.md").read_text()
    assert text == to_markdown(result)
    assert "| model.linking=optimal less index, paired by seed | " in text
    forbid_training(monkeypatch)
    assert compare(art_config, 2, over="model.linking=index,optimal")["paired"] == result["paired"]["optimal"]


def test_localization_metrics_are_compared(art_config):
    compare(art_config, 1, over="model.linking=index,optimal")
    overall = {
        "tracklets": {"single": 0.25, "best": 0.5, "any": 0.75},
        "random_region": {"single": 0.1, "best": 0.2, "any": 0.3},
    }
    for value in ("index", "optimal"):
        path = Path(art_config.output) / f"{value}-seed4" / "evaluation.json"
        evaluation = json.loads(path.read_text())
        path.write_text(json.dumps({**evaluation, "localization": {"overall": overall}}))
    result = compare(art_config, 1, over="model.linking=index,optimal")
    assert result["runs"][0]["limb_best"] == 0.5
    assert result["summary"]["optimal"]["limb_any_chance"]["mean"] == 0.3
    assert result["paired"]["limb_single"]["by_seed"] == [0.0]
    text = to_markdown(result)
    assert text.count("random regions") == 1  # equal for both values
    assert "| random regions on the body | | 10.00 (10.00 … 10.00) | 20.00 " in text
    result["summary"]["optimal"]["limb_any_chance"]["mean"] = 0.4
    assert "| random regions on the body, model.linking=optimal | | 10.00 " in to_markdown(result)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("model.linking=index,optmal", "model: linking is 'optmal', expected 'index' or 'greedy' or 'optimal'"),
        ("model.linkin=index,optimal", r"model\.linkin: unknown key .* the nearest known key is model\.linking"),
        ("model.linking=index", r"model\.linking: got 1 values to compare \('index'\), expected at least 2"),
        ("model.linking=index,index", r"model\.linking: got the value index twice"),
        ("optim.lr=1e-3,0.001", r"optim\.lr: got the value 0\.001 twice"),
        ("optim.lr=0.1,fast", r"optim\.lr: got 'fast', expected float"),
        ("model=1,2", r"model: is a group of keys, expected one of model\.backbone, "),
        ("model.linking", r"over 'model\.linking': expected dotted\.key=value,value"),
        ("seed=1,2", "seed: is set by the comparison for each run"),
        ("model.backbone=tiny,tinny", r"model\.backbone=tinny: .*tinny"),
        ("data.root=CLIPS,nowhere", r"data\.root=nowhere: .*nowhere"),
    ],
)
def test_invalid_keys_and_values(art_config, clips, monkeypatch, over, message):
    forbid_training(monkeypatch)
    with pytest.raises(ConfigError, match=message):
        compare(art_config, 2, over=over.replace("CLIPS", str(clips)))
    with pytest.raises(ValueError, match="seeds: got 0"):
        compare(art_config, 0)
    assert not Path(art_config.output).exists()


def test_crashed_run_is_resumed(config, in_step, tmp_path):
    class Crash(Exception):
        pass

    def crash(_):
        raise Crash

    in_step(2, crash)
    with pytest.raises(Crash):
        compare(config, 1)
    assert not (tmp_path / "both" / "backbone-seed4" / "evaluation.json").exists()
    assert [run["steps"] for run in compare(config, 1)["runs"]] == [2, 2]
    config.optim.lr = 0.5
    with pytest.raises(ConfigError, match=r"backbone-seed4: cannot resume with a different configuration: optim\.lr"):
        compare(config, 1)


def test_markdown():
    def stats(mean, std, least, most):
        return {"mean": mean, "std": std, "min": least, "max": most}

    summary = {
        "top1": stats(0.5, 0.05, 0.45, 0.55),
        "mean_class_accuracy": stats(0.4, None, 0.4, 0.4),
        "parameters": stats(1234567, 0, 1234567, 1234567),
        "step_seconds": stats(0.25, None, 0.25, 0.25),
        "data_seconds": stats(None, None, None, None),
    }
    result = {
        "over": "kind",
        "seeds": [0, 1],
        "runs": [{"clips": 10}],
        "provenance": {"torch": "2", "machine": "m", "date": "d"},
        "summary": {"backbone": summary, "art": summary},
        "paired": {
            name: {"by_seed": [0.01, -0.02], **stats(-0.005, 0.02, -0.02, 0.01)}
            for name in ("top1", "mean_class_accuracy")
        },
    }
    text = to_markdown(result)
    assert "| ART on it | 50.00 ± 5.00 (45.00 … 55.00) | 40.00 (40.00 … 40.00) | 0.25 | - | 1,234,567 |" in text
    assert "-0.50 ± 2.00 (-2.00 … +1.00)" in text
    assert "Difference in top-1 by seed, points: 0: +1.00, 1: -2.00." in text
    assert "query" not in text  # no tracklet table


def test_is_finished_compares_the_configuration(unbroken, configured, tmp_path):
    assert is_finished(configured(unbroken / "art", "kind=art"))
    assert is_finished(configured(unbroken / "art", "kind=art", "device=auto", "log_every=7"))  # same results
    assert not is_finished(configured(unbroken / "art", "kind=art", "optim.lr=0.5"))
    assert not is_finished(configured(unbroken / "nowhere", "kind=art"))
    # An evaluation written before a key existed, whose default it had, and with the former name of a key.
    text = (unbroken / "art" / "evaluation.json").read_text()
    assert '"stride": 1,' in text and '"max_failed_fraction"' in text
    text = text.replace('"stride": 1,', "").replace('"max_failed_fraction"', '"max_bad_share"')
    (tmp_path / "evaluation.json").write_text(text)
    assert is_finished(configured(tmp_path, "kind=art"))


def test_failed_run_does_not_stop_the_others(configured, tmp_path, monkeypatch):
    trained = []

    def fail_on_two(config, *, resume):
        trained.append(config.seed)
        if config.seed in (2, 3):
            raise ArithmeticError(f"seed {config.seed} is bad")

    monkeypatch.setattr(compare_module, "train", fail_on_two)
    runs = {f"run {seed}": configured(tmp_path / str(seed), f"seed={seed}") for seed in (1, 2, 4)}
    with pytest.raises(ArithmeticError, match="seed 2 is bad"):
        train_all(runs)
    assert trained == [1, 2, 4]
    runs["run 3"] = configured(tmp_path / "3", "seed=3")
    with pytest.raises(RunsFailed, match=r"2 of 4 runs failed: run 2: seed 2 is bad; run 3: seed 3 is bad"):
        train_all(runs, ["cpu"])


def test_directory_with_a_different_run(unbroken, configured):
    runs = [configured(unbroken / "elsewhere", "kind=art"), configured(unbroken / "art", "kind=art", "optim.lr=0.5")]
    with pytest.raises(ConfigError, match=r"these: .*cannot resume with a different configuration: optim\.lr"):
        check_runs({"these": runs})


def test_parallel_runs_are_stopped_and_continued(configured, tmp_path):
    long = configured(tmp_path / "long", "optim.epochs=50", "eval_every=50")
    bad = configured(tmp_path / "bad", "optim.lr=1e30")
    metrics = tmp_path / "long" / "metrics.jsonl"
    threading.Thread(target=terminate_when_present, args=(metrics,), daemon=True).start()
    with pytest.raises(Interrupted, match="stopped by signal 15 with 1 of 1 runs left"):
        train_all({"long": long}, ["cpu", "cpu"])
    assert 0 < len(logged_steps(metrics)) < 100
    assert "stopped by signal 15 after step" in (tmp_path / "long" / LOG).read_text()  # the state is saved
    assert not is_finished(long)

    with pytest.raises(RunsFailed, match=r"NonFiniteLoss: loss/.*see .*training\.log"):
        train_all({"bad": bad, "long": long}, ["cpu", "cpu"])
    assert is_finished(long)
    assert not is_finished(bad)
    assert logged_steps(metrics) == [*range(1, 101)]
    assert "epoch 50/50" in (tmp_path / "long" / LOG).read_text()


def logged_steps(metrics: Path) -> list[int]:
    return [line["step"] for line in read_history(metrics) if line["event"] == "step"]


def terminate_when_present(path: Path) -> None:
    """Sends SIGTERM to this process when the file exists."""
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
