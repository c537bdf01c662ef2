"""Runs that are stopped, crash or are killed, and resume bit for bit.

The kill test kills three times; ``ART_TEST_KILLS=20 pytest tests/train/test_resume.py`` kills 20 times.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from art.model.loading import load_model
from art.train import loop
from art.train.checkpoint import CheckpointError, RunDir, load_tensors, load_training_state, saved_tensors
from art.train.checkpoint_io import write_checksums
from art.train.config import ConfigError, save_config
from art.train.loop import train
from art.train.runtime import Interrupted

pytestmark = pytest.mark.slow

STEPS = 2  # per epoch: nine clips in batches of four, the incomplete batch dropped


class Crash(Exception):
    pass


@pytest.mark.parametrize("kind", ["backbone", "art"])
@pytest.mark.parametrize("step", [1, STEPS, STEPS + 1], ids=["first step", "end of an epoch", "within an epoch"])
def test_stopped_run_resumes_bit_for_bit(
    unbroken, configured, recorded, in_step, assert_same_run, tmp_path, kind, step
):
    config = configured(tmp_path / "run", f"kind={kind}")
    in_step(step, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match=rf"stopped by signal 15 after step {step},.*--resume") as stop:
        train(config)
    assert stop.value.signal_number == signal.SIGTERM
    assert len(recorded(tmp_path / "run", "step")) == step
    torch.rand(5)  # the generators of this process do not matter
    train(config, resume=True)
    assert_same_run(tmp_path / "run", unbroken / kind)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_lost_in_a_crash_are_repeated_with_workers(
    configured, recorded, in_step, assert_same_run, tmp_path, optimizer
):
    overrides = [f"optim.optimizer={optimizer}", "data.workers=1", "optim.schedule=cosine", "data.brightness=0.5"]
    train(configured(tmp_path / "expected", *overrides))
    config = configured(tmp_path / "run", *overrides)

    def crash(_):
        raise Crash

    in_step(2 * STEPS, crash)  # the first step of the second epoch is logged but not saved
    with pytest.raises(Crash):
        train(config)
    assert load_training_state(tmp_path / "run" / "checkpoints" / "last")["position"]["step"] == STEPS
    assert len(recorded(tmp_path / "run", "step")) == 2 * STEPS - 1
    train(config, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "expected")


def test_evaluation_is_repeated_after_a_stop(unbroken, configured, assert_same_run, tmp_path, monkeypatch):
    config = configured(tmp_path / "run")
    original = loop._Trainer._evaluate

    def evaluate(self, batches):
        if self.state.position.epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Trainer, "_evaluate", evaluate)
        with pytest.raises(Interrupted, match="2 of 2 batches into epoch 2"):
            train(config)
    train(config, resume=True)
    assert_same_run(tmp_path / "run", unbroken / "backbone")


def test_number_of_epochs_may_grow_but_not_shrink(unbroken, configured, assert_same_run, tmp_path):
    train(configured(tmp_path / "run", "optim.epochs=1"))
    train(configured(tmp_path / "run"), resume=True)
    assert_same_run(tmp_path / "run", unbroken / "backbone")
    train(configured(tmp_path / "run"), resume=True)  # a finished run does not change
    assert_same_run(tmp_path / "run", unbroken / "backbone")
    with pytest.raises(ConfigError, match=r"optim\.epochs: got 1, but .* is already in epoch 3"):
        train(configured(tmp_path / "run", "optim.epochs=1"), resume=True)


def test_resume_requires_the_same_configuration(configured, tmp_path):
    train(configured(tmp_path / "run", "optim.epochs=1"))
    with pytest.raises(ConfigError, match=r"optim\.lr \(was 0\.01, is 0\.5\), seed \(was 0, is 3\)"):
        train(configured(tmp_path / "run", "optim.epochs=1", "optim.lr=0.5", "seed=3"), resume=True)
    with pytest.raises(ConfigError, match="at most one"):
        train(configured(tmp_path / "run"), resume=True, overwrite=True)
    path = tmp_path / "run" / "checkpoints" / "last" / "training_state.pt"
    torch.save(torch.load(path, weights_only=True) | {"format": 99}, path)
    write_checksums(path.parent)
    with pytest.raises(CheckpointError, match="format 99"):
        train(configured(tmp_path / "run", "optim.epochs=1"), resume=True)


def test_resume_requires_a_run_and_starts_over_without_a_checkpoint(unbroken, configured, assert_same_run, tmp_path):
    config = configured(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(config, resume=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.yaml")
    train(config, resume=True)
    assert_same_run(tmp_path / "run", unbroken / "backbone")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_the_command_saves_and_sets_the_exit_code(configured, recorded, tmp_path, number, code):
    save_config(configured(tmp_path / "run", "optim.epochs=2000", "data.workers=1"), tmp_path / "run.yaml")
    command = [sys.executable, "-m", "art", "train", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    run = RunDir(tmp_path / "run")
    while process.poll() is None and not recorded(run.path, "step"):
        time.sleep(0.02)
    os.killpg(process.pid, number)  # like a terminal: the data worker receives the signal too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert f"art: stopped by signal {int(number)} after step" in errors
    assert "Traceback" not in errors
    steps = load_training_state(run.last)["position"]["step"]
    assert steps == len(recorded(run.path, "step"))


KILLS = int(os.environ.get("ART_TEST_KILLS", "3"))
KILLED_RUN = ("kind=art", "optim.epochs=3", "optim.optimizer=adamw", "checkpoints.every_steps=1", "checkpoints.keep=2")


def run_process(config):
    torch.set_num_threads(1)
    train(config, resume="auto")


def assert_complete(checkpoint):
    load_model(checkpoint)
    state = load_training_state(checkpoint)
    tensors = {name: torch.zeros(shape) for name, shape in saved_tensors(checkpoint).items()}
    load_tensors(checkpoint, tensors)
    assert state["position"]["step"] == state["step"] == tensors["optimizer.video_head.weight.step"]


@pytest.fixture(scope="module")
def start():
    """``start(config)`` trains in a process of a fork server, which imports torch only once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["art.train.loop", "art.model.art_model", __name__])

    def start_process(config):
        process = context.Process(target=run_process, args=(config,))
        process.start()
        return process

    return start_process


