"""How fast the device multiplies matrices: the limit of everything that has little to move."""

from __future__ import annotations

import torch

from benchmarks.timing import Effort, time_calls

SIZES = {"cpu": 1024, "cuda": 8192}


def matrix_tflops(device: torch.device, dtype: torch.dtype, effort: Effort) -> float:
    """Operations in 10¹² a second of one large square product in `dtype`."""
    size = SIZES[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timing = time_calls({"product": lambda: left @ right}, device, effort)["product"]
    return 2 * size**3 / (timing.median_ms * 1e9)
