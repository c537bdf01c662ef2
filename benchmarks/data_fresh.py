"""A decoder in a process of its own: how long until the first clip is there, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLIPS = 4
#: In place of what `measure_fresh` finds, where it was not asked.
NOT_FRESH = {"first_clip_seconds": None, "peak_bytes": None}


def measure_fresh(
    provider: str, function: str, path: Path, indices: Sequence[int], size: tuple[int, int] | None
) -> dict[str, Any]:
    """Run `main` in a new process.

    Returns:
        "first_clip_seconds", from before the library is imported to the first clip; "peak_bytes" above what the process
        had before that (with Python, PyTorch and NumPy loaded). None of them off Linux, for the latter.
    """
    arguments = json.dumps([provider, function, str(path), list(indices), size])
    command = [sys.executable, "-m", "benchmarks.data_fresh", arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"in a process of its own: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Read some clips with one provider; print what that took as JSON."""
    import numpy as np
    import torch

    from benchmarks import data_providers

    torch.set_num_threads(1)
    np.zeros(1)
    provider, function, path, indices, size = json.loads(sys.argv[1])
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    read = data_providers.build(provider, function)
    read(path, indices, size and tuple(size))
    first = time.perf_counter() - start
    for _ in range(CLIPS - 1):
        read(path, indices, size and tuple(size))
    after = resident_bytes("VmHWM")
    peak = None if before is None or after is None else after - before
    print(json.dumps({"first_clip_seconds": first, "peak_bytes": peak}))


def resident_bytes(entry: str = "VmRSS") -> int | None:
    """Of this process, now ("VmRSS") or at its largest ("VmHWM"); None where the system does not tell (off Linux)."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
