"""The most memory that a call has beyond what was there before it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports on itself whenever it starts and stops


def peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Peak of the bytes that `call` holds at once, its results included, above those allocated before it.

    On CUDA this is what PyTorch's allocator counts. On a CPU nothing counts, so the profiler records every allocation
    and every release of PyTorch's allocator, with its size, and the peak is that of their running sum. Unlike a look at
    the operators' results this also sees what an operator makes and drops inside, and unlike the resident size of the
    process it does not depend on what the system's allocator keeps. What a library (BLAS, oneDNN) takes from the system
    for itself is not seen on either device, and on a CPU what was there before is taken to stay. Call it once before,
    so that nothing that is made only once is counted.
    """
    if device.type == "cuda":
        return _peak_on_cuda(call, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
    sizes = _allocations(profile)
    del result
    return peak_of_running_sum(sizes)


def peak_of_running_sum(sizes: list[int]) -> int:
    """The highest of 0 and all sums of the first so many of `sizes`: bytes allocated (> 0) and released (< 0)."""
    held = peak = 0
    for size in sizes:
        held += size
        peak = max(peak, held)
    return peak


def _peak_on_cuda(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak


def _allocations(profile: torch.profiler.profile) -> list[int]:
    """Bytes of each allocation (> 0) and release (< 0) on the CPU, in the order in which they happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    on_cpu = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [int(event["args"]["Bytes"]) for event in sorted(on_cpu, key=lambda event: float(event["ts"]))]
