"""Region attention with PyTorch operators, processing blocks of frames and rows.

A block is small enough that its intermediate tensors (normalized regions, keys, scores) stay in cache and never reach
the size of the inputs. The map is not saved for the backward pass, which recomputes the weights. Within a block, the
regions are read in place, and the two terms of their gradient, dSᵀ q + Pᵀ dO, are one product of concatenated factors,
written directly into the gradient.

In 16 bits, the error is that of `F.scaled_dot_product_attention`: scores and the gradients of the weights are float32,
because large ones lose their differences in 16 bits, and so are sums over blocks of rows; weights and the gradients of
scores are rounded before the products that they are factors of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from art_kernels._core.precision import accumulation_dtype, at_least_float32
from art_kernels.region_attention.reference import Arguments, add_position, mask_gradient, masked_softmax

#: Maximum bytes of regions and scores in a block: about the cache size on a CPU, enough to fill the device on a GPU.
BLOCK_BYTES = {"cpu": 12 << 20, "cuda": 256 << 20}


def forward(*fields: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return output [F,M,C], no softmax statistics, and the map [F,M,N], without elements if it was not requested."""
    arguments = Arguments(*fields)
    queries, regions, _, region_mask, scale, layer_norm_eps, return_map, attn_mask = arguments
    output, softmax, weights = fake(arguments)
    for frames, row_blocks in _blocks(queries, regions):
        mask = None if region_mask is None else region_mask[frames]
        frame_mask = None if mask is None else mask[:, None, :]
        values, _, _ = _normalize(regions[frames], mask, layer_norm_eps)
        values, wide = _factors(values)
        keys = add_position(wide, _position_of(arguments, frames), mask)
        for rows in row_blocks:
            scores = _scores(queries[frames, rows], keys).mul_(scale)
            block = masked_softmax(scores, frame_mask, _mask_rows(attn_mask, frames, rows))
            if return_map:
                weights[frames, rows] = block
            output[frames, rows] = torch.bmm(block.to(values.dtype), values)
        del values, wide, keys  # free the memory before the next block allocates its own
    return output, softmax, weights


