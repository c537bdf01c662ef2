"""The multilevel tracklet contrastive loss in PyTorch's own operators, some videos at a time.

No normalised copy of the responses is made: dot products are divided by norms afterwards. The gradient of a frame's
term is a K×K matrix times its responses, that of a step a factor of either response; matrices and factors are made with
the terms, so that the backward pass adds the weighted matrices and multiplies once. Summed over time, the dot products
are those of the flattened tracklets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_kernels._core.precision import accumulation_dtype, at_least_float32
from art_kernels.tracklet_contrast.passes import Forward, Gradients, Options

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: Bytes of responses in a block: on a CPU about what its caches hold, on a GPU enough to fill it.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}


def forward(
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None,
    valid: Bool[Tensor, "b t"] | None,
    options: Options,
    gradients: bool,
) -> Forward:
    """The terms, and matrices and factors for their gradients; the arguments are checked already."""
    batch, frames, count, _ = responses.shape
    wide = accumulation_dtype(responses.dtype)
    sums = torch.zeros(3, dtype=wide, device=responses.device)
    within = responses.new_empty((batch, frames, count, count) if gradients else (0,), dtype=wide)
    across = responses.new_empty((2, batch, frames, count) if gradients else (0,), dtype=wide)
    whole = responses.new_empty((batch, count, count) if gradients else (0,), dtype=wide)
    for videos in _blocks(responses):
        exists = None if valid is None else valid[videos]
        block = _existing(responses[videos], exists)
        products = block @ block.mT  # [videos, T, K, K]
        inverse = _inverse_norms(products.diagonal(dim1=-2, dim2=-1))
        temporal = _attraction(block, inverse, exists, options, across[:, videos] if gradients else None)
        if options.flattened:
            products_of_whole = products.sum(1)
        else:
            pooled = _pooled(block, None if aggregated is None else aggregated[videos], exists)
            products_of_whole = pooled @ pooled.mT
        spatial = _repulsion(products, inverse, options.clamp, within[videos] if gradients else None)
        inverse = _inverse_norms(products_of_whole.diagonal(dim1=-2, dim2=-1))
        tracklet = _repulsion(products_of_whole, inverse, options.clamp, whole[videos] if gradients else None)
        sums += torch.stack([spatial, temporal, tracklet])
    scale = _scale(responses, valid)
    return Forward(sums * scale, scale, within, across, whole)


def backward(
    grad_terms: Float[Tensor, "3"],
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None,
    valid: Bool[Tensor, "b t"] | None,
    saved: Forward,
    options: Options,
    needs_responses: bool,
    needs_aggregated: bool,
) -> Gradients:
    """Matrices and factors, weighted, times the responses."""
    spatial, temporal, tracklet = (grad_terms.to(saved.scale.dtype) * saved.scale).unbind()
    grad_responses = torch.empty(responses.shape, dtype=responses.dtype, device=responses.device)
    grad_aggregated = None if aggregated is None else torch.empty_like(aggregated)
    for videos in _blocks(responses):
        exists = None if valid is None else valid[videos]
        block = _existing(responses[videos], exists)
        of_whole = saved.whole[videos] * tracklet
        if not options.flattened:
            pooled = _pooled(block, None if aggregated is None else aggregated[videos], exists)
            of_pooled = of_whole @ pooled
            if grad_aggregated is not None:
                grad_aggregated[videos] = of_pooled
        if needs_responses:
            matrices = saved.within[videos] * spatial
            own, following = (saved.across[:, videos] * temporal).unbind()
            matrices.diagonal(dim1=-2, dim2=-1).add_(own)
            if options.flattened:
                matrices += of_whole[:, None]
            grad = matrices @ block
            following = following[:, :-1, :, None]
            grad[:, :-1].addcmul_(following, block[:, 1:])
            grad[:, 1:].addcmul_(following, block[:, :-1])
            if not options.flattened and aggregated is None:
                grad += (of_pooled / _frames(block, exists))[:, None]
            grad_responses[videos] = _existing(grad, exists)
    return Gradients(grad_responses if needs_responses else None, grad_aggregated if needs_aggregated else None)


def _blocks(responses: Tensor) -> Iterator[slice]:
    """Videos that make a block."""
    bytes_a_video = max(1, responses[0].numel() * accumulation_dtype(responses.dtype).itemsize) if len(responses) else 1
    step = max(1, BLOCK_BYTES.get(responses.device.type, BLOCK_BYTES["cuda"]) // bytes_a_video)
    return (slice(start, start + step) for start in range(0, len(responses), step))


def _existing(block: Float[Tensor, "b t k c"], exists: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b t k c"]:
    """The responses in the accumulation dtype, zeros for frames that do not exist: they add nothing."""
    block = at_least_float32(block)
    return block if exists is None else block.masked_fill(~exists[:, :, None, None], 0)


def _pooled(
    block: Float[Tensor, "b t k c"], aggregated: Float[Tensor, "b k c"] | None, exists: Bool[Tensor, "b t"] | None
) -> Float[Tensor, "b k c"]:
    """The tracklets; zero vectors where a video has no frame."""
    if aggregated is None:
        return block.sum(1) / _frames(block, exists)
    aggregated = at_least_float32(aggregated)
    return aggregated if exists is None else aggregated.masked_fill(~exists.any(1)[:, None, None], 0)


def _frames(block: Float[Tensor, "b t k c"], exists: Bool[Tensor, "b t"] | None) -> int | Float[Tensor, "b 1 1"]:
    """Frames of each video, at least 1."""
    return block.shape[1] if exists is None else exists.sum(1).clamp(min=1)[:, None, None]


def _inverse_norms(squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 / norm; 0 for a zero vector (see `cosine.cosine_norms`), whose cosines and gradient it makes 0."""
    return squares.masked_fill(squares < torch.finfo(squares.dtype).tiny, float("inf")).sqrt_().reciprocal_()


