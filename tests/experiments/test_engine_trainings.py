"""Several trainings: which are finished, what a failure leaves, and processes that are stopped and go on."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from art.experiments import runs as trainings
from art.experiments.runs import LOG, RunsFailed, check_trainings, finished, train_all
from art.train.config import ConfigError
from art.train.interruption import Interrupted
from art.train.run_dir import read_history


def test_a_run_is_finished_with_its_own_configuration_only(unbroken, configured):
    assert finished(configured(unbroken / "art", "kind=art"))
    assert finished(configured(unbroken / "art", "kind=art", "device=auto", "log_every=7")), "changes no number"
    assert not finished(configured(unbroken / "art", "kind=art", "optim.lr=0.5"))
    assert not finished(configured(unbroken / "nowhere", "kind=art"))


def test_a_run_is_finished_whose_evaluation_knows_fewer_keys(unbroken, configured, tmp_path):
    """As one is that was written before a key was added, whose default it had."""
    text = (unbroken / "art" / "evaluation.json").read_text()
    assert '"stride": 1,' in text
    (tmp_path / "evaluation.json").write_text(text.replace('"stride": 1,', ""))
    assert finished(configured(tmp_path, "kind=art"))


def test_one_failure_leaves_the_others_trained(configured, tmp_path, monkeypatch):
    trained = []

    def fail_on_two(config, *, resume):
        trained.append(config.seed)
        if config.seed in (2, 3):
            raise ArithmeticError(f"seed {config.seed} is bad")

    monkeypatch.setattr(trainings, "train", fail_on_two)
    runs = {f"run {seed}": configured(tmp_path / str(seed), f"seed={seed}") for seed in (1, 2, 4)}
    with pytest.raises(ArithmeticError, match="seed 2 is bad"):
        train_all(runs)
    assert trained == [1, 2, 4]
    runs["run 3"] = configured(tmp_path / "3", "seed=3")
    with pytest.raises(RunsFailed, match=r"2 of 4 trainings failed: run 2: seed 2 is bad; run 3: seed 3 is bad"):
        train_all(runs, ["cpu"])


def test_a_folder_of_another_run_stops_before_any_training(unbroken, configured):
    runs = [configured(unbroken / "elsewhere", "kind=art"), configured(unbroken / "art", "kind=art", "optim.lr=0.5")]
    with pytest.raises(ConfigError, match=r"these: .*cannot resume with another configuration: optim\.lr"):
        check_trainings({"these": runs})


def test_processes_are_stopped_go_on_and_tell_of_failures(configured, tmp_path):
    long = configured(tmp_path / "long", "optim.epochs=20", "eval_every=20")
    bad = configured(tmp_path / "bad", "optim.lr=1e30")
    metrics = tmp_path / "long" / "metrics.jsonl"
    threading.Thread(target=_end_when_there, args=(metrics,), daemon=True).start()
    with pytest.raises(Interrupted, match="stopped by signal 15 with 1 of 1 trainings left"):
        train_all({"long": long}, ["cpu", "cpu"])
    assert 0 < len(_steps(metrics)) < 40
    assert "stopped by signal 15 after step" in (tmp_path / "long" / LOG).read_text(), "it has saved its state"
    assert not finished(long)

    with pytest.raises(RunsFailed, match=r"NonFiniteLoss: loss/.*training\.log has the rest"):
        train_all({"bad": bad, "long": long}, ["cpu", "cpu"])
    assert finished(long)
    assert not finished(bad)
    assert _steps(metrics) == [*range(1, 41)], "each step once"
    assert "epoch 20/20" in (tmp_path / "long" / LOG).read_text()


def _steps(metrics: Path) -> list[int]:
    return [line["step"] for line in read_history(metrics) if line["event"] == "step"]


def _end_when_there(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
