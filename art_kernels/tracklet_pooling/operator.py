"""`pool_tracklets`: the public operation, its checks and its choice of backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from art_kernels._core import backends
from art_kernels._core.checks import (
    check_floating,
    check_mask,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sizes,
)
from art_kernels._core.precision import autocast_as_softmax, without_autocast
from art_kernels.tracklet_pooling import native, reference

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_NAME = "pool_tracklets"

backends.register(_NAME, "torch", native.pool_tracklets)
backends.register(_NAME, "reference", reference.pool_tracklets)
try:
    from art_kernels.tracklet_pooling import launch
    from art_kernels.tracklet_pooling.registration import pool_tracklets_forward
except ImportError as error:
    backends.register_missing(_NAME, "triton", f"triton cannot be imported: {error}")
else:
    backends.register(_NAME, "triton", pool_tracklets_forward, launch.unsupported_reason, opt_in=launch.opt_in)


def pool_tracklets(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    *,
    temperature: float = 0.01,
    valid: Bool[Tensor, "b t"] | None = None,
    backend: str | None = None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """Weigh the frames of each tracklet by their likeness to the semantics, and sum.

    For tracklet k and semantic s_j the softmax over time of cos(r_tk, s_j) / temperature, averaged over the J
    semantics, is the saliency w_tk; the aggregated tracklet is Σ_t w_tk r_tk. The paper gives the similarity, the
    softmax per tracklet and the aggregation over semantics; the temperature, and the cosine as the similarity, are
    our reading. A zero vector has cosine 0 with everything.

    Args:
        responses: [B,T,K,C], response of tracklet k in frame t; float16, bfloat16, float32 or float64.
        semantics: [B,J,C], in the same dtype; J at least 1.
        temperature: positive; the smaller, the more the best frames count.
        valid: [B,T] bool, True where a frame exists, for clips of different length. An invalid frame has saliency 0
            and gradient 0, whatever it holds; a video without a valid frame gives zeros. None is all True.
        backend: "triton", "torch", "reference", or None to choose (`art_kernels._core.backends`).

    Returns:
        The aggregated tracklets [B,K,C] and the saliency [B,T,K], which sums to 1 over T. Both are computed in float32
        (float64 for float64) and have the dtype of the inputs; under autocast they are float32, as a softmax is.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value, or a backend that cannot serve these tensors.

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
    run = backends.implementation(_NAME, semantics, backend)  # the number of semantics decides too
    with without_autocast(responses.device):
        aggregated, saliency = run(responses, semantics, temperature, valid)
    return aggregated.to(responses.dtype), saliency.to(responses.dtype)
