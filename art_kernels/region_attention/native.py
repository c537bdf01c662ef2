"""Region attention in PyTorch's own operators, some frames and rows at a time.

A block of frames and rows is small enough that what is made of it (normalised regions, keys, scores) stays in the
processor's cache and is never the size of the inputs; no map is kept for the backward pass, which takes the weights
from the scores again. Within a block the regions are read where they lie, and the two parts
of their gradient, dSᵀ q + Pᵀ dO, are one product with both stacked, written in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_kernels._core.precision import accumulation_dtype, at_least_float32
from art_kernels.region_attention.passes import Forward, Gradients

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: Bytes of regions and scores in a block: on a CPU about what its caches hold, on a GPU enough to fill it.
BLOCK_BYTES = {"cpu": 12 << 20, "cuda": 256 << 20}


def forward(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    key_position: Float[Tensor, "n c"] | None,
    region_mask: Bool[Tensor, "f n"] | None,
    scale: float,
    layer_norm_eps: float | None,
    return_map: bool,
) -> Forward:
    """Output and map; the arguments are checked already."""
    frames, rows, _ = queries.shape
    count = regions.shape[1]
    output = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    weights = torch.empty((frames, rows, count) if return_map else (0,), dtype=queries.dtype, device=queries.device)
    for of_frames, row_blocks in _blocks(queries, regions):
        mask = None if region_mask is None else region_mask[of_frames]
        values, _, _ = _values(regions[of_frames], mask, layer_norm_eps)
        keys = values if key_position is None else values + key_position
        for of_rows in row_blocks:
            at = (of_frames, of_rows)
            block = _softmax(_scores(queries[at], keys, scale), mask).to(values.dtype)
            output[at] = torch.bmm(block, values)
            if return_map:
                weights[at] = block
        del values, keys  # or they would be there beside those of the next frames
    return Forward(output, torch.empty(0, dtype=torch.float32, device=queries.device), weights)


def backward(
    grad_output: Float[Tensor, "f m c"],
    grad_map: Float[Tensor, "f m n"] | None,
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    key_position: Float[Tensor, "n c"] | None,
    region_mask: Bool[Tensor, "f n"] | None,
    saved: Forward,
    scale: float,
    layer_norm_eps: float | None,
    needs_regions: bool,
    needs_position: bool,
) -> Gradients:
    """The gradients, each in the dtype of what it is of."""
    grad_queries = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    grad_regions = None
    if needs_regions:
        grad_regions = torch.empty(regions.shape, dtype=regions.dtype, device=regions.device)
        if queries.shape[1] == 0:
            grad_regions.zero_()
    wide = accumulation_dtype(queries.dtype)
    grad_position = regions.new_zeros(regions.shape[1:], dtype=wide) if needs_position else None
    for of_frames, row_blocks in _blocks(queries, regions):
        mask = None if region_mask is None else region_mask[of_frames]
        values, mean, rstd = _values(regions[of_frames], mask, layer_norm_eps)
        keys = values if key_position is None else values + key_position
        for index, of_rows in enumerate(row_blocks):
            at = (of_frames, of_rows)
            q, do = queries[at], grad_output[at]
            weights = _softmax(_scores(q, keys, scale), mask)
            grad_scores = at_least_float32(torch.bmm(do, values.mT))  # of the weights; through the softmax in place
            if grad_map is not None:
                grad_scores.add_(grad_map[at])
            inner = (grad_scores * weights).sum(-1, keepdim=True)
            grad_scores = grad_scores.sub_(inner).mul_(weights).mul_(scale).to(values.dtype)  # of q · key
            grad_queries[at] = torch.bmm(grad_scores, keys)
            if grad_position is not None:
                grad_position += grad_scores.flatten(0, 1).mT @ q.flatten(0, 1)
            if grad_regions is not None:
                left = torch.cat([grad_scores, weights.to(values.dtype)], 1)  # [frames, 2 rows, N]
                del grad_scores, weights
                both = torch.cat([q, do], 1)  # [frames, 2 rows, C]
                grad_values = grad_regions[of_frames]
                torch.baddbmm(grad_values, left.mT, both, beta=min(index, 1), out=grad_values)
                del left, both
        del values, keys  # the gradient of the normalisation takes as much
        if grad_regions is not None and layer_norm_eps is not None:
            grad_regions[of_frames] = torch.ops.aten.native_layer_norm_backward(
                grad_regions[of_frames], _unmasked(regions[of_frames], mask), regions.shape[-1:], mean, rstd,
                None, None, [True, False, False],
            )[0]  # fmt: skip
        if grad_regions is not None and mask is not None:
            grad_regions[of_frames].masked_fill_(~mask[:, :, None], 0)
    if grad_position is not None:
        grad_position = grad_position.to(regions.dtype)
    return Gradients(grad_queries, grad_regions, grad_position)


def _blocks(queries: Tensor, regions: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Slices of frames, and for each the slices of rows, so that a block's regions and scores stay within the bound."""
    frames, rows, channels = queries.shape
    count, size = regions.shape[1], queries.element_size()
    if frames == 0:
        return
    bound = BLOCK_BYTES.get(queries.device.type, BLOCK_BYTES["cuda"])
    some_rows = min(rows, max(16, channels))  # the scores of so many rows are no larger than the regions themselves
    a_frame = count * (channels * size + some_rows * 4)
    at_once = max(1, bound // max(1, a_frame))
    if at_once > 1 and frames > at_once:
        at_once = math.ceil(frames / math.ceil(frames / at_once))  # blocks of one size
    row_blocks = [slice(start, start + some_rows) for start in range(0, rows, max(1, some_rows))]
    for start in range(0, frames, at_once):
        yield slice(start, start + at_once), row_blocks


def _values(
    regions: Tensor, mask: Tensor | None, layer_norm_eps: float | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the weights are applied to, and mean and 1 / deviation of each region where it is normalised."""
    regions = _unmasked(regions, mask)
    if layer_norm_eps is None:
        return regions, None, None
    return torch.native_layer_norm(regions, regions.shape[-1:], None, None, layer_norm_eps)


def _unmasked(regions: Tensor, mask: Tensor | None) -> Tensor:
    """Masked regions as zeros: a weight of zero would not silence NaN or inf."""
    return regions if mask is None else regions.masked_fill(~mask[:, :, None], 0)


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """q keyᵀ scale, in at least float32."""
    if queries.dtype == torch.float16:
        # The scale goes into the product, where the accumulator is wide: a float16 product could overflow before it.
        return torch.baddbmm(queries.new_empty(1, 1, 1), queries, keys.mT, beta=0, alpha=scale).float()
    return at_least_float32(torch.bmm(queries, keys.mT)).mul_(scale)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The weights: zero where masked."""
    if mask is None:
        return scores.softmax(-1)
    # The lowest finite number in place of -inf, then zero: a frame with no region is 0 and not 0/0.
    masked = ~mask[:, None, :]
    return scores.masked_fill(masked, torch.finfo(scores.dtype).min).softmax(-1).masked_fill_(masked, 0)
