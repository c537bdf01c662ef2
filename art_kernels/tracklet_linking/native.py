"""Linking: by index in PyTorch's own operators; by similarity in the native module, which takes cosines and matching
in one pass. For more responses a frame than that pass holds on a GPU, PyTorch's own product is in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels.cosine import cosine_norms
from art_kernels.precision import at_least_float32
from art_kernels.tracklet_linking import extension
from art_kernels.tracklet_linking.reference import tracklet_ids

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def link_by_index(
    responses: Float[Tensor, "b t k c"],
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"]]:
    """The order, and the similarity in the accumulation dtype."""
    order = torch.arange(responses.shape[2], device=responses.device).expand(responses.shape[:3]).contiguous()
    return order, _along(at_least_float32(responses))


def _along(linked: Float[Tensor, "b t k c"]) -> Float[Tensor, "b t-1 k"]:
    """The cosine of adjacent responses of each slot."""
    norms = cosine_norms(linked.square().sum(-1))  # [B, T, K]
    return (linked[:, :-1] * linked[:, 1:]).sum(-1) / norms[:, :-1] / norms[:, 1:]


def link_by_similarity(
    responses: Float[Tensor, "b t k c"], *, greedy: bool, min_similarity: float | None
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"], Int[Tensor, "b t k"]]:
    """The order, the similarity in the accumulation dtype, and the tracklet ids; without gradients."""
    if extension.can_link(responses):
        return extension.link(responses, greedy=greedy, min_similarity=min_similarity)
    return link_through_cosines(responses, greedy=greedy, min_similarity=min_similarity)


def link_through_cosines(
    responses: Float[Tensor, "b t k c"], *, greedy: bool, min_similarity: float | None
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"], Int[Tensor, "b t k"]]:
    """The same, with all cosines [B,T-1,K,K] in memory."""
    responses = at_least_float32(responses)
    norms = cosine_norms(responses.square().sum(-1))
    cosines = responses[:, :-1] @ responses[:, 1:].mT / norms[:, :-1, :, None] / norms[:, 1:, None, :]
    comparable = cosines.masked_fill(~cosines.isfinite(), -2)  # NaN: below every cosine
    matches, _ = extension.solve(comparable.flatten(0, 1), maximize=True, greedy=greedy)
    order = extension.compose(matches.view(cosines.shape[:-1]))
    # Not gathered from the cosines: a sum that is taken alone loses fewer digits than one inside of a matrix product.
    similarity = _along(responses.gather(2, order[..., None].expand_as(responses)))
    return order, similarity, tracklet_ids(order, similarity, min_similarity)