def pause_while_saving(process, incoming):
    """Stops the process at a moment when it is writing a checkpoint, or waits until it exits."""
    while process.is_alive():
        if incoming.exists():
            os.kill(process.pid, signal.SIGSTOP)
            if incoming.exists():
                return
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.0005)


@pytest.mark.parametrize("overrides", [(), ("checkpoints.asynchronous=true",)], ids=["synchronous", "asynchronous"])
def test_killed_run_resumes_bit_for_bit(configured, recorded, start, assert_same_run, tmp_path, overrides):
    """Kills while a checkpoint is being written and, every other time, at a random moment."""
    config = configured(tmp_path / "killed", *KILLED_RUN, *overrides)
    process = start(configured(tmp_path / "expected", *KILLED_RUN))
    process.join()
    rng = random.Random(5)
    last = RunDir(config.output).last
    incoming = last.with_name(".last.incoming")
    killed = saving = 0
    for number in range(KILLS):
        steps = len(recorded(tmp_path / "killed", "step"))
        process = start(config)
        if number % 2 == 0:
            pause_while_saving(process, incoming)
        else:
            while process.is_alive() and len(recorded(tmp_path / "killed", "step")) <= steps:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        saving += incoming.exists()
        for checkpoint in last.parent.glob("*"):
            if not checkpoint.name.startswith("."):
                assert_complete(checkpoint)
    assert killed > 0 and saving > 0
    process = start(config)
    process.join()
    assert process.exitcode == 0
    assert_same_run(tmp_path / "killed", tmp_path / "expected")
    assert not incoming.exists()
