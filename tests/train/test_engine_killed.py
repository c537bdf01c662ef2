"""A training that is killed again and again, at random moments and while it saves, ends like one that never was.

Three kills; ``ART_TEST_KILLS=20 pytest tests/train/test_engine_killed.py`` makes it twenty.
"""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from art.model.pretrained import load_model
from art.train.checkpoint import load_tensors, load_training_state, saved_tensors
from art.train.loop import train
from art.train.run_dir import RunFolder

KILLS = int(os.environ.get("ART_TEST_KILLS", "3"))
RUN = ("kind=art", "optim.epochs=3", "optim.optimizer=adamw", "checkpoints.every_steps=1", "checkpoints.keep=2")


def run(config):
    torch.set_num_threads(1)
    train(config, resume="auto")


def assert_whole(checkpoint):
    load_model(checkpoint)
    state = load_training_state(checkpoint)
    room = {name: torch.zeros(shape) for name, shape in saved_tensors(checkpoint).items()}
    load_tensors(checkpoint, room)
    assert state["position"]["step"] == state["step"] == room["optimizer.video_head.weight.step"]


@pytest.fixture(scope="module")
def start():
    """Starts a process that runs a configuration. Torch is imported once, in the server that they come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["art.train.loop", "art.model.art_model", __name__])

    def started(config):
        process = context.Process(target=run, args=(config,))
        process.start()
        return process

    return started


@pytest.mark.parametrize("overrides", [(), ("checkpoints.asynchronous=true",)], ids=["at once", "behind"])
def test_a_run_that_was_killed_again_and_again_ends_like_one_that_never_was(
    configured, start, assert_same_run, tmp_path, overrides
):
    config = configured(tmp_path / "killed", *RUN, *overrides)
    process = start(configured(tmp_path / "whole", *RUN))
    began = time.monotonic()
    process.join()
    duration = time.monotonic() - began
    chance = random.Random(5)
    last = RunFolder(config.output).last
    incoming = last.with_name(".last.incoming")
    killed = saving = 0
    for number in range(KILLS):
        process = start(config)
        deadline = time.monotonic() + chance.uniform(0, 1) * duration
        while_saving = number % 2 == 0
        while process.is_alive() and (while_saving or time.monotonic() < deadline):
            if while_saving and time.monotonic() > deadline and incoming.exists():
                break
            time.sleep(0.0005)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        saving += incoming.exists()
        for checkpoint in last.parent.glob("*"):
            if not checkpoint.name.startswith("."):
                assert_whole(checkpoint)
    assert killed > 0 and saving > 0
    process = start(config)
    process.join()
    assert process.exitcode == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert not incoming.exists()
