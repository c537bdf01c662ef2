"""The definition of region attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    scale: float,
    key_position: Float[Tensor, "n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | None = None,
    layer_norm_eps: float | None = None,
) -> tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"]]:
    """softmax(q (x + position)ᵀ scale) x with x the regions, and the softmax itself."""
    values = regions
    if region_mask is not None:
        values = values.masked_fill(~region_mask[:, :, None], 0)  # whatever stands there, even NaN, takes no part
    if layer_norm_eps is not None:
        values = torch.nn.functional.layer_norm(values, values.shape[-1:], eps=layer_norm_eps)
    keys = values if key_position is None else values + key_position
    scores = queries @ keys.mT * scale
    if region_mask is None:
        weights = scores.softmax(-1)
    else:
        masked = ~region_mask[:, None, :]
        # The lowest finite number in place of -inf, then zero: a frame with no region is 0 and not 0/0.
        weights = scores.masked_fill(masked, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(masked, 0)
    return weights @ values, weights
