"""Tracklet linking in PyTorch's own operators, from dot products of the responses as they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels.cosine import cosine_norms
from art_kernels.precision import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def link_by_index(
    responses: Float[Tensor, "b t k c"],
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"]]:
    """The order, and the similarity in the accumulation dtype."""
    responses = at_least_float32(responses)
    order = torch.arange(responses.shape[2], device=responses.device).expand(responses.shape[:3]).contiguous()
    norms = cosine_norms(responses.square().sum(-1))  # [B, T, K]
    return order, (responses[:, :-1] * responses[:, 1:]).sum(-1) / norms[:, :-1] / norms[:, 1:]
