"""Several runs: finished ones, failures, and processes that are stopped and continued."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from art.experiments import runs as runs_module
from art.experiments.runs import LOG, RunsFailed, check_runs, is_finished, train_all
from art.train.checkpoint import read_history
from art.train.config import ConfigError
from art.train.runtime import Interrupted


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

    monkeypatch.setattr(runs_module, "train", fail_on_two)
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


@pytest.mark.slow
def test_parallel_runs_are_stopped_and_continued(configured, tmp_path):
    long = configured(tmp_path / "long", "optim.epochs=20", "eval_every=20")
    bad = configured(tmp_path / "bad", "optim.lr=1e30")
    metrics = tmp_path / "long" / "metrics.jsonl"
    threading.Thread(target=terminate_when_present, args=(metrics,), daemon=True).start()
    with pytest.raises(Interrupted, match="stopped by signal 15 with 1 of 1 runs left"):
        train_all({"long": long}, ["cpu", "cpu"])
    assert 0 < len(logged_steps(metrics)) < 40
    assert "stopped by signal 15 after step" in (tmp_path / "long" / LOG).read_text()  # the state is saved
    assert not is_finished(long)

    with pytest.raises(RunsFailed, match=r"NonFiniteLoss: loss/.*see .*training\.log"):
        train_all({"bad": bad, "long": long}, ["cpu", "cpu"])
    assert is_finished(long)
    assert not is_finished(bad)
    assert logged_steps(metrics) == [*range(1, 41)]
    assert "epoch 20/20" in (tmp_path / "long" / LOG).read_text()


def logged_steps(metrics: Path) -> list[int]:
    return [line["step"] for line in read_history(metrics) if line["event"] == "step"]


def terminate_when_present(path: Path) -> None:
    """Sends SIGTERM to this process when the file exists."""
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
