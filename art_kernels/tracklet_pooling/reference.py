"""Reference implementation of text-guided tracklet pooling, and the arguments of all backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from art_kernels._core.precision import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Arguments(NamedTuple):
    """Arguments of every backend; see `art_kernels.pool_tracklets`."""

    responses: Float[Tensor, "b t k c"]
    semantics: Float[Tensor, "b j c"]
    temperature: float
    valid: Bool[Tensor, "b t"] | None


def pool_tracklets(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    temperature: float = 0.01,
    valid: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """Return Σ_t w_tk r_tk, and the saliency w: the softmax over time of ⟨r_tk, s_j⟩ / temperature, averaged over j."""
    if valid is not None:
        responses = responses.masked_fill(~valid[:, :, None, None], 0)
    scores = torch.einsum("btkc,bjc->btkj", unit_vectors(responses), unit_vectors(semantics)) / temperature
    saliency = softmax_over_time(scores, valid).mean(-1)
    return torch.einsum("btk,btkc->bkc", saliency, responses), saliency


def softmax_over_time(scores: Float[Tensor, "b t k j"], valid: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b t k j"]:
    """Return the softmax of the scores over valid frames; 0 in invalid frames, and in a video without valid ones."""
    if valid is None:
        return scores.softmax(1)
    invalid = ~valid[:, :, None, None]
    # The smallest finite number instead of -inf, then zero: without valid frames the result is 0, not 0/0.
    return scores.masked_fill(invalid, torch.finfo(scores.dtype).min).softmax(1).masked_fill(invalid, 0)
