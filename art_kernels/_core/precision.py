"""Numerics shared by the operations: autocast rules, the accumulation dtype, and the cosine of zero vectors.

`region_attention` and `tracklet_nce` follow PyTorch's matrix products: under autocast, their inputs are cast to the
autocast dtype. The other tracklet operations follow PyTorch's softmax and losses: under autocast, their inputs are cast
to float32, and they always compute in at least float32. Float64 is never cast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of `device`, or None if autocast is disabled."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context that disables autocast on `device`, for code whose dtypes are already final."""
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_as_matmul(tensor: Tensor) -> Tensor:
    """Cast `tensor` to the autocast dtype under autocast, except float64; otherwise return it unchanged."""
    dtype = autocast_dtype(tensor.device)
    return tensor if dtype is None or tensor.dtype == torch.float64 else tensor.to(dtype)


def autocast_as_softmax(tensor: Tensor) -> Tensor:
    """Cast `tensor` to float32 under autocast, except float64; otherwise return it unchanged."""
    return tensor if autocast_dtype(tensor.device) is None else at_least_float32(tensor)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast `tensor` to its accumulation dtype."""
    return tensor.to(accumulation_dtype(tensor.dtype))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over values of `dtype`: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cosine_norms(squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Euclidean norms from squared norms; infinite for zero vectors.

    Dividing a dot product by these norms yields the cosine. The infinite norm makes the cosine and the gradient of a
    zero vector exactly 0 where 0/0 would yield NaN. A vector counts as zero if its squared norm is below the smallest
    normal number of the dtype (norm 1e-19 in float32), because its direction is lost to underflow.
    """
    return squares.masked_fill(squares < torch.finfo(squares.dtype).tiny, float("inf")).sqrt()


def unit_vectors(vectors: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
    """Divide each vector of the last dimension by its Euclidean norm; a zero vector stays zero, with zero gradient."""
    return vectors / cosine_norms(vectors.square().sum(-1, keepdim=True))
