"""What the device can do, whoever asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.bandwidth import copy_bandwidth_gbs
from benchmarks.matrix_rate import matrix_tflops
from benchmarks.timing import Effort


@dataclass(frozen=True)
class Limits:
    """Bytes moved, in 10⁹ a second, and by dtype operations of a matrix product, in 10¹² a second."""

    copy_gbs: float
    matrix_tflops: dict[str, float]


def measure_limits(device: torch.device, dtypes: Mapping[str, torch.dtype], effort: Effort) -> Limits:
    """The limits of a device for some dtypes."""
    return Limits(
        copy_bandwidth_gbs(device, effort),
        {name: matrix_tflops(device, dtype, effort) for name, dtype in dtypes.items()},
    )
