"""Interleaved timing of several callables: medians over many rounds, each call meeting the same machine state."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class TimingConfig:
    """How often compared calls are repeated.

    Attributes:
        min_rounds: minimum number of rounds, at least 2.
        min_seconds: rounds continue until every call has accumulated this much time.
        max_seconds: upper bound for all calls together, once `min_rounds` is reached.
        warmups: untimed runs of each call.
    """

    min_rounds: int
    min_seconds: float
    max_seconds: float
    warmups: int


#: With `--quick` each step runs, but the times are meaningless: in Triton's interpreter a kernel takes seconds.
QUICK = TimingConfig(min_rounds=2, min_seconds=0.0, max_seconds=0.0, warmups=0)
DEFAULT = {
    "cpu": TimingConfig(min_rounds=5, min_seconds=1.0, max_seconds=30.0, warmups=1),
    "cuda": TimingConfig(min_rounds=50, min_seconds=0.1, max_seconds=1.5, warmups=3),
}


@dataclass(frozen=True)
class Timing:
    """Statistics of one call, in milliseconds.

    Attributes:
        median_ms: median over all rounds.
        p20_ms: 20th percentile.
        p80_ms: 80th percentile.
        repetitions: number of rounds.
        host_ms: time the host takes to enqueue the work of the call on a CUDA device; None on a CPU.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    repetitions: int
    host_ms: float | None


@dataclass(frozen=True)
class Rounds:
    """Raw measurements: seconds of each call in each round, and the host time of each call (None on a CPU)."""

    seconds: dict[str, list[float]]
    host_seconds: dict[str, float | None]

    def timings(self) -> dict[str, Timing]:
        """Return the statistics of each call."""
        return {name: summarize(found, self.host_seconds[name]) for name, found in self.seconds.items()}

    def ratios(self, name: str, baseline: str) -> dict[str, float]:
        """Return median, 20th and 80th percentile of time over the baseline's time in the same round."""
        found = [own / other for own, other in zip(self.seconds[name], self.seconds[baseline], strict=True)]
        quintiles = statistics.quantiles(found, n=5, method="inclusive")
        return {"ratio": statistics.median(found), "ratio_p20": quintiles[0], "ratio_p80": quintiles[-1]}


class Stopwatch(Protocol):
    """A clock that times one run of a call."""

    def prepare(self, name: str, call: Call) -> None:
        """Run once per call before the first round."""

    def seconds(self, name: str, call: Call) -> float:
        """Return the duration of one run."""

    def host_seconds(self, name: str) -> float | None:
        """Return the time the host takes to enqueue the call; None on a CPU."""


def time_calls(calls: Mapping[str, Call], device: torch.device, config: TimingConfig) -> dict[str, Timing]:
    """Time calls against each other (see `time_rounds`) and return the statistics of each."""
    return time_rounds(calls, device, config).timings()


def time_rounds(
    calls: Mapping[str, Call], device: torch.device, config: TimingConfig, stopwatch: Stopwatch | None = None
) -> Rounds:
    """Time calls against each other in interleaved rounds.

    Each round runs every call once, every other round in reverse order. On a CPU this puts the data of the other calls
    between two runs of one call; on CUDA a buffer larger than the L2 cache is written before each run.

    Args:
        calls: callables by name.
        device: where the work runs.
        config: number of repetitions.
        stopwatch: the clock; None for wall-clock time on a CPU and CUDA events on a GPU.
    """
    if stopwatch is None:
        stopwatch = CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch()
    for name, call in calls.items():
        for _ in range(config.warmups):
            call()
        stopwatch.prepare(name, call)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rounds, start = 0, time.perf_counter()
    with _gc_disabled():
        while calls and not _is_enough(seconds, time.perf_counter() - start, config):
            for name, call in list(calls.items())[:: 1 if rounds % 2 == 0 else -1]:
                seconds[name].append(stopwatch.seconds(name, call))
            rounds += 1
    return Rounds(seconds, {name: stopwatch.host_seconds(name) for name in calls})


def summarize(seconds: list[float], host_seconds: float | None = None) -> Timing:
    """Return the statistics of at least two repetitions."""
    quintiles = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(
        median_ms=1e3 * statistics.median(seconds),
        p20_ms=1e3 * quintiles[0],
        p80_ms=1e3 * quintiles[-1],
        repetitions=len(seconds),
        host_ms=None if host_seconds is None else 1e3 * host_seconds,
    )


def capture_graph(call: Call) -> Call:
    """Capture a call in a CUDA graph and return a callable that replays it, without launch overhead."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # one-time initialization must not be captured
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> object:
        graph.replay()
        return outputs

    return replay


def _is_enough(seconds: Mapping[str, list[float]], elapsed: float, config: TimingConfig) -> bool:
    if min(map(len, seconds.values())) < config.min_rounds:
        return False
    return elapsed >= config.max_seconds or min(map(sum, seconds.values())) >= config.min_seconds


@contextmanager
def _gc_disabled() -> Iterator[None]:
    """Keep the garbage collector from running during a repetition."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CpuStopwatch:
    """Wall-clock time of a synchronous call."""

    clock = staticmethod(time.perf_counter)

    def prepare(self, name: str, call: Call) -> None:
        """Do nothing."""

    def seconds(self, name: str, call: Call) -> float:
        """Time one run; the result is freed after the clock has stopped."""
        start = self.clock()
        result = call()
        end = self.clock()
        del result
        return end - start

    def host_seconds(self, name: str) -> None:
        """Return None: the host is the device."""


class CoreStopwatch(CpuStopwatch):
    """CPU time of all threads of the process, which does not depend on what else the machine runs."""

    clock = staticmethod(time.process_time)


class CudaStopwatch:
    """Device time between two events around a call.

    Before each run a buffer larger than the L2 cache is written, so that no call finds its inputs in the cache. It is
    written often enough that the device is still busy when the host has enqueued the whole call: the measured time is
    the device's and contains no gaps in which it waits for the host. (`Timing.host_ms` is the host's time.)
    """

    MAX_WRITES = 64

    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self.device = device
        self.buffer = torch.empty(max(4 * l2_bytes, 128 << 20), dtype=torch.uint8, device=device)
        self.host: dict[str, float] = {}
        self.writes: dict[str, int] = {}
        self.buffer.zero_()
        self.write_seconds = self._between_events(self.buffer.zero_)

    def prepare(self, name: str, call: Call) -> None:
        """Measure how long the host takes to enqueue the call, and derive the number of buffer writes."""
        torch.cuda.synchronize(self.device)
        durations = []
        for _ in range(3):
            start = time.perf_counter()
            result = call()
            durations.append(time.perf_counter() - start)
            torch.cuda.synchronize(self.device)
            del result
        self.host[name] = min(durations)
        lead = 1.5 * statistics.median(durations) + 50e-6  # 50 µs for the events
        self.writes[name] = min(self.MAX_WRITES, math.ceil(lead / self.write_seconds))

    def seconds(self, name: str, call: Call) -> float:
        """Time one run."""
        for _ in range(self.writes[name]):
            self.buffer.zero_()
        return self._between_events(call)

    def host_seconds(self, name: str) -> float:
        """Return the time the host takes to enqueue the call."""
        return self.host[name]

    def _between_events(self, call: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize(self.device)
        del result
        return 1e-3 * start.elapsed_time(end)
