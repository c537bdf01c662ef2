import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from art.train import loop as training_module
from art.train.checkpoint import CheckpointError, load_training_state
from art.train.config import ConfigError, save_config
from art.train.interruption import Interrupted
from art.train.loop import train
from art.train.run_dir import RunFolder

STEPS = 2  # an epoch: nine clips in batches of four, the last of which is left out


@pytest.mark.parametrize("kind", ["backbone", "art"])
@pytest.mark.parametrize("step", [1, STEPS, STEPS + 1], ids=["first step", "end of an epoch", "within an epoch"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    unbroken, configured, recorded, in_step, assert_same_run, tmp_path, kind, step
):
    config = configured(tmp_path / "run", f"kind={kind}")
    in_step(step, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match=rf"stopped by signal 15 after step {step},.*--resume") as stop:
        train(config)
    assert stop.value.signal_number == signal.SIGTERM
    assert len(recorded(tmp_path / "run", "step")) == step
    torch.rand(5)  # the state of this process's generators does not matter
    train(config, resume=True)
    assert_same_run(tmp_path / "run", unbroken / kind)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_lost_in_a_crash_are_taken_again_with_worker_processes(
    configured, recorded, in_step, assert_same_run, tmp_path, optimizer
):
    overrides = [f"optim.optimizer={optimizer}", "data.workers=1", "optim.schedule=cosine", "data.brightness=0.5"]
    train(configured(tmp_path / "whole", *overrides))
    config = configured(tmp_path / "run", *overrides)

    class Crash(Exception):
        pass

    def crash(_):
        raise Crash

    in_step(2 * STEPS, crash)  # one step after the second epoch's first, which is on record
    with pytest.raises(Crash):
        train(config)
    assert load_training_state(tmp_path / "run" / "checkpoints" / "last")["position"]["step"] == STEPS
    assert len(recorded(tmp_path / "run", "step")) == 2 * STEPS - 1
    train(config, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_stop_during_evaluation_evaluates_again(unbroken, configured, assert_same_run, tmp_path, monkeypatch):
    config = configured(tmp_path / "run")
    original = training_module._Training._evaluate

    def stopping(self, batches):
        if self.state.position.epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(training_module._Training, "_evaluate", stopping)
        with pytest.raises(Interrupted, match="2 of 2 batches into epoch 2"):
            train(config)
    train(config, resume=True)
    assert_same_run(tmp_path / "run", unbroken / "backbone")


def test_a_finished_run_that_is_resumed_stays_as_it_is(unbroken, configured, assert_same_run, tmp_path):
    config = configured(tmp_path / "run")
    train(config)
    train(config, resume=True)
    assert_same_run(tmp_path / "run", unbroken / "backbone")


def test_a_run_can_be_made_longer_but_not_shorter(unbroken, configured, assert_same_run, tmp_path):
    train(configured(tmp_path / "run", "optim.epochs=1"))
    train(configured(tmp_path / "run"), resume=True)
    assert_same_run(tmp_path / "run", unbroken / "backbone")
    with pytest.raises(ConfigError, match=r"optim\.epochs: got 1, but .* is in epoch 3"):
        train(configured(tmp_path / "run", "optim.epochs=1"), resume=True)


def test_resuming_with_another_configuration_is_refused_by_key(configured, tmp_path):
    train(configured(tmp_path / "run", "optim.epochs=1"))
    with pytest.raises(ConfigError, match=r"optim\.lr \(was 0\.01, is 0\.5\), seed \(was 0, is 3\)"):
        train(configured(tmp_path / "run", "optim.epochs=1", "optim.lr=0.5", "seed=3"), resume=True)
    with pytest.raises(ConfigError, match="at most one"):
        train(configured(tmp_path / "run"), resume=True, overwrite=True)


def test_resuming_nothing_is_refused_and_before_the_first_save_starts_anew(
    unbroken, configured, assert_same_run, tmp_path
):
    config = configured(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(config, resume=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.yaml")
    train(config, resume=True)
    assert_same_run(tmp_path / "run", unbroken / "backbone")


def test_a_state_of_another_format_is_refused(configured, tmp_path):
    config = configured(tmp_path / "run", "optim.epochs=1")
    train(config)
    path = tmp_path / "run" / "checkpoints" / "last" / "training_state.pt"
    torch.save(torch.load(path, weights_only=True) | {"format": 99}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        train(config, resume=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_saves_and_exits_with_its_code(configured, recorded, tmp_path, number, code):
    """A real process: the signal comes as soon as the first step is on record."""
    save_config(configured(tmp_path / "run", "optim.epochs=2000", "data.workers=1"), tmp_path / "run.yaml")
    command = [sys.executable, "-m", "art", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    run = RunFolder(tmp_path / "run")
    while process.poll() is None and not recorded(run.path, "step"):
        time.sleep(0.02)
    os.killpg(process.pid, number)  # what a terminal does: the worker gets it too
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert f"art: stopped by signal {int(number)} after step" in told
    assert "Traceback" not in told
    steps = load_training_state(run.last)["position"]["step"]
    assert steps == len(recorded(run.path, "step"))
