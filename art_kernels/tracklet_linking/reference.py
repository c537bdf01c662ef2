"""The definition of tracklet linking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels.cosine import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def link_by_index(
    responses: Float[Tensor, "b t k c"],
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"]]:
    """The same query index through all frames, and the cosine of adjacent responses."""
    order = torch.arange(responses.shape[2], device=responses.device).expand(responses.shape[:3]).contiguous()
    units = unit_vectors(responses)
    return order, (units[:, :-1] * units[:, 1:]).sum(-1)
