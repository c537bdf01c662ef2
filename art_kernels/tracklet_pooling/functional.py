"""`pool_tracklets`: argument checks, choice of the backend, and registration of the backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from art_kernels._core import backends
from art_kernels._core.autograd import OperatorSpec, merge_batch, register_backend
from art_kernels._core.checks import (
    check_floating,
    check_mask,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sizes,
)
from art_kernels._core.precision import at_least_float32, autocast_as_softmax, without_autocast
from art_kernels.tracklet_pooling import reference, torch
from art_kernels.tracklet_pooling.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_NAME = "pool_tracklets"


def pool_tracklets(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    *,
    temperature: float = 0.01,
    valid: Bool[Tensor, "b t"] | None = None,
    backend: str | None = None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """Pool each tracklet over time, weighted by its similarity to the semantics.

    The saliency w_tk of tracklet k in frame t is the softmax over time of cos(r_tk, s_j) / temperature, averaged over
    the J semantics; the aggregated tracklet is Σ_t w_tk r_tk. The paper defines the similarity, the softmax per
    tracklet and the aggregation over semantics; the temperature and the cosine as the similarity are our reading. A
    zero vector has cosine 0 with every vector.

    Args:
        responses: [B,T,K,C], response of tracklet k in frame t; float16, bfloat16, float32 or float64.
        semantics: [B,J,C], in the same dtype; J at least 1.
        temperature: positive; a smaller temperature concentrates the weight on the most similar frames.
        valid: [B,T] bool, True where a frame exists, for clips of different lengths. An invalid frame has saliency 0
            and gradient 0, even if it contains NaN; a video without valid frames returns zeros. None is all True.
        backend: "triton", "torch", "reference", or None to choose automatically.

    Returns:
        The aggregated tracklets [B,K,C] and the saliency [B,T,K], which sums to 1 over T. Both are computed in float32
        (float64 for float64) and returned in the dtype of the inputs; under autocast they are float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value, or a backend that does not support these tensors.

    Examples:
        >>> import torch
        >>> from art_kernels import pool_tracklets
        >>> responses, semantics = torch.randn(2, 8, 3, 16), torch.randn(2, 3, 16)
        >>> aggregated, saliency = pool_tracklets(responses, semantics, temperature=0.1)
        >>> aggregated.shape, saliency.shape
        (torch.Size([2, 3, 16]), torch.Size([2, 8, 3]))
        >>> torch.allclose(saliency.sum(1), torch.ones(2, 3))
        True
    """
    check_floating(_NAME, "responses", responses, "[B,T,K,C]")
    check_floating(_NAME, "semantics", semantics, "[B,J,C]")
    batch, frames, _, channels = responses.shape
    check_sizes(_NAME, "semantics", semantics, "[B,J,C]", (batch, semantics.shape[1], channels))
    check_same_device(_NAME, "semantics", semantics, "responses", responses)
    if frames == 0:
        raise ValueError(
            f"{_NAME}: responses has shape {list(responses.shape)}, expected [B,T,K,C] with at least one frame"
        )
    if semantics.shape[1] == 0:
        raise ValueError(
            f"{_NAME}: semantics has shape {list(semantics.shape)}, expected [B,J,C] with at least one semantic"
        )
    check_number(_NAME, "temperature", temperature, low=0.0, low_is_open=True)
    if valid is not None:
        check_mask(_NAME, "valid", valid, "[B,T]", (batch, frames), responses.device)

    responses, semantics = autocast_as_softmax(responses), autocast_as_softmax(semantics)
    check_same_dtype(_NAME, "semantics", semantics, "responses", responses)
    run = backends.implementation(_NAME, semantics, backend)  # depends on the number of semantics
    with without_autocast(responses.device):
        aggregated, saliency = run(responses, semantics, temperature, valid)
    return aggregated.to(responses.dtype), saliency.to(responses.dtype)


def _reference_float32(
    responses: Tensor, semantics: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, ...]:
    inputs = at_least_float32(responses), at_least_float32(semantics)
    return tuple(output.to(responses.dtype) for output in reference.pool_tracklets(*inputs, temperature, valid))


SPEC = OperatorSpec(
    name=_NAME,
    arguments=Arguments,
    outputs=("aggregated", "saliency"),
    vmap=merge_batch,
    differentiable=("responses", "semantics"),
    grad_outputs=("aggregated", "saliency"),
    reference=_reference_float32,
)
register_backend(SPEC, "triton", "art_kernels.tracklet_pooling.triton")
backends.register(_NAME, "torch", torch.pool_tracklets)
backends.register(_NAME, "reference", reference.pool_tracklets)
