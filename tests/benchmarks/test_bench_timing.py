import time

import pytest
import torch

from benchmarks import timing as module
from benchmarks.timing import CpuStopwatch, Effort, effort_for, summarize, time_calls

CPU = torch.device("cpu")


def test_median_and_fifths():
    timing = summarize([0.004, 0.001, 0.003, 0.005, 0.002], host_seconds=0.25)
    assert (timing.median_ms, timing.p20_ms, timing.p80_ms) == pytest.approx((3.0, 1.8, 4.2))
    assert (timing.repetitions, timing.host_ms) == (5, 250.0)


def test_calls_take_turns_and_every_other_round_is_reversed():
    ran = []
    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    timings = time_calls(calls, CPU, Effort(min_rounds=3, min_seconds=0.0, max_seconds=0.0, warmups=2))
    assert "".join(ran) == "aabbcc" + "abc" + "cba" + "abc"
    assert [timings[name].repetitions for name in "abc"] == [3, 3, 3]


def test_rounds_go_on_until_each_call_has_had_its_time_or_all_together_theirs(monkeypatch):
    clock = [0.0]

    class Stopwatch(CpuStopwatch):
        def seconds(self, name, call):
            took = {"slow": 0.01, "fast": 0.001}[name]
            clock[0] += took
            return took

    monkeypatch.setattr(module, "CpuStopwatch", Stopwatch)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    calls = {"slow": lambda: None, "fast": lambda: None}
    timings = time_calls(calls, CPU, Effort(min_rounds=2, min_seconds=0.0035, max_seconds=10.0, warmups=0))
    assert timings["fast"].repetitions == 4 and timings["slow"].median_ms == pytest.approx(10)
    timings = time_calls(calls, CPU, Effort(min_rounds=2, min_seconds=10.0, max_seconds=0.05, warmups=0))
    assert timings["fast"].repetitions == 5


def test_a_stopwatch_measures():
    assert 0.01 <= CpuStopwatch().seconds("slow", lambda: time.sleep(0.01)) < 5


def test_releasing_the_result_takes_no_time():
    class Slow:
        def __del__(self):
            time.sleep(0.05)

    assert CpuStopwatch().seconds("slow", Slow) < 0.02


def test_quick_is_less_effort():
    for device in (CPU, torch.device("cuda")):
        quick, full = effort_for(device, quick=True), effort_for(device, quick=False)
        assert quick.min_rounds < full.min_rounds and quick.max_seconds < full.max_seconds


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_time_on_the_device():
    matrix = torch.randn(4096, 4096, device="cuda")
    calls = {"one": lambda: matrix @ matrix, "two": lambda: matrix @ matrix @ matrix}
    timings = time_calls(calls, torch.device("cuda"), effort_for(torch.device("cuda"), quick=False))
    assert timings["two"].median_ms == pytest.approx(2 * timings["one"].median_ms, rel=0.2)
    assert 0 < timings["one"].host_ms < timings["one"].median_ms
