"""In which dtype an operation computes: the autocast rules and the accumulation dtype.

Two rules cover the package. `region_attention` behaves as PyTorch's matrix products do: under autocast its inputs are
cast to the autocast dtype. The three tracklet operations behave as PyTorch's softmax and losses do: under autocast
their inputs are cast to float32, and in every case they compute in at least float32. Float64 is never cast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of the autocast region in force on `device`, or None outside of one."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which no operation casts its inputs: the dtypes are settled before it is entered."""
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_as_matmul(tensor: Tensor) -> Tensor:
    """Under autocast, `tensor` in the autocast dtype (float64 stays); elsewhere `tensor` itself."""
    dtype = autocast_dtype(tensor.device)
    return tensor if dtype is None or tensor.dtype == torch.float64 else tensor.to(dtype)


def autocast_as_softmax(tensor: Tensor) -> Tensor:
    """Under autocast, `tensor` in float32 (float64 stays); elsewhere `tensor` itself."""
    return tensor if autocast_dtype(tensor.device) is None else at_least_float32(tensor)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or in float64 where it is that already."""
    return tensor.to(accumulation_dtype(tensor.dtype))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over values of `dtype` are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
