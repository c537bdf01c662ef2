"""The machine: device, precision, memory, versions."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone

import torch

from art import __version__

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of a configuration: "auto" takes CUDA where it is present, else the CPU.

    Raises:
        ValueError: for a device that is named but not there; nothing falls back silently.
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


def devices_at_once(names: Sequence[str], jobs: int = 1) -> list[str]:
    """The device of each process that works at the same time as the others.

    Args:
        names: devices as :func:`resolve_device` takes them; "auto" and "cuda" are all CUDA devices there are, and
            "auto" the CPU where there is none.
        jobs: processes on each of them.

    Raises:
        ValueError: for a device that is not there or is named twice, or for fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"jobs: got {jobs}, expected at least 1")
    found: list[str] = []
    for name in names:
        device = resolve_device(name)
        several = device.type == "cuda" and device.index is None
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())] if several else [str(device)]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(f"devices: got {twice[0]} twice in {', '.join(names)}; more processes on each are jobs")
    return found * jobs


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of float32 products and convolutions to TF32, here and in ``art_kernels``."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for "bf16" and "fp16"; nothing for "fp32"."""
    return torch.autocast(device.type, _AUTOCAST[precision]) if precision in _AUTOCAST else nullcontext()


def peak_memory_bytes() -> int:
    """The largest resident size this process has had. (Linux counts kibibytes, macOS bytes.)"""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_memory_bytes(device: torch.device) -> int | None:
    """The most that torch had allocated on a CUDA device; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def provenance() -> dict[str, str]:
    """Versions, machine and date, for files that hold measurements."""
    return {
        "art": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
