"""On what a result was measured: device, versions, commit, date."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def provenance(device: torch.device) -> dict[str, Any]:
    """What a file of results says of its origin; nothing in it names a place on the machine."""
    return {
        "machine": describe(device),
        "torch": str(torch.__version__),
        "triton": triton_version(),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The device and the host; sizes in bytes."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "kind": device.type,
        "host": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda": torch.version.cuda or torch.version.hip,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
    return facts


def device_name(device: torch.device) -> str:
    """The name that the maker gave it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def slug(name: str) -> str:
    """A name as part of a file name: lower case, with a hyphen for whatever is neither letter nor digit."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_name() -> str:
    """The model of the processor, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
        if found is not None:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def triton_version() -> str | None:
    """None where Triton cannot be imported."""
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError:
        return None


def commit() -> str | None:
    """The commit of the source, with "+" where files differ from it; None outside of a git repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()
