"""Tracklets: following each query's response through the frames, and what a tracklet says as a whole."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from art_kernels import gather_tracklets, link_tracklets, pool_tracklets


class Linked(NamedTuple):
    """Responses in tracklet order: ``[:, :, i]`` is tracklet i in every frame.

    Attributes:
        responses: ``[B, T, K, d]``.
        maps: ``[B, T, K, N]``, where there are any.
        order: ``[B, T, K]``, the index of the query whose response stands there.
    """

    responses: Float[Tensor, "b t k d"]
    maps: Float[Tensor, "b t k n"] | None
    order: Int[Tensor, "b t k"]


class Aggregation(NamedTuple):
    """Tracklets weighted over time by what the text asks for.

    Attributes:
        aggregated: ``[B, K, d]``, Tr_k = Σ_t w_tk r_tk.
        saliency: ``[B, T, K]``, w; sums to 1 over T.
    """

    aggregated: Float[Tensor, "b k d"]
    saliency: Float[Tensor, "b t k"]


def link(responses: Float[Tensor, "b t k d"], maps: Float[Tensor, "b t k n"] | None, method: str) -> Linked:
    """Responses by query, and their maps where there are any, put into tracklet order.

    ``method`` is one of :func:`art_kernels.link_tracklets`; "index", the paper's, keeps the index of the query.
    """
    order = link_tracklets(responses.detach(), method=method).order
    return Linked(gather_tracklets(responses, order), None if maps is None else gather_tracklets(maps, order), order)


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
