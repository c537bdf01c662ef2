"""The "torch" backend: the multilevel tracklet contrastive loss in PyTorch operators, a block of videos at a time.

Responses are not copied for normalization; their dot products are divided by the norms instead. The gradient of a
frame's term is a K×K matrix times its responses, that of a pair of frames a factor times either response. The forward
pass computes these matrices and factors with the terms, so the backward pass is a weighted sum and one product. The dot
products of flattened tracklets are those of the responses summed over time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_kernels._core.precision import accumulation_dtype, at_least_float32, cosine_norms
from art_kernels.tracklet_contrast.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: Bytes of responses in a block: on a CPU about the size of its caches, on a GPU enough to occupy it.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
SAVED_OUTPUTS = ("scale", "spatial_grad", "temporal_grad", "tracklet_grad")


def forward(
    responses: Float[Tensor, "b t k c"],
    aggregated: Float[Tensor, "b k c"] | None,
    valid: Bool[Tensor, "b t"] | None,
    margin: float,
    absolute: bool,
    clamp: bool,
    flattened: bool,
    gradients: bool,
) -> tuple[Tensor, ...]:
    """Return terms [3], scale [3], spatial_grad [B,T,K,K], temporal_grad [2,B,T,K] and tracklet_grad [B,K,K].

    `scale` is the factor of each term's sum that makes it a mean. The gradient of the sum of the spatial term is
    spatial_grad times the responses of a frame, that of the tracklet term tracklet_grad times the tracklets; for the
    temporal term, temporal_grad has the factors of a response and of the next one. Without `gradients` these are empty.
    """
    empty = fake(Arguments(responses, aggregated, valid, margin, absolute, clamp, flattened, gradients))
    _, _, spatial_grad, temporal_grad, tracklet_grad = empty
    sums = torch.zeros(3, dtype=spatial_grad.dtype, device=responses.device)
    for videos in _blocks(responses):
        exists = None if valid is None else valid[videos]
        block = _mask_invalid(responses[videos], exists)
        products = block @ block.mT  # [videos, T, K, K]
        inverse = _inverse_norms(products.diagonal(dim1=-2, dim2=-1))
        temporal = _attraction(
            block, inverse, exists, margin, absolute, temporal_grad[:, videos] if gradients else None
        )
        if flattened:
            tracklet_products = products.sum(1)
        else:
            pooled = _pool(block, None if aggregated is None else aggregated[videos], exists)
            tracklet_products = pooled @ pooled.mT
        spatial = _repulsion(products, inverse, clamp, spatial_grad[videos] if gradients else None)
        inverse = _inverse_norms(tracklet_products.diagonal(dim1=-2, dim2=-1))
        tracklet = _repulsion(tracklet_products, inverse, clamp, tracklet_grad[videos] if gradients else None)
        sums += torch.stack([spatial, temporal, tracklet])
    scale = _scale(responses, valid)
    return sums * scale, scale, spatial_grad, temporal_grad, tracklet_grad


def fake(arguments: Arguments) -> tuple[Tensor, ...]:
    """Return uninitialized outputs of `forward`."""
    responses, gradients = arguments.responses, arguments.gradients
    batch, frames, count, _ = responses.shape
    shapes = [(batch, frames, count, count), (2, batch, frames, count), (batch, count, count)]
    shapes = [(3,), (3,), *(shape if gradients else (0,) for shape in shapes)]
    dtype = accumulation_dtype(responses.dtype)
    return tuple(responses.new_empty(shape, dtype=dtype) for shape in shapes)


def backward(
    grads: Sequence[Tensor], arguments: Arguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Multiply the responses by the weighted sum of the saved matrices and factors."""
    responses, aggregated, valid, _, _, _, flattened, _ = arguments
    scale, spatial_grad, temporal_grad, tracklet_grad = saved
    needs_responses, needs_aggregated = needs
    spatial, temporal, tracklet = (grads[0].to(scale.dtype) * scale).unbind()
    grad_responses = torch.empty(responses.shape, dtype=responses.dtype, device=responses.device)
    grad_aggregated = None if aggregated is None else torch.empty_like(aggregated)
    for videos in _blocks(responses):
        exists = None if valid is None else valid[videos]
        block = _mask_invalid(responses[videos], exists)
        tracklet_matrices = tracklet_grad[videos] * tracklet
        if not flattened:
            grad_pooled = tracklet_matrices @ _pool(block, None if aggregated is None else aggregated[videos], exists)
            if grad_aggregated is not None:
                grad_aggregated[videos] = grad_pooled
        if needs_responses:
            matrices = spatial_grad[videos] * spatial
            own, following = (temporal_grad[:, videos] * temporal).unbind()
            matrices.diagonal(dim1=-2, dim2=-1).add_(own)
            if flattened:
                matrices += tracklet_matrices[:, None]
            grad = matrices @ block
            following = following[:, :-1, :, None]
            grad[:, :-1].addcmul_(following, block[:, 1:])
            grad[:, 1:].addcmul_(following, block[:, :-1])
            if not flattened and aggregated is None:
                grad += (grad_pooled / _num_frames(block, exists))[:, None]
            grad_responses[videos] = _mask_invalid(grad, exists)
    return grad_responses if needs_responses else None, grad_aggregated if needs_aggregated else None


