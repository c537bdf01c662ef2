"""How long calls take: in turns, so that all meet the same state of the machine; the median of many repetitions."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Effort:
    """How often calls that are compared are repeated.

    Attributes:
        min_rounds: repetitions of each call at least; 2 or more.
        min_seconds: rounds go on until each call has taken so long in total,
        max_seconds: but no longer than so long for all calls together, once there are `min_rounds`.
        warmups: calls of each before the first that counts.
    """

    min_rounds: int
    min_seconds: float
    max_seconds: float
    warmups: int


_EFFORTS = {
    ("cpu", False): Effort(min_rounds=5, min_seconds=1.0, max_seconds=30.0, warmups=1),
    ("cpu", True): Effort(min_rounds=3, min_seconds=0.05, max_seconds=2.0, warmups=1),
    ("cuda", False): Effort(min_rounds=50, min_seconds=0.1, max_seconds=1.5, warmups=3),
    ("cuda", True): Effort(min_rounds=5, min_seconds=0.0, max_seconds=0.5, warmups=2),
}


#: Of a rehearsal, which only shows that each step runs: kernels in Triton's interpreter take seconds.
REHEARSAL = Effort(min_rounds=2, min_seconds=0.0, max_seconds=0.0, warmups=0)


def effort_for(device: torch.device, *, quick: bool) -> Effort:
    """The effort of a benchmark on "cpu" or "cuda"; `quick` is enough to see that it works."""
    return _EFFORTS[device.type, quick]


@dataclass(frozen=True)
class Timing:
    """Of one call, in milliseconds.

    Attributes:
        median_ms: of all repetitions.
        p20_ms: a fifth of the repetitions is faster than this,
        p80_ms: and a fifth slower than this.
        repetitions: how many there were.
        host_ms: time until the call has queued its work on a CUDA device; None on a CPU.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    repetitions: int
    host_ms: float | None


@dataclass(frozen=True)
class Rounds:
    """What a clock has shown.

    Attributes:
        seconds: of each call in each round.
        host_seconds: of each call, until its work is queued on a CUDA device; None on a CPU.
    """

    seconds: dict[str, list[float]]
    host_seconds: dict[str, float | None]


def time_calls(calls: Mapping[str, Call], device: torch.device, effort: Effort) -> dict[str, Timing]:
    """Time calls against each other, see `time_rounds`; the statistics of each."""
    rounds = time_rounds(calls, device, effort)
    return {name: summarize(found, rounds.host_seconds[name]) for name, found in rounds.seconds.items()}


def time_rounds(calls: Mapping[str, Call], device: torch.device, effort: Effort) -> Rounds:
    """Time calls against each other.

    Each round runs every call once, every other round in reverse order. On a CPU that puts the data of the others
    between two runs of a call; on CUDA a buffer larger than the L2 cache is written before each.

    Args:
        calls: by name; each does its work anew whenever it is called.
        device: where the work is done.
        effort: how often.
    """
    stopwatch = CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch()
    for name, call in calls.items():
        for _ in range(effort.warmups):
            call()
        stopwatch.prepare(name, call)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    with _no_collection():
        while not _enough(seconds, time.perf_counter() - start, effort):
            order = list(calls.items())
            for name, call in order if len(seconds[order[0][0]]) % 2 == 0 else reversed(order):
                seconds[name].append(stopwatch.seconds(name, call))
    return Rounds(seconds, {name: stopwatch.host_seconds(name) for name in calls})


def summarize(seconds: list[float], host_seconds: float | None = None) -> Timing:
    """The statistics of at least two repetitions."""
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(
        median_ms=1e3 * statistics.median(seconds),
        p20_ms=1e3 * fifths[0],
        p80_ms=1e3 * fifths[-1],
        repetitions=len(seconds),
        host_ms=None if host_seconds is None else 1e3 * host_seconds,
    )


def _enough(seconds: Mapping[str, list[float]], elapsed: float, effort: Effort) -> bool:
    if min(map(len, seconds.values())) < effort.min_rounds:
        return False
    return elapsed >= effort.max_seconds or min(map(sum, seconds.values())) >= effort.min_seconds


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the midst of a repetition."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CpuStopwatch:
    """Wall-clock time of a call that returns when its work is done."""

    def prepare(self, name: str, call: Call) -> None:
        """Nothing to prepare."""

    def seconds(self, name: str, call: Call) -> float:
        """Time of one run; what it returns is freed after the clock has stopped."""
        start = time.perf_counter()
        result = call()
        end = time.perf_counter()
        del result
        return end - start

    def host_seconds(self, name: str) -> None:
        """There is no host beside the device."""


class CudaStopwatch:
    """Time of the device between two events around a call.

    Before each run a buffer larger than the L2 cache is written, so that no call finds its inputs there. It is written
    as many times as the device needs to be still at it when the host has queued the whole call: then what is measured
    is the device's time, without gaps in which it waits for the host. (`Timing.host_ms` is the host's.)
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
        """Find out how long the host takes to queue the call, and so how often to write the buffer before it."""
        torch.cuda.synchronize(self.device)
        durations = []
        for _ in range(3):
            start = time.perf_counter()
            result = call()
            durations.append(time.perf_counter() - start)
            torch.cuda.synchronize(self.device)
            del result
        self.host[name] = min(durations)
        lead = 1.5 * statistics.median(durations) + 50e-6  # and the events themselves
        self.writes[name] = min(self.MAX_WRITES, math.ceil(lead / self.write_seconds))

    def seconds(self, name: str, call: Call) -> float:
        """Time of one run."""
        for _ in range(self.writes[name]):
            self.buffer.zero_()
        return self._between_events(call)

    def host_seconds(self, name: str) -> float:
        """Time in which the host queues the call."""
        return self.host[name]

    def _between_events(self, call: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize(self.device)
        del result
        return 1e-3 * start.elapsed_time(end)
