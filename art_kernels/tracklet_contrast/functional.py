"""`mtc_loss`: argument checks, choice of the backend, and registration of the backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from art_kernels._core import backends
from art_kernels._core.autograd import OperatorSpec, loop_over_samples, register_backend
from art_kernels._core.checks import (
    check_choice,
    check_flag,
    check_floating,
    check_mask,
    check_number,
    check_same_device,
    check_sizes,
)
from art_kernels._core.precision import at_least_float32, autocast_as_softmax, without_autocast
from art_kernels.tracklet_contrast import reference
from art_kernels.tracklet_contrast.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_NAME = "mtc_loss"


class MTCLoss(NamedTuple):
    """The terms of the multilevel tracklet contrastive loss, all scalars.

    Attributes:
        spatial: similarity of different tracklets in the same frame.
        temporal: margin minus the similarity of a tracklet in adjacent frames.
        tracklet: similarity of different tracklets over all frames.

    Examples:
        >>> import torch
        >>> from art_kernels import mtc_loss
        >>> loss = mtc_loss(torch.randn(2, 8, 3, 16))
        >>> torch.equal(loss.total, loss.spatial + loss.temporal + loss.tracklet)
        True
    """

    spatial: Tensor
    temporal: Tensor
    tracklet: Tensor

    @property
    def total(self) -> Tensor:
        """The unweighted sum of the three terms."""
        return self.spatial + self.temporal + self.tracklet


def mtc_loss(
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None = None,
    *,
    margin: float = 0.6,
    valid: Bool[Tensor, "b t"] | None = None,
    temporal_form: str = "hinge",
    clamp_repulsion: bool = False,
    tracklet_form: str = "pooled",
    backend: str | None = None,
) -> MTCLoss:
    """Compute the multilevel tracklet contrastive loss of the paper, with the cosine similarity ⟨·,·⟩.

    - spatial: mean over frames and i≠j of ⟨r_ti, r_tj⟩;
    - temporal: mean over k and t<T of max(0, margin - ⟨r_tk, r_t+1,k⟩);
    - tracklet: mean over videos and i≠j of ⟨Tr_i, Tr_j⟩.

    The paper defines the levels, the cosine, the margin and the unweighted sum. The means are our reading (each over
    all valid elements of the batch), as are the defaults of the options marked "choice". A zero vector has cosine 0 and
    gradient 0. An empty mean is 0: with one tracklet there are no pairs, with one frame no adjacent frames.

    Args:
        responses: [B,T,K,C], response of tracklet k in frame t; float16, bfloat16, float32 or float64.
        aggregated: [B,K,C], any of these dtypes: the tracklets Tr as pooled by `pool_tracklets`; None uses their mean
            over time.
        margin: the paper's correlated degree λ, a cosine in -1..1: adjacent responses are attracted up to it.
        valid: [B,T] bool, True where a frame exists. An invalid frame is ignored, even if it contains NaN, and its
            gradient is 0; a pair of frames requires both. None is all True.
        temporal_form: choice: "hinge" as above, or "absolute" for |margin - ⟨·,·⟩|.
        clamp_repulsion: choice: replace negative cosines by 0 in the spatial and the tracklet term.
        tracklet_form: choice: "pooled" compares tracklets pooled over time, "flattened" the concatenations of their T
            responses (`aggregated` must be None).
        backend: "triton", "torch", "reference", or None to choose automatically.

    Returns:
        The three terms and, as `.total`, their sum: scalars in float32 (float64 for float64), also under autocast.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value, or a backend that does not support these tensors.

    Examples:
        >>> import torch
        >>> from art_kernels import mtc_loss
        >>> still = torch.eye(2).expand(1, 4, 2, 2)  # two orthogonal tracklets that never change
        >>> [term.item() for term in mtc_loss(still)]
        [0.0, 0.0, 0.0]
        >>> responses = torch.randn(2, 8, 3, 16, requires_grad=True)
        >>> mtc_loss(responses).total.backward()
        >>> responses.grad.shape
        torch.Size([2, 8, 3, 16])
    """
    check_floating(_NAME, "responses", responses, "[B,T,K,C]")
    batch, frames, count, channels = responses.shape
    if frames == 0:
        raise ValueError(
            f"{_NAME}: responses has shape {list(responses.shape)}, expected [B,T,K,C] with at least one frame"
        )
    if aggregated is not None:
        check_floating(_NAME, "aggregated", aggregated, "[B,K,C]")
        check_sizes(_NAME, "aggregated", aggregated, "[B,K,C]", (batch, count, channels))
        check_same_device(_NAME, "aggregated", aggregated, "responses", responses)
    check_number(_NAME, "margin", margin, low=-1.0, high=1.0)
    if valid is not None:
        check_mask(_NAME, "valid", valid, "[B,T]", (batch, frames), responses.device)
    check_choice(_NAME, "temporal_form", temporal_form, ("hinge", "absolute"))
    check_flag(_NAME, "clamp_repulsion", clamp_repulsion)
    check_choice(_NAME, "tracklet_form", tracklet_form, ("pooled", "flattened"))
    if tracklet_form == "flattened" and aggregated is not None:
        raise ValueError(
            f"{_NAME}: aggregated was passed with tracklet_form='flattened', which compares the responses themselves; "
            "omit aggregated, or use tracklet_form='pooled'"
        )

    responses = autocast_as_softmax(responses)
    if aggregated is not None:
        dtype = torch.promote_types(responses.dtype, aggregated.dtype)
        responses, aggregated = responses.to(dtype), aggregated.to(dtype)
    gradients = torch.is_grad_enabled() and (
        responses.requires_grad or (aggregated is not None and aggregated.requires_grad)
    )
    arguments = Arguments(
        responses, aggregated, valid, float(margin), temporal_form == "absolute", clamp_repulsion,
        tracklet_form == "flattened", gradients,
    )  # fmt: skip
    with without_autocast(responses.device):
        terms, *_ = backends.implementation(_NAME, responses, backend)(*arguments)
    return MTCLoss(*at_least_float32(terms).unbind())


def _reference(
    responses: Tensor, aggregated: Tensor | None, valid: Tensor | None, margin: float, absolute: bool, clamp: bool,
    flattened: bool, gradients: bool,
) -> tuple[Tensor]:  # fmt: skip
    temporal_form, tracklet_form = "absolute" if absolute else "hinge", "flattened" if flattened else "pooled"
    terms = reference.mtc_loss(responses, aggregated, margin, valid, temporal_form, clamp, tracklet_form)
    return (torch.stack(terms),)


def _reference_float32(responses: Tensor, aggregated: Tensor | None, *others: object) -> tuple[Tensor]:
    aggregated = None if aggregated is None else at_least_float32(aggregated)
    return _reference(at_least_float32(responses), aggregated, *others)  # type: ignore[arg-type]


#: The mean of every term is over the batch, so vmap computes one loss per sample.
SPEC = OperatorSpec(
    name=_NAME,
    arguments=Arguments,
    outputs=("terms", "scale", "spatial_grad", "temporal_grad", "tracklet_grad"),
    vmap=loop_over_samples,
    differentiable=("responses", "aggregated"),
    grad_outputs=("terms",),
    reference=_reference_float32,
    prepared=lambda arguments: arguments.gradients,
)
register_backend(SPEC, "triton", "art_kernels.tracklet_contrast.triton")
register_backend(SPEC, "torch", "art_kernels.tracklet_contrast.torch")
backends.register(_NAME, "reference", _reference)
