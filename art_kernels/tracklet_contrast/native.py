"""The multilevel tracklet contrastive loss in PyTorch's own operators, from dot products of the responses as they lie.

No normalised copy of the responses is made: dot products are divided by norms afterwards, and the norms are the
diagonal of the matrix of dot products that the spatial term needs anyway. Summed over time, the same matrix is that
of the flattened tracklets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_kernels.cosine import cosine_norms
from art_kernels.precision import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def mtc_loss(
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None = None,
    margin: float = 0.6,
    valid: Bool[Tensor, "b t"] | None = None,
    temporal_form: str = "hinge",
    clamp_repulsion: bool = False,
    tracklet_form: str = "pooled",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The spatial, the temporal and the tracklet term, in the accumulation dtype."""
    responses = at_least_float32(responses)
    batch, frames, count, _ = responses.shape
    # Numbers of videos, frames and pairs of frames that take part: Python numbers, or tensors that stay on the device.
    videos: int | Tensor = batch
    instants: int | Tensor = batch * frames
    steps: int | Tensor = batch * (frames - 1)
    if valid is not None:
        responses = responses.masked_fill(~valid[:, :, None, None], 0)  # zero vectors add nothing to the products below
        watched = valid.any(1)
        step_valid = valid[:, :-1] & valid[:, 1:]
        videos, instants, steps = watched.sum(), valid.sum(), step_valid.sum()

    products = responses @ responses.mT  # [B, T, K, K]
    norms = cosine_norms(products.diagonal(dim1=-2, dim2=-1))  # [B, T, K]
    spatial = _repulsion(products, norms, clamp_repulsion) / _at_least_one(instants * (count * (count - 1)))

    similarity = (responses[:, :-1] * responses[:, 1:]).sum(-1) / norms[:, :-1] / norms[:, 1:]  # [B, T-1, K]
    shortfall = margin - similarity
    shortfall = shortfall.relu() if temporal_form == "hinge" else shortfall.abs()
    if valid is not None:
        shortfall = shortfall.masked_fill(~step_valid[:, :, None], 0)
    temporal = shortfall.sum() / _at_least_one(steps * count)

    if tracklet_form == "flattened":
        products = products.sum(1)  # [B, K, K]
    else:
        if aggregated is None:
            tracklets = responses.mean(1)
        elif valid is None:
            tracklets = at_least_float32(aggregated)
        else:
            tracklets = at_least_float32(aggregated).masked_fill(~watched[:, None, None], 0)
        products = tracklets @ tracklets.mT
    norms = cosine_norms(products.diagonal(dim1=-2, dim2=-1))
    tracklet = _repulsion(products, norms, clamp_repulsion) / _at_least_one(videos * (count * (count - 1)))
    return spatial, temporal, tracklet


def _repulsion(products: Float[Tensor, "... k k"], norms: Float[Tensor, "... k"], clamp: bool) -> Float[Tensor, ""]:
    """The sum of the cosines over i≠j: twice that over i<j."""
    similarity = products / norms[..., :, None] / norms[..., None, :]
    similarity = similarity.relu() if clamp else similarity
    return 2 * similarity.triu(1).sum()


def _at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else torch.sym_max(count, 1)
