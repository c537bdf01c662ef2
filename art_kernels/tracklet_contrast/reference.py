"""The definition of the multilevel tracklet contrastive loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels._core.precision import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def mtc_loss(
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None = None,
    margin: float = 0.6,
    valid: Bool[Tensor, "b t"] | None = None,
    temporal_form: str = "hinge",
    clamp_repulsion: bool = False,
    tracklet_form: str = "pooled",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The spatial, the temporal and the tracklet term."""
    if valid is None:
        valid = torch.ones(responses.shape[:2], dtype=torch.bool, device=responses.device)
    responses = responses.masked_fill(~valid[:, :, None, None], 0)

    units = unit_vectors(responses)
    spatial = _repulsion(units, valid, clamp_repulsion)

    similarity = (units[:, :-1] * units[:, 1:]).sum(-1)  # [B, T-1, K]
    shortfall = margin - similarity
    shortfall = shortfall.relu() if temporal_form == "hinge" else shortfall.abs()
    temporal = _mean(shortfall, (valid[:, :-1] & valid[:, 1:])[:, :, None])

    if tracklet_form == "flattened":
        tracklets = responses.transpose(1, 2).flatten(2)  # [B, K, T·C]
    elif aggregated is not None:
        tracklets = aggregated.masked_fill(~valid.any(1)[:, None, None], 0)
    else:
        tracklets = responses.sum(1) / valid.sum(1).clamp(min=1)[:, None, None]
    tracklet = _repulsion(unit_vectors(tracklets), valid.any(1), clamp_repulsion)
    return spatial, temporal, tracklet


def _repulsion(units: Float[Tensor, "... k c"], valid: Bool[Tensor, "..."], clamp: bool) -> Float[Tensor, ""]:
    """The mean of ⟨u_i, u_j⟩ over i≠j, where valid."""
    similarity = units @ units.mT  # [..., K, K]
    similarity = similarity.relu() if clamp else similarity
    different = ~torch.eye(units.shape[-2], dtype=torch.bool, device=units.device)
    return _mean(similarity, valid[..., None, None] & different)


def _mean(values: Float[Tensor, "..."], taken: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """The mean of the values taken, 0 where there are none."""
    taken = taken.expand_as(values)
    return values.masked_fill(~taken, 0).sum() / taken.sum().clamp(min=1)