def fake(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialized outputs of :func:`forward`."""
    queries = arguments.queries
    frames, rows, _ = queries.shape
    return (
        torch.empty(queries.shape, dtype=queries.dtype, device=queries.device),
        torch.empty(0, dtype=torch.float32, device=queries.device),
        queries.new_empty((frames, rows, arguments.regions.shape[1]) if arguments.return_map else (0,)),
    )


def backward(
    grads: Sequence[Tensor | None], arguments: Arguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of queries, regions, key_position and attn_mask, each in the dtype of its argument."""
    queries, regions, key_position, region_mask, scale, layer_norm_eps, return_map, attn_mask = arguments
    grad_output, grad_map = grads
    if grad_output is None:
        grad_output = torch.zeros_like(queries)
    _, needs_regions, needs_position, needs_mask = needs
    grad_queries = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    grad_regions = None
    if needs_regions:
        grad_regions = torch.empty(regions.shape, dtype=regions.dtype, device=regions.device)
        if queries.shape[1] == 0:
            grad_regions.zero_()
    grad_position = None
    if needs_position:
        assert key_position is not None
        grad_position = regions.new_zeros(key_position.shape, dtype=accumulation_dtype(queries.dtype))
    grad_pairs = None
    if needs_mask:
        shape = (*queries.shape[:2], regions.shape[1])
        grad_pairs = queries.new_empty(shape, dtype=accumulation_dtype(queries.dtype))
    for frames, row_blocks in _blocks(queries, regions):
        mask = None if region_mask is None else region_mask[frames]
        frame_mask = None if mask is None else mask[:, None, :]
        values, mean, rstd = _normalize(regions[frames], mask, layer_norm_eps)
        values, wide = _factors(values)
        keys = add_position(wide, _position_of(arguments, frames), mask)
        grad_values = None
        if grad_regions is not None:
            grad_values = grad_regions[frames]
            # Rounded to 16 bits once, not in each block of rows.
            sum_dtype = accumulation_dtype(values.dtype) if len(row_blocks) > 1 else values.dtype
            if sum_dtype != grad_values.dtype:
                grad_values = grad_values.new_zeros(grad_values.shape, dtype=sum_dtype)
        for index, rows in enumerate(row_blocks):
            q, do = queries[frames, rows], grad_output[frames, rows]
            scores = _scores(q, keys).mul_(scale)
            weights = masked_softmax(scores, frame_mask, _mask_rows(attn_mask, frames, rows))
            grad_scores = _scores(do, wide)  # of the weights; below, in place, of the scores
            if grad_map is not None and return_map:
                grad_scores.add_(grad_map[frames, rows])
            inner = (grad_scores * weights).sum(-1, keepdim=True)
            grad_scores = grad_scores.sub_(inner).mul_(weights)
            if grad_pairs is not None:
                grad_pairs[frames, rows] = grad_scores
            grad_scores = grad_scores.mul_(scale).to(values.dtype)  # of q · key
            q, do = q.to(values.dtype), do.to(values.dtype)
            grad_queries[frames, rows] = torch.bmm(grad_scores, values if key_position is None else keys.to(q.dtype))
            if grad_position is not None and grad_position.dim() == 2:
                grad_position += grad_scores.flatten(0, 1).mT @ q.flatten(0, 1)
            elif grad_position is not None:
                grad_position[frames] += grad_scores.mT @ q
            if grad_values is not None:
                left = torch.cat([grad_scores, weights.to(values.dtype)], 1)  # [frames, 2 rows, N]
                del grad_scores, weights
                right = torch.cat([q, do], 1)  # [frames, 2 rows, C]
                if grad_values.dtype == left.dtype:
                    torch.baddbmm(grad_values, left.mT, right, beta=min(index, 1), out=grad_values)
                else:
                    grad_values = _product(left.mT, right) if index == 0 else grad_values.add_(_product(left.mT, right))
                del left, right
        del values, wide, keys  # the LayerNorm gradient allocates as much
        if grad_regions is not None and grad_values is not None and grad_values.dtype != grad_regions.dtype:
            grad_regions[frames] = grad_values
        if grad_regions is not None and layer_norm_eps is not None:
            grad_regions[frames] = torch.ops.aten.native_layer_norm_backward(
                grad_regions[frames], _zero_masked(regions[frames], mask), regions.shape[-1:], mean, rstd,
                None, None, [True, False, False],
            )[0]  # fmt: skip
        if grad_regions is not None and mask is not None:
            grad_regions[frames].masked_fill_(~mask[:, :, None], 0)
    if grad_position is not None:
        grad_position = grad_position.to(regions.dtype)
    return grad_queries, grad_regions, grad_position, mask_gradient(grad_pairs, attn_mask)


def _position_of(arguments: Arguments, frames: slice) -> Tensor | None:
    """Return the positions of a block of frames, or those that all frames share."""
    position = arguments.key_position
    return position if position is None or position.dim() == 2 else position[frames]


def _mask_rows(attn_mask: Tensor | None, frames: slice, rows: slice) -> Tensor | None:
    """Return the rows of the mask that a block of rows uses."""
    if attn_mask is None or attn_mask.shape[1] == 1:
        return attn_mask if attn_mask is None else attn_mask[frames]
    count = attn_mask.shape[1]
    if rows.stop <= count:
        return attn_mask[frames, rows]
    return attn_mask[frames, torch.arange(rows.start, rows.stop, device=attn_mask.device) % count]


def _blocks(queries: Tensor, regions: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Yield slices of frames, each with its slices of rows, such that a block's regions and scores fit the bound."""
    frames, rows, channels = queries.shape
    count, size = regions.shape[1], queries.element_size()
    if not _has_wide_products(regions) and size == 2:
        size += 4  # the float32 copy of `_factors`
    if frames == 0:
        return
    bound = BLOCK_BYTES.get(queries.device.type, BLOCK_BYTES["cuda"])
    rows_per_block = min(rows, max(16, channels))  # keeps the scores no larger than the regions
    bytes_per_frame = count * (channels * size + rows_per_block * 4)
    frames_per_block = max(1, bound // max(1, bytes_per_frame))
    if 1 < frames_per_block < frames:
        frames_per_block = math.ceil(frames / math.ceil(frames / frames_per_block))  # blocks of equal size
    starts = range(0, rows, max(1, rows_per_block))
    row_blocks = [slice(start, min(start + rows_per_block, rows)) for start in starts]
    for start in range(0, frames, frames_per_block):
        yield slice(start, start + frames_per_block), row_blocks


def _normalize(
    regions: Tensor, mask: Tensor | None, layer_norm_eps: float | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the values, and with LayerNorm the mean and 1 / standard deviation of each region."""
    regions = _zero_masked(regions, mask)
    if layer_norm_eps is None:
        return regions, None, None
    return torch.native_layer_norm(regions, regions.shape[-1:], None, None, layer_norm_eps)


def _zero_masked(regions: Tensor, mask: Tensor | None) -> Tensor:
    """Set masked regions to zero, because a weight of zero does not cancel NaN or inf."""
    return regions if mask is None else regions.masked_fill(~mask[:, :, None], 0)


def _factors(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values as factors of products rounded to their dtype, and of float32 products (:func:`_product`)."""
    if _has_wide_products(values):
        return values, values
    wide = at_least_float32(values)
    # Products of bfloat16 are faster than those of float32 on a CPU, products of float16 are slower.
    return wide if values.dtype == torch.float16 else values, wide


def _has_wide_products(tensor: Tensor) -> bool:
    """Return whether products of 16-bit tensors can be returned in float32, without a copy of the factors."""
    return tensor.is_cuda and torch.version.hip is None


def _scores(rows: Tensor, keys: Tensor) -> Tensor:
    """Compute rows @ keysᵀ in the accumulation dtype, [frames, rows, N].

    On a CPU, the product of a few rows and narrow keys is faster in the other order, with a copy of the small result.
    """
    if not rows.is_cuda and rows.shape[1] <= 8 and rows.shape[2] <= 256:
        return _product(keys, rows.mT).mT.contiguous()
    return _product(rows, keys.mT)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Compute left @ right in the accumulation dtype."""
    if right.dtype.itemsize == 2 and _has_wide_products(right):
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(at_least_float32(left), at_least_float32(right))
