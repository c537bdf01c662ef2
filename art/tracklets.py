"""Tracklets: following each query's response through the frames, and what a tracklet says as a whole."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from art_kernels import link_tracklets, pool_tracklets


class Aggregation(NamedTuple):
    """Tracklets weighted over time by what the text asks for.

    Attributes:
        aggregated: ``[B, K, d]``, Tr_k = Σ_t w_tk r_tk.
        saliency: ``[B, T, K]``, w; sums to 1 over T.
    """

    aggregated: Float[Tensor, "b k d"]
    saliency: Float[Tensor, "b t k"]


def link(responses: Float[Tensor, "b t k d"], method: str) -> Float[Tensor, "b t k d"]:
    """The responses in tracklet order: ``[:, :, i]`` is tracklet i through all frames.

    "index" (the paper) keeps the query's index; the other methods are those of :func:`art_kernels.link_tracklets`.
    """
    if method == "index":
        return responses
    order = link_tracklets(responses.detach(), method=method).order
    return responses.gather(2, order[..., None].expand_as(responses))


def aggregate(
    responses: Float[Tensor, "b t k d"],
    semantics: Float[Tensor, "b k d"],
    *,
    temperature: float,
    detach_saliency: bool = False,
) -> Aggregation:
    """Text-guided aggregation over time.

    Args:
        responses: in tracklet order.
        semantics: the K selected ones, in the latent space.
        temperature: τ of the softmax over time.
        detach_saliency: no gradient through the weights.
    """
    aggregated, saliency = pool_tracklets(responses, semantics, temperature=temperature)
    if detach_saliency:
        saliency = saliency.detach()
        aggregated = (saliency[..., None] * responses).sum(1)
    return Aggregation(aggregated, saliency)
