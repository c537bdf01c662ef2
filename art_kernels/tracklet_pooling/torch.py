"""The "torch" backend: text-guided tracklet pooling in PyTorch operators, differentiable by autograd.

Responses are not copied for normalization; their dot products are divided by the norms instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels._core.precision import at_least_float32, cosine_norms, unit_vectors
from art_kernels.tracklet_pooling.reference import softmax_over_time

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def pool_tracklets(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    temperature: float = 0.01,
    valid: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """Return the aggregated tracklets and the saliency, in the accumulation dtype."""
    responses, semantics = at_least_float32(responses), at_least_float32(semantics)
    if valid is not None:
        responses = responses.masked_fill(~valid[:, :, None, None], 0)
    frames, count = responses.shape[1:3]
    directions = unit_vectors(semantics) / temperature
    products = torch.bmm(responses.flatten(1, 2), directions.mT).unflatten(1, (frames, count))  # [B, T, K, J]
    scores = products / cosine_norms(responses.square().sum(-1))[..., None]
    saliency = softmax_over_time(scores, valid).mean(-1)
    return (responses * saliency[..., None]).sum(1), saliency