def _blocks(responses: Tensor) -> Iterator[slice]:
    """Split the videos into blocks."""
    bytes_per_video = (
        max(1, responses[0].numel() * accumulation_dtype(responses.dtype).itemsize) if len(responses) else 1
    )
    step = max(1, BLOCK_BYTES.get(responses.device.type, BLOCK_BYTES["cuda"]) // bytes_per_video)
    return (slice(start, start + step) for start in range(0, len(responses), step))


def _mask_invalid(block: Float[Tensor, "b t k c"], exists: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b t k c"]:
    """Return the responses in the accumulation dtype, with zeros for invalid frames."""
    block = at_least_float32(block)
    return block if exists is None else block.masked_fill(~exists[:, :, None, None], 0)


def _pool(
    block: Float[Tensor, "b t k c"], aggregated: Float[Tensor, "b k c"] | None, exists: Bool[Tensor, "b t"] | None
) -> Float[Tensor, "b k c"]:
    """Return the tracklets; zero vectors for a video without valid frames."""
    if aggregated is None:
        return block.sum(1) / _num_frames(block, exists)
    aggregated = at_least_float32(aggregated)
    return aggregated if exists is None else aggregated.masked_fill(~exists.any(1)[:, None, None], 0)


def _num_frames(block: Float[Tensor, "b t k c"], exists: Bool[Tensor, "b t"] | None) -> int | Float[Tensor, "b 1 1"]:
    """Return the number of valid frames of each video, at least 1."""
    return block.shape[1] if exists is None else exists.sum(1).clamp(min=1)[:, None, None]


def _inverse_norms(squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return 1 / norm, and 0 for a zero vector (see `cosine_norms`), whose cosines and gradient become 0."""
    return cosine_norms(squares).reciprocal_()


def _repulsion(
    products: Float[Tensor, "*b k k"],
    inverse: Float[Tensor, "*b k"],
    clamp: bool,
    matrices: Float[Tensor, "*b k k"] | None,
) -> Float[Tensor, ""]:
    """Return the sum of the cosines over i≠j, and write to `matrices` its gradient divided by the vectors.

    Overwrites `products`.
    """
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
    margin: float,
    absolute: bool,
    factors: Float[Tensor, "2 b t k"] | None,
) -> Float[Tensor, ""]:
    """Return the sum of the shortfalls, and write to `factors` the factors of a response and of the next one in the
    gradient of the former (0 for the last frame)."""
    similarity = torch.linalg.vecdot(block[:, :-1], block[:, 1:])
    pairs = inverse[:, :-1] * inverse[:, 1:]
    similarity *= pairs
    shortfall = margin - similarity
    if not absolute:
        shortfall.relu_()
    if exists is not None:
        shortfall.masked_fill_(~(exists[:, :-1] & exists[:, 1:])[:, :, None], 0)
    if factors is not None:
        pull = shortfall.sign()  # the negative derivative with respect to the similarity
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
    """Return 1 / the number of valid pairs of responses, adjacent responses, and pairs of tracklets."""
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
