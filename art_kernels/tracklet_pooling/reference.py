"""The definition of text-guided tracklet pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels._core.precision import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def pool_tracklets(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    temperature: float = 0.01,
    valid: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """Σ_t w_tk r_tk, and the saliency w: over time the softmax of ⟨r_tk, s_j⟩ / temperature, averaged over j."""
    if valid is not None:
        responses = responses.masked_fill(~valid[:, :, None, None], 0)
    scores = torch.einsum("btkc,bjc->btkj", unit_vectors(responses), unit_vectors(semantics)) / temperature
    if valid is None:
        weights = scores.softmax(1)
    else:
        invalid = ~valid[:, :, None, None]
        # The lowest finite number in place of -inf, then zero: a video with no frame is 0 and not 0/0.
        weights = scores.masked_fill(invalid, torch.finfo(scores.dtype).min).softmax(1).masked_fill(invalid, 0)
    saliency = weights.mean(-1)
    return torch.einsum("btk,btkc->bkc", saliency, responses), saliency
