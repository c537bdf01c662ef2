"""Text-guided tracklet pooling in PyTorch's own operators, from dot products of the responses as they lie.

No normalised copy of the responses is made: the dot products are divided by their norms afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels._core.precision import cosine_norms, unit_vectors
from art_kernels._core.precision import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def pool_tracklets(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    temperature: float = 0.01,
    valid: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """The aggregated tracklets and the saliency, in the accumulation dtype."""
    responses, semantics = at_least_float32(responses), at_least_float32(semantics)
    if valid is not None:
        responses = responses.masked_fill(~valid[:, :, None, None], 0)
    frames, count = responses.shape[1:3]
    directions = unit_vectors(semantics) / temperature
    products = torch.bmm(responses.flatten(1, 2), directions.mT).unflatten(1, (frames, count))  # [B, T, K, J]
    scores = products / cosine_norms(responses.square().sum(-1))[..., None]
    if valid is None:
        weights = scores.softmax(1)
    else:
        invalid = ~valid[:, :, None, None]
        weights = scores.masked_fill(invalid, torch.finfo(scores.dtype).min).softmax(1).masked_fill(invalid, 0)
    saliency = weights.mean(-1)
    return (responses * saliency[..., None]).sum(1), saliency
