"""Arguments of region attention, and its reference implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Arguments(NamedTuple):
    """Validated arguments of every backend; see `region_attention` for their meaning."""

    queries: Float[Tensor, "f m c"]
    regions: Float[Tensor, "f n c"]
    key_position: Float[Tensor, "n c"] | None
    region_mask: Bool[Tensor, "f n"] | None
    scale: float
    layer_norm_eps: float | None
    return_map: bool


def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    key_position: Float[Tensor, "n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | None = None,
    scale: float = 1.0,
    layer_norm_eps: float | None = None,
    return_map: bool = True,
) -> tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"] | None]:
    """Compute softmax(q (x + position)ᵀ scale) x, with x the regions, and the softmax itself if requested."""
    values = regions
    if region_mask is not None:
        values = values.masked_fill(~region_mask[:, :, None], 0)  # masked regions may contain NaN
    if layer_norm_eps is not None:
        values = torch.nn.functional.layer_norm(values, values.shape[-1:], eps=layer_norm_eps)
    keys = values if key_position is None else values + key_position
    scores = queries @ keys.mT * scale
    if region_mask is None:
        weights = scores.softmax(-1)
    else:
        masked = ~region_mask[:, None, :]
        # The lowest finite number instead of -inf, then zero, so that a fully masked frame is 0 and not 0/0.
        weights = scores.masked_fill(masked, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(masked, 0)
    return weights @ values, weights if return_map else None
