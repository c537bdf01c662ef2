"""Arguments of region attention, and its reference implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from art_kernels._core.precision import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


class Arguments(NamedTuple):
    """Validated arguments of every backend; see `region_attention` for their meaning."""

    queries: Float[Tensor, "f m c"]
    regions: Float[Tensor, "f n c"]
    key_position: Float[Tensor, "n c"] | Float[Tensor, "f n c"] | None
    region_mask: Bool[Tensor, "f n"] | None
    scale: float
    layer_norm_eps: float | None
    return_map: bool
    #: [F,R,N], where R divides M and row m uses row m % R: bool (True where the pair may be attended) or floating
    #: (added to the scaled scores, -inf where it may not).
    attn_mask: Tensor | None = None


def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    key_position: Float[Tensor, "n c"] | Float[Tensor, "f n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | None = None,
    scale: float = 1.0,
    layer_norm_eps: float | None = None,
    return_map: bool = True,
    attn_mask: Tensor | None = None,
) -> tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"] | None]:
    """Compute softmax(q (x + position)ᵀ scale) x, with x the regions, and the softmax itself if requested.

    16-bit inputs are computed in float32 and the results rounded.
    """
    dtype = queries.dtype
    queries, values = at_least_float32(queries), at_least_float32(regions)
    if region_mask is not None:
        values = values.masked_fill(~region_mask[:, :, None], 0)  # masked regions may contain NaN
    if layer_norm_eps is not None:
        values = torch.nn.functional.layer_norm(values, values.shape[-1:], eps=layer_norm_eps)
    scores = queries @ add_position(values, key_position, region_mask).transpose(1, 2) * scale
    if attn_mask is not None and attn_mask.shape[1] not in (1, queries.shape[1]):
        attn_mask = attn_mask.repeat(1, queries.shape[1] // attn_mask.shape[1], 1)
    mask = None if region_mask is None else region_mask[:, None, :]
    weights = masked_softmax(scores, mask, attn_mask).to(values.dtype)
    return (weights @ values).to(dtype), weights.to(dtype) if return_map else None


def add_position(values: Tensor, key_position: Tensor | None, region_mask: Tensor | None) -> Tensor:
    """Return the keys: values plus positions, of which those of masked regions may contain NaN."""
    if key_position is None:
        return values
    if region_mask is not None and key_position.dim() == 3:
        key_position = key_position.masked_fill(~region_mask[:, :, None], 0)
    return values + key_position


def masked_softmax(scores: Float[Tensor, "... m n"], *masks: Tensor | None) -> Float[Tensor, "... m n"]:
    """Compute the softmax over the pairs that may be attended; other weights, and rows without any, are 0.

    Each mask is broadcast to `scores`: bool (True where the pair may be attended) or floating (added to the scores,
    -inf where it may not).
    """
    masked = None
    for mask in masks:
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            hidden = ~mask
        else:
            hidden = mask.isneginf()
            scores = scores + mask
        masked = hidden if masked is None else masked | hidden
    if masked is None:
        return scores.softmax(-1)
    # A row without regions has equal scores, whose weights are then set to 0: neither 0/0 nor inf - inf occurs.
    scores = scores.masked_fill(masked, -torch.inf).masked_fill(masked.all(-1, keepdim=True), 0)
    return scores.softmax(-1).masked_fill(masked, 0)


def mask_gradient(grad_pairs: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """Sum the gradients of the scores [F,M,N] over the rows that share a row of the additive mask."""
    if grad_pairs is None or attn_mask is None:
        return None
    rows = attn_mask.shape[1]
    if rows != grad_pairs.shape[1]:
        grad_pairs = grad_pairs.unflatten(1, (-1, rows)).sum(1)
    return grad_pairs.to(attn_mask.dtype)
