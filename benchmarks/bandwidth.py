"""How fast the device moves bytes: the limit of everything that has little to compute."""

from __future__ import annotations

import torch

from benchmarks.timing import Effort, time_calls

COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}


def copy_bandwidth_gbs(device: torch.device, effort: Effort) -> float:
    """Bytes read and bytes written, in 10⁹ a second, while a buffer much larger than all caches is copied."""
    size = COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timing = time_calls({"copy": lambda: target.copy_(source)}, device, effort)["copy"]
    return 2 * source.nbytes / (timing.median_ms * 1e6)
