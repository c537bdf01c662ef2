"""`link_tracklets`: the public operation, its checks and its choice of backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from art_kernels import backends
from art_kernels.checks import check_floating, check_number
from art_kernels.precision import autocast_as_softmax, without_autocast
from art_kernels.tracklet_linking import native, reference

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_NAME = "link_tracklets"

AVAILABLE_METHODS = ("index",)
_ANNOUNCED_METHODS = ("greedy", "optimal")

backends.register(_NAME, "native", native.link_by_index)
backends.register(_NAME, "reference", reference.link_by_index)


class TrackletLinks(NamedTuple):
    """Which response of each frame continues which tracklet. Slot k is the k-th row of links through the video.

    Attributes:
        order: [B,T,K] int64; order[b,t,k] is the index of the response of frame t that stands in slot k.
        similarity: [B,T-1,K], the cosine of the responses of slot k in frames t and t+1; differentiable.
        tracklet_id: [B,T,K] int64, the tracklet that slot k belongs to in frame t. The first frame has 0 to K-1;
            every tracklet born later takes the next number of its video, counted frame by frame and slot by slot.
    """

    order: Tensor
    similarity: Tensor
    tracklet_id: Tensor


def link_tracklets(
    responses: Float[Tensor, "b t k c"],
    *,
    method: str = "index",
    min_similarity: float | None = None,
    backend: str | None = None,
) -> TrackletLinks:
    """Link the responses of adjacent frames to tracklets.

    Args:
        responses: [B,T,K,C], response k in frame t; float16, bfloat16, float32 or float64.
        method: "index", the paper's: a query's responses through the frames are one tracklet.
        min_similarity: a cosine, in -1..1: where the similarity of a link is below it (or NaN), the tracklet ends and
            a new one is born in its slot. None never ends one. Ours, not the paper's.
        backend: "triton", "native", "reference", or None to choose (`art_kernels.backends`).

    Returns:
        `TrackletLinks`. The similarity is computed in float32 (float64 for float64) and has the dtype of `responses`;
        under autocast it is float32. A zero vector has similarity 0, with gradient 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value, a method that this release lacks ("greedy", "optimal"),
            or a backend that cannot serve this tensor.
    """
    check_floating(_NAME, "responses", responses, "[B,T,K,C]")
    if responses.shape[1] == 0:
        raise ValueError(
            f"{_NAME}: responses has shape {list(responses.shape)}, expected [B,T,K,C] with at least one frame"
        )
    if method not in AVAILABLE_METHODS:
        known = "is not available in this release" if method in _ANNOUNCED_METHODS else "is not a method"
        raise ValueError(
            f"{_NAME}: method {method!r} {known}, expected one of {', '.join(map(repr, AVAILABLE_METHODS))}; "
            "method='index' keeps each query's responses together"
        )
    if min_similarity is not None:
        check_number(_NAME, "min_similarity", min_similarity, low=-1.0, high=1.0)

    responses = autocast_as_softmax(responses)
    run = backends.implementation(_NAME, responses, backend)
    with without_autocast(responses.device):
        order, similarity = run(responses)
    similarity = similarity.to(responses.dtype)
    return TrackletLinks(order, similarity, _tracklet_ids(order, similarity, min_similarity))


def _tracklet_ids(
    order: Int[Tensor, "b t k"], similarity: Float[Tensor, "b t-1 k"], min_similarity: float | None
) -> Int[Tensor, "b t k"]:
    """Number the births in each video, then let each slot carry the number of its latest birth."""
    if min_similarity is None:
        return torch.arange(order.shape[2], device=order.device).expand(order.shape).contiguous()
    ended = ~(similarity >= min_similarity)  # written so that NaN ends a tracklet
    born = torch.cat([ended.new_ones(order[:, :1].shape), ended], 1)  # [B, T, K]
    number = born.flatten(1).cumsum(1).view(born.shape) - 1
    # Numbers grow with time, so that the largest up to frame t is the latest.
    return number.masked_fill(~born, -1).cummax(1).values
