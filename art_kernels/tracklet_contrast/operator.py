"""`mtc_loss`: the public operation, its checks and its choice of backend."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from art_kernels._core import backends
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
from art_kernels.tracklet_contrast import native
from art_kernels.tracklet_contrast.passes import Options
from art_kernels.tracklet_contrast.registration import definition, mtc_loss_forward, passes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_NAME = "mtc_loss"


def _fused(
    responses: Tensor, aggregated: Tensor | None, valid: Tensor | None, options: Options, *, backend: str
) -> tuple[Tensor, ...]:
    gradients = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (responses, aggregated)
    )
    terms, *_ = mtc_loss_forward(responses, aggregated, valid, *options, gradients, backend)
    return terms.unbind()


passes["torch"] = native
backends.register(_NAME, "torch", functools.partial(_fused, backend="torch"))
backends.register(_NAME, "reference", definition)
try:
    from art_kernels.tracklet_contrast import launch
except ImportError as error:
    backends.register_missing(_NAME, "triton", f"triton cannot be imported: {error}")
else:
    passes["triton"] = launch
    backends.register(
        _NAME, "triton", functools.partial(_fused, backend="triton"), launch.unsupported_reason, opt_in=launch.opt_in
    )


class MTCLoss(NamedTuple):
    """The terms of the multilevel tracklet contrastive loss, each a scalar.

    Attributes:
        spatial: similarity of the regions of one frame, to be repelled.
        temporal: shortfall of similarity of a tracklet in adjacent frames, to be attracted.
        tracklet: similarity of whole tracklets, to be repelled.

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
        """The plain sum of the three terms."""
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
    """The multilevel tracklet contrastive loss of the paper, with ⟨·,·⟩ the cosine similarity.

    - spatial: mean over frames and i≠j of ⟨r_ti, r_tj⟩;
    - temporal: mean over k and t<T of max(0, margin - ⟨r_tk, r_t+1,k⟩);
    - tracklet: mean over videos and i≠j of ⟨Tr_i, Tr_j⟩.

    The paper gives the levels, the cosine, the margin and the plain sum. The means are our reading (each over all
    that takes part in the batch), and so are the defaults of the options marked "choice". A zero vector has cosine 0
    and gradient 0. A mean over nothing is 0: one tracklet has no pair to repel, one frame no step, an empty batch
    neither.

    Args:
        responses: [B,T,K,C], response of tracklet k in frame t; float16, bfloat16, float32 or float64.
        aggregated: [B,K,C], any of these dtypes: the tracklets Tr as pooled by `pool_tracklets`; None is their mean
            over time.
        margin: the paper's correlated degree λ, a cosine, in -1..1: adjacent responses are attracted up to it.
        valid: [B,T] bool, True where a frame exists. An invalid frame takes no part in any term, whatever it holds,
            and a pair of frames needs both; its gradient is 0. None is all True.
        temporal_form: choice: "hinge" as above, or "absolute" for |margin - ⟨·,·⟩|.
        clamp_repulsion: choice: replace negative cosines by 0 in the spatial and the tracklet term.
        tracklet_form: choice: "pooled" compares tracklets pooled over time, "flattened" the concatenations of their T
            responses (then `aggregated` has no place, and must be None).
        backend: "triton", "torch", "reference", or None to choose (`art_kernels._core.backends`).

    Returns:
        The three terms and, as `.total`, their sum: scalars in float32 (float64 for float64), also under autocast.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value, or a backend that cannot serve these tensors.

    Examples:
        >>> import torch
        >>> from art_kernels import mtc_loss
        >>> still = torch.eye(2).expand(1, 4, 2, 2)  # two tracklets at a right angle that never change
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
            f"{_NAME}: aggregated is given with tracklet_form='flattened', which compares the responses themselves; "
            "leave out aggregated, or choose tracklet_form='pooled'"
        )

    responses = autocast_as_softmax(responses)
    if aggregated is not None:
        dtype = torch.promote_types(responses.dtype, aggregated.dtype)
        responses, aggregated = responses.to(dtype), aggregated.to(dtype)
    options = Options(float(margin), temporal_form == "absolute", clamp_repulsion, tracklet_form == "flattened")
    run = backends.implementation(_NAME, responses, backend)
    with without_autocast(responses.device):
        terms = run(responses, aggregated, valid, options)
    spatial, temporal, tracklet = (at_least_float32(term) for term in terms)
    return MTCLoss(spatial, temporal, tracklet)