def _repulsion(
    products: Float[Tensor, "*b k k"],
    inverse: Float[Tensor, "*b k"],
    clamp: bool,
    matrices: Float[Tensor, "*b k k"] | None,
) -> Float[Tensor, ""]:
    """The sum of the cosines over i≠j; into `matrices`, what times the vectors is its gradient. Uses up `products`."""
    factors = inverse[..., :, None] * inverse[..., None, :]
    cosines = products.mul_(factors)
    cosines.diagonal(dim1=-2, dim2=-1).zero_()
    if clamp:
        cosines.relu_()
    if matrices is not None:
        if clamp:
            factors.masked_fill_(cosines == 0, 0)
        factors.diagonal(dim1=-2, dim2=-1).copy_(cosines.sum(-1).mul_(inverse.square()).neg_())
        torch.mul(factors, 2, out=matrices)
    return cosines.sum()


def _attraction(
    block: Float[Tensor, "b t k c"],
    inverse: Float[Tensor, "b t k"],
    exists: Bool[Tensor, "b t"] | None,
    options: Options,
    factors: Float[Tensor, "2 b t k"] | None,
) -> Float[Tensor, ""]:
    """The sum of the shortfalls; into `factors`, those of a response itself and of the next one in its gradient (0 for
    the last one, which has no next)."""
    similarity = torch.linalg.vecdot(block[:, :-1], block[:, 1:])
    pairs = inverse[:, :-1] * inverse[:, 1:]
    similarity *= pairs
    shortfall = options.margin - similarity
    if not options.absolute:
        shortfall.relu_()
    if exists is not None:
        shortfall.masked_fill_(~(exists[:, :-1] & exists[:, 1:])[:, :, None], 0)
    if factors is not None:
        pull = shortfall.sign()  # minus the derivative by the similarity
        own, following = factors.unbind()
        torch.mul(pairs, pull, out=following[:, :-1]).neg_()
        following[:, -1] = 0
        pull *= similarity
        own.zero_()
        own[:, :-1] += pull
        own[:, 1:] += pull
        own *= inverse.square()
    return shortfall.abs_().sum()


def _scale(responses: Float[Tensor, "b t k c"], valid: Bool[Tensor, "b t"] | None) -> Float[Tensor, "3"]:
    """1 / the number of pairs of responses, of steps, and of pairs of tracklets that take part."""
    batch, frames, count, _ = responses.shape
    pairs = count * (count - 1)
    counts = torch.empty(3, dtype=accumulation_dtype(responses.dtype), device=responses.device)
    if valid is None:
        sizes = (batch * frames * pairs, batch * (frames - 1) * count, batch * pairs)
        for number, size in zip(counts, sizes, strict=True):
            number.fill_(size)
    else:
        steps = (valid[:, :-1] & valid[:, 1:]).sum()
        counts.copy_(torch.stack([valid.sum() * pairs, steps * count, valid.any(1).sum() * pairs]))
    return counts.clamp_(min=1).reciprocal_()
