"""Measurements other than time: peak memory, device limits, numerical errors, and comparisons between providers."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from art_kernels._core import backends
from benchmarks.common.results import Record, Results
from benchmarks.common.timing import Timing, TimingConfig, time_calls

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs whenever it starts and stops

DTYPES = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64,
}  # fmt: skip
OURS = "art_kernels"
#: Backend of torch.compile, by whether the run is quick: compiling to machine code takes minutes for all shapes.
COMPILERS = {False: "inductor", True: "aot_eager"}
#: Suffix of providers whose result is copied to the host and awaited there.
TO_HOST = ", to host"
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
QUICK_COPY_BYTES = 16 << 20
MATRIX_SIZES = {"cpu": 1024, "cuda": 8192}
#: An error larger than this multiple of the baseline's error in the same dtype is a mistake, not rounding.
MAX_ERROR_RATIO = 20.0


@dataclass(frozen=True)
class Limits:
    """Measured limits of a device: copy bandwidth, GB/s, and the rate of a large matrix product, TFLOP/s by dtype."""

    copy_gbs: float
    matrix_tflops: dict[str, float]

    def compare(self, timing: Timing, moved_bytes: int, operations: int, dtype: str) -> dict[str, float]:
        """Relate a time to the bytes and operations that no implementation can avoid.

        Returns:
            "achieved_gbs" and "achieved_tflops"; "copy_fraction", the former over the copy bandwidth; and
            "limit_fraction", the time the device needs at least for these bytes or these operations over the time
            taken.
        """
        seconds = 1e-3 * timing.median_ms
        copying, computing = moved_bytes / (1e9 * self.copy_gbs), operations / (1e12 * self.matrix_tflops[dtype])
        return {
            "achieved_gbs": moved_bytes / seconds / 1e9,
            "achieved_tflops": operations / seconds / 1e12,
            "copy_fraction": copying / seconds,
            "limit_fraction": max(copying, computing) / seconds,
        }


def compiler_unsupported_reason(device: torch.device) -> str | None:
    """Return why torch.compile cannot run on a device, or None if it can."""
    if device.type == "cuda":
        try:
            importlib.import_module("triton")
        except ImportError as error:
            return f"torch.compile on CUDA requires Triton, which cannot be imported: {error}"
        return None
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile on a CPU requires a C++ compiler, but {compiler} is not found; install it or set CXX"
    return None


def measure_limits(device: torch.device, dtypes: Sequence[str], config: TimingConfig, *, quick: bool = False) -> Limits:
    """Measure the limits of a device for some dtypes."""
    rates = {name: matrix_tflops(device, DTYPES[name], config, quick=quick) for name in dtypes}
    return Limits(copy_bandwidth_gbs(device, config, quick=quick), rates)


def copy_bandwidth_gbs(device: torch.device, config: TimingConfig, *, quick: bool = False) -> float:
    """Return bytes read plus bytes written per second, in GB/s, when copying a buffer much larger than all caches."""
    size = QUICK_COPY_BYTES if quick else COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timing = time_calls({"copy": lambda: target.copy_(source)}, device, config)["copy"]
    return 2 * source.nbytes / (timing.median_ms * 1e6)


def matrix_tflops(device: torch.device, dtype: torch.dtype, config: TimingConfig, *, quick: bool = False) -> float:
    """Return the rate of one large square matrix product in `dtype`, in TFLOP/s."""
    size = 128 if quick else MATRIX_SIZES[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timing = time_calls({"product": lambda: left @ right}, device, config)["product"]
    return 2 * size**3 / (timing.median_ms * 1e9)


def peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak number of bytes allocated during `call`, results included, above those allocated before it.

    On CUDA this is what PyTorch's allocator counts. On a CPU the profiler records every allocation and release of
    PyTorch's allocator, and the result is the peak of their running sum; memory allocated inside an operator is
    included, and the result does not depend on what the system allocator keeps. Memory that a library (BLAS, oneDNN)
    takes from the system is not counted on either device. Run the call once before, so that one-time allocations are
    not counted.
    """
    if device.type == "cuda":
        return _peak_on_cuda(call, device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
    sizes = _allocations(profile)
    del result
    return peak_of_running_sum(sizes)


def peak_of_running_sum(sizes: Sequence[int]) -> int:
    """Return the maximum of 0 and all prefix sums of `sizes`: bytes allocated (> 0) and released (< 0)."""
    allocated = peak = 0
    for size in sizes:
        allocated += size
        peak = max(peak, allocated)
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
    """Return the bytes of each CPU allocation (> 0) and release (< 0), in chronological order."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    on_cpu = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [int(event["args"]["Bytes"]) for event in sorted(on_cpu, key=lambda event: float(event["ts"]))]


def relative_error(value: Tensor, oracle: Tensor) -> float:
    """Return the largest absolute error of any element over the largest absolute element of `oracle`."""
    return ((value.double() - oracle).abs().max() / oracle.abs().max()).item()


def require_accurate(own: Mapping[str, float], baseline: Mapping[str, float], *, floor: float = 0.0) -> None:
    """Check the relative errors of a provider against those of the baseline.

    Args:
        own: errors by output.
        baseline: errors of the baseline by output.
        floor: a baseline error smaller than this counts as this.

    Raises:
        ArithmeticError: an error exceeds `MAX_ERROR_RATIO` times the baseline's, or is NaN.
    """
    for kind, error in own.items():
        if not error <= MAX_ERROR_RATIO * max(baseline[kind], floor):  # True for NaN
            raise ArithmeticError(
                f"the error of {kind} is {error:.2g} of its largest element, the baseline's {baseline[kind]:.2g}; "
                f"expected at most {MAX_ERROR_RATIO:g} times that"
            )


def compare_times(provider: str, times: Mapping[str, float], *, ours: str = OURS) -> dict[str, Any]:
    """Compare the time of one provider with the baseline and with the fastest alternative.

    Args:
        provider: its name.
        times: time of each provider, the baseline first. Providers whose name ends with `TO_HOST` are compared with
            each other only.
        ours: prefix of the names of this package's providers.

    Returns:
        "speedup_over_baseline"; and for a provider of this package "best_other", the fastest provider that is not one,
        and "speedup_over_best_other" (None where there is none).
    """
    best = None
    if provider.startswith(ours):
        others = [
            name for name in times if not name.startswith(ours) and name.endswith(TO_HOST) == provider.endswith(TO_HOST)
        ]
        best = min(others, key=lambda name: times[name], default=None)
    return {
        "speedup_over_baseline": next(iter(times.values())) / times[provider],
        "best_other": best,
        "speedup_over_best_other": None if best is None else times[best] / times[provider],
    }


def measure_providers(
    results: Results,
    calls: Mapping[str, Callable[[], object]],
    case: Record,
    entries: Mapping[str, Record],
    *,
    dtype: str,
    limits: Limits,
    moved_bytes: int,
    operations: int,
) -> list[Record]:
    """Time all providers of one case against each other, measure their memory, and return a record of each.

    Args:
        results: device and number of repetitions.
        calls: what to run, by provider, the baseline first.
        case: entries of all records.
        entries: further entries of each provider's record.
        dtype: name of the dtype.
        limits: of the device.
        moved_bytes: minimum number of bytes moved by a call.
        operations: minimum number of operations of a call.
    """
    timings = time_calls(calls, results.device, results.timing)
    times = {provider: timing.median_ms for provider, timing in timings.items()}
    return [
        {
            **case,
            "provider": provider,
            **entries[provider],
            **asdict(timing),
            **compare_times(provider, times),
            "peak_extra_bytes": peak_extra_bytes(calls[provider], results.device),
            "moved_bytes": moved_bytes,
            "operations": operations,
            **limits.compare(timing, moved_bytes, operations, dtype),
        }
        for provider, timing in timings.items()
    ]


def chosen_backend(operation: str, tensor: Tensor) -> str:
    """Return the backend that `art_kernels` selects for an operation on a tensor."""
    return backends.choose(operation, tensor)
