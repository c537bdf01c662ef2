"""`link_tracklets` and `gather_tracklets`: the public operations, their checks and the choice of backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from art_kernels import backends
from art_kernels.checks import check_choice, check_floating, check_ids, check_number
from art_kernels.precision import autocast_as_softmax, without_autocast
from art_kernels.tracklet_linking import extension, native, reference, registration

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

_NAME = "link_tracklets"


class TrackletLinks(NamedTuple):
    """Which response of each frame continues which tracklet. Slot k is the k-th row of links through the video.

    Attributes:
        order: [B,T,K] int64; order[b,t,k] is the index of the response of frame t that stands in slot k.
        similarity: [B,T-1,K], the cosine of the responses of slot k in frames t and t+1; differentiable.
        tracklet_id: [B,T,K] int64, the tracklet that slot k belongs to in frame t. The first frame has 0 to K-1;
            every tracklet born later takes the next number of its video, counted frame by frame and slot by slot.

    Examples:
        >>> import torch
        >>> from art_kernels import link_tracklets
        >>> links = link_tracklets(torch.eye(2)[None, [0, 1], None].expand(1, 2, 1, 2), min_similarity=0.5)
        >>> links.similarity.tolist()  # two vectors at a right angle: the tracklet ends, another begins
        [[[0.0]]]
        >>> links.tracklet_id.flatten().tolist()
        [0, 1]
    """

    order: Tensor
    similarity: Tensor
    tracklet_id: Tensor


def _native(responses: Tensor, method: str, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    if method != "index":
        similarity, order, tracklet_id = registration.link(responses, method == "greedy", min_similarity)
        return order, similarity, tracklet_id
    order, similarity = native.link_by_index(responses)
    return order, similarity, reference.tracklet_ids(order, similarity, min_similarity)


def _definition(responses: Tensor, method: str, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    order, similarity = reference.link_tracklets(responses, method)
    return order, similarity, reference.tracklet_ids(order, similarity, min_similarity)


backends.register(_NAME, "native", _native)
backends.register(_NAME, "reference", _definition)


def link_tracklets(
    responses: Float[Tensor, "b t k c"],
    *,
    method: str = "optimal",
    min_similarity: float | None = None,
    backend: str | None = None,
) -> TrackletLinks:
    """Link the responses of adjacent frames to tracklets.

    The paper's tracklet k is what query k answers in each frame. A query that turns to another region then takes its
    tracklet along; linking by similarity keeps the tracklet on its region (ours, not the paper's).

    Args:
        responses: [B,T,K,C], response k in frame t, K up to 256; float16, bfloat16, float32 or float64.
        method: how the responses of a frame are matched to those of the next, one to one. "optimal": the greatest sum
            of cosines; "greedy": the greatest cosine first, then the greatest of what is left; "index", the paper's: a
            query's responses through the frames are one tracklet. A cosine that is NaN counts as below every other.
        min_similarity: a cosine, in -1..1: where the similarity of a link is below it (or NaN), the tracklet ends and
            a new one is born in its slot. None never ends one. It is compared before the similarity is rounded to the
            dtype of the responses. Ours, not the paper's.
        backend: "triton", "native", "reference", or None to choose (`art_kernels.backends`). The reference lists all
            matchings, of at most 8 responses a frame.

    Returns:
        `TrackletLinks`. The similarity is computed in float32 (float64 for float64) and has the dtype of `responses`;
        under autocast it is float32. A zero vector has similarity 0, with gradient 0. The order has no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value, or a backend that cannot serve this tensor.

    Examples:
        >>> import torch
        >>> from art_kernels import link_tracklets
        >>> one, other = torch.eye(2)
        >>> responses = torch.stack([torch.stack([one, other]), torch.stack([other, one])])[None]
        >>> responses.shape  # the two queries change regions from the first frame to the second
        torch.Size([1, 2, 2, 2])
        >>> link_tracklets(responses).order.tolist()
        [[[0, 1], [1, 0]]]
        >>> link_tracklets(responses, method="index").order.tolist()
        [[[0, 1], [0, 1]]]
    """
    check_floating(_NAME, "responses", responses, "[B,T,K,C]")
    if responses.shape[1] == 0:
        raise ValueError(
            f"{_NAME}: responses has shape {list(responses.shape)}, expected [B,T,K,C] with at least one frame"
        )
    check_choice(_NAME, "method", method, reference.METHODS)
    if min_similarity is not None:
        check_number(_NAME, "min_similarity", min_similarity, low=-1.0, high=1.0)
    chosen = backends.choose(_NAME, responses, backend)
    if method != "index":
        _check_matching(responses, method, chosen)

    responses = autocast_as_softmax(responses)
    run: Any = backends.implementation(_NAME, responses, backend)
    with without_autocast(responses.device):
        order, similarity, tracklet_id = run(responses, method, min_similarity)
    return TrackletLinks(order, similarity.to(responses.dtype), tracklet_id)


def _check_matching(responses: Tensor, method: str, backend: str) -> None:
    """That a backend can match so many responses on this device."""
    count = responses.shape[2]
    most = reference.MAX_SIZE if backend == "reference" else extension.MAX_SIZE
    if count > most:
        raise ValueError(
            f"{_NAME}: responses has {count} responses a frame, expected at most {most} with method={method!r} and "
            f"backend {backend!r}; method='index' takes any number"
        )
    reason = extension.refusal(responses) if backend == "native" else None
    if reason is not None:
        raise ValueError(f"{_NAME}: method={method!r} cannot serve a tensor on {responses.device}: {reason}")


def gather_tracklets(values: Shaped[Tensor, "b t k *rest"], order: Int[Tensor, "b t k"]) -> Shaped[Tensor, "..."]:
    """What belongs to the responses, in tracklet order: result[b,t,k] is values[b,t,order[b,t,k]].

    Args:
        values: [B,T,K,...], of any dtype: the responses themselves, their response maps, boxes; carries gradients.
        order: [B,T,K] int64, that of `TrackletLinks`.

    Returns:
        A tensor like `values`: `[:, :, k]` is what stands in slot k in every frame.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: fewer than three dimensions, or sizes or devices that differ.

    Examples:
        >>> import torch
        >>> from art_kernels import gather_tracklets
        >>> values = torch.tensor([[[10, 20], [30, 40]]])
        >>> order = torch.tensor([[[0, 1], [1, 0]]])
        >>> gather_tracklets(values, order).tolist()
        [[[10, 20], [40, 30]]]
    """
    name = "gather_tracklets"
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: values is of type {type(values).__name__}, expected a torch.Tensor [B,T,K,...]")
    if values.dim() < 3:
        raise ValueError(f"{name}: values has shape {list(values.shape)}, expected [B,T,K,...]; add the missing ones")
    check_ids(name, "order", order, "[B,T,K]", values.shape[:3], values.device)
    index = order.view(*order.shape, *(1,) * (values.dim() - 3)).expand_as(values)
    return torch.gather(values, 2, index)
