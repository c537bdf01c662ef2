"""Signals, random generators, and profiler traces."""

import gzip
import json
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from art.train.runtime import (
    DeferSignals,
    Interrupted,
    StepProfiler,
    fork_rng,
    get_rng_state,
    raise_on_sigterm,
    seed_everything,
    set_rng_state,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_deferred_and_handlers_restored(number):
    previous = signal.getsignal(number)
    with DeferSignals() as signals:
        assert signals.received() == 0
        signal.raise_signal(number)
        assert signals.received() == number
    assert signal.getsignal(number) is previous


def test_second_signal_acts_immediately():
    with pytest.raises(KeyboardInterrupt), DeferSignals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("number", "exits"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_worker_ignores_sigint_and_exits_on_sigterm(number, exits):
    with DeferSignals() as signals:
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            os._exit(5 if not signals.received() else 6)
        _, status = os.waitpid(child, 0)
        assert not signals.received()
    assert (os.WIFSIGNALED(status) and os.WTERMSIG(status) == number) if exits else os.WEXITSTATUS(status) == 5


def test_raise_on_sigterm():
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="finished work is kept") as caught, raise_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is previous


def test_handlers_are_unchanged_outside_the_main_thread():
    previous, seen = signal.getsignal(signal.SIGTERM), []

    def body():
        with raise_on_sigterm(), DeferSignals() as signals:
            seen.append((signal.getsignal(signal.SIGTERM), signals.received()))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(previous, 0)]


def draw():
    return random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))


def test_seeding_resets_every_generator():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_rng_state_round_trip_with_weights_only(tmp_path):
    seed_everything(1)
    draw()  # leaves a cached Gaussian in NumPy's generator
    random.gauss(0, 1)
    torch.save(get_rng_state(), tmp_path / "state.pt")
    expected = draw(), random.gauss(0, 1)
    draw()
    set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (draw(), random.gauss(0, 1)) == expected


def test_fork_rng():
    seed_everything(2)
    expected = draw()
    seed_everything(2)
    with fork_rng():
        draw()
    assert draw() == expected


def run_steps(profiler, steps):
    for step in steps:
        profiler.begin_step(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.end_step(step)


def test_profiler_traces_a_range_of_steps(tmp_path):
    profiler = StepProfiler(tmp_path / "trace", [2, 3], torch.device("cpu"))
    run_steps(profiler, range(1, 6))
    profiler.close()
    assert [path.name for path in (tmp_path / "trace").iterdir()] == ["steps-2-3.json.gz"]
    with gzip.open(tmp_path / "trace" / "steps-2-3.json.gz", "rt") as file:
        events = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert events.count("aten::mm") == 2


def test_profiler_writes_partial_ranges(tmp_path):
    profiler = StepProfiler(tmp_path, [1, 100], torch.device("cpu"), rank=3)
    run_steps(profiler, [1, 2])
    profiler.begin_step(3)
    profiler.close()
    assert [path.name for path in tmp_path.iterdir()] == ["steps-1-2-rank-3.json.gz"]


@pytest.mark.parametrize("steps", [None, [7, 9]])
def test_profiler_does_nothing_outside_the_range(tmp_path, steps, monkeypatch):
    monkeypatch.setattr("art.train.runtime.profile", lambda **_: pytest.fail("started a trace"))
    profiler = StepProfiler(tmp_path / "trace", steps, torch.device("cpu"))
    run_steps(profiler, range(1, 4))
    profiler.close()
    assert not (tmp_path / "trace").exists()
