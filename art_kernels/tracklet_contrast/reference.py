"""Reference implementation of the multilevel tracklet contrastive loss, and the arguments of all backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from art_kernels._core.precision import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Arguments(NamedTuple):
    """Arguments of every backend.

    Attributes:
        responses: [B,T,K,C].
        aggregated: [B,K,C] in the dtype of the responses; None for the mean over time.
        valid: [B,T], True where a frame exists; None if all do.
        margin: λ.
        absolute: the temporal term is |λ - ⟨·,·⟩| instead of max(0, λ - ⟨·,·⟩).
        clamp: negative cosines count as 0 in the spatial and the tracklet term.
        flattened: tracklets are compared as concatenated responses instead of pooled ones.
        gradients: whether to save the tensors that the backward pass reads.
    """

    responses: Float[Tensor, "b t k c"]
    aggregated: Float[Tensor, "b k c"] | None
    valid: Bool[Tensor, "b t"] | None
    margin: float
    absolute: bool
    clamp: bool
    flattened: bool
    gradients: bool


def mtc_loss(
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None = None,
    margin: float = 0.6,
    valid: Bool[Tensor, "b t"] | None = None,
    temporal_form: str = "hinge",
    clamp_repulsion: bool = False,
    tracklet_form: str = "pooled",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the spatial, the temporal and the tracklet term."""
    if valid is None:
        valid = torch.ones(responses.shape[:2], dtype=torch.bool, device=responses.device)
    responses = responses.masked_fill(~valid[:, :, None, None], 0)

    units = unit_vectors(responses)
    spatial = _repulsion(units, valid, clamp_repulsion)

    similarity = (units[:, :-1] * units[:, 1:]).sum(-1)  # [B, T-1, K]
    shortfall = margin - similarity
    shortfall = shortfall.relu() if temporal_form == "hinge" else shortfall.abs()
    temporal = _masked_mean(shortfall, (valid[:, :-1] & valid[:, 1:])[:, :, None])

    if tracklet_form == "flattened":
        tracklets = responses.transpose(1, 2).flatten(2)  # [B, K, T·C]
    elif aggregated is not None:
        tracklets = aggregated.masked_fill(~valid.any(1)[:, None, None], 0)
    else:
        tracklets = responses.sum(1) / valid.sum(1).clamp(min=1)[:, None, None]
    tracklet = _repulsion(unit_vectors(tracklets), valid.any(1), clamp_repulsion)
    return spatial, temporal, tracklet


def _repulsion(units: Float[Tensor, "... k c"], valid: Bool[Tensor, "..."], clamp: bool) -> Float[Tensor, ""]:
    """Return the mean of ⟨u_i, u_j⟩ over i≠j where valid."""
    similarity = units @ units.mT  # [..., K, K]
    similarity = similarity.relu() if clamp else similarity
    different = ~torch.eye(units.shape[-2], dtype=torch.bool, device=units.device)
    return _masked_mean(similarity, valid[..., None, None] & different)


def _masked_mean(values: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return the mean of the values where the mask is True, or 0 if it is nowhere True."""
    mask = mask.expand_as(values)
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
