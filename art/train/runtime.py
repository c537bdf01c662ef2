"""The process and its machine: signals, random generators, device, precision, memory and profiler traces."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from art import __version__

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Interrupted(Exception):
    """Work was stopped by a signal; a training run has saved its state.

    Attributes:
        signal_number: the signal; the process exits with 128 + this number (130 or 143).
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class DeferSignals:
    """Context manager that records SIGINT and SIGTERM instead of acting on them; a second signal acts immediately.

    Outside the main thread, where Python cannot install handlers, it does nothing. After a signal, SIGCHLD is ignored
    even after the block, because the process is about to exit.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._received = 0
        self._owner = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> DeferSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def received(self) -> int:
        """Return the number of the received signal, 0 if there was none."""
        return self._received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data worker: the parent decides when it exits
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif self._received:
            raise KeyboardInterrupt
        else:
            self._received = number
            # Data workers may have received the signal too. PyTorch raises an error when one exits, at any point of a
            # step or a save; with SIGCHLD ignored, the error is raised only where the loop waits for data.
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, lambda *_: None)


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise :class:`Interrupted` on SIGTERM in the block, so that cleanup code runs, as with Ctrl-C.

    Outside the main thread, where Python cannot install handlers, it does nothing.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "stopped by SIGTERM; finished work is kept")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rank_seed(seed: int, rank: int, step: int = 0) -> int:
    """Return the seed of a rank that starts at ``step``, so that dropout masks differ between ranks."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint32)[0])


def get_rng_state() -> dict[str, Any]:
    """Return the states of the global generators as containers and tensors that ``weights_only=True`` can load."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the output of :func:`get_rng_state`; CUDA states only if the number of devices is the same."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the global generators after the block, so that an evaluation does not change a training run."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def resolve_device(name: str) -> torch.device:
    """Return the device for a name; "auto" is CUDA if available, else the CPU.

    Raises:
        ValueError: the device is not available; there is no silent fallback.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: got {name!r}, expected auto, cpu, cuda, cuda:<number> or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device: got {name!r}, but torch sees no MPS device here")
    return device


def expand_devices(names: Sequence[str], jobs: int = 1) -> list[str]:
    """Return the device of each concurrent process.

    Args:
        names: devices for :func:`resolve_device`; "auto" and "cuda" expand to all CUDA devices ("auto" to the CPU if
            there are none).
        jobs: processes per device.

    Raises:
        ValueError: a device is not available or is listed twice, or ``jobs`` is less than 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs: got {jobs}, expected at least 1")
    found: list[str] = []
    for name in names:
        device = resolve_device(name)
        all_devices = device.type == "cuda" and device.index is None
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if all_devices else [str(device)]
    duplicates = sorted({name for name in found if found.count(name) > 1})
    if duplicates:
        raise ValueError(f"devices: got {duplicates[0]} twice in {', '.join(names)}; use jobs for several per device")
    return found * jobs


def allow_tf32(allowed: bool) -> None:
    """Set whether CUDA may use TF32 in float32 matrix products and convolutions, ``art_kernels`` included."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return an autocast context for "bf16" and "fp16", a null context for "fp32"."""
    return torch.autocast(device.type, _AUTOCAST[precision]) if precision in _AUTOCAST else nullcontext()


def peak_memory_bytes() -> int:
    """Return the peak resident set size of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, Linux KiB


def peak_device_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory allocated by PyTorch on a CUDA device; None for other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def provenance() -> dict[str, str]:
    """Return versions, machine and date, for files with measurements."""
    return {
        "art": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


class StepProfiler:
    """Traces a range of steps with torch.profiler to a file for https://ui.perfetto.dev or chrome://tracing.

    Args:
        directory: where ``steps-<first>-<last>[-rank-<rank>].json.gz`` is written.
        steps: first and last step to trace, counted from 1; None disables tracing.
        device: device to trace in addition to the CPU.
        rank: rank of this process in distributed training.
    """

    def __init__(
        self, directory: Path, steps: Sequence[int] | None, device: torch.device, rank: int | None = None
    ) -> None:
        self._directory, self._steps, self._device, self._rank = directory, steps, device, rank
        self._profile: profile | None = None
        self._first = self._last = 0

    def begin_step(self, step: int) -> None:
        """Start tracing if the step is in range. Call it before loading the batch of the step."""
        if self._steps is None or self._profile is not None or not self._steps[0] <= step <= self._steps[1]:
            return
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.start()
        self._first = step

    def end_step(self, step: int) -> None:
        """Write the trace after the last step of the range."""
        self._last = step
        if self._steps is not None and step >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Write the steps traced so far, if any."""
        running, self._profile = self._profile, None
        if running is None:
            return
        running.stop()
        if self._last < self._first:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        suffix = "" if self._rank is None else f"-rank-{self._rank}"
        path = self._directory / f"steps-{self._first}-{self._last}{suffix}.json.gz"
        incoming = path.with_name(f".incoming-{path.name}")  # the profiler compresses if the name ends in .gz
        running.export_chrome_trace(str(incoming))
        incoming.replace(path)
