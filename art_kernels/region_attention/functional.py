"""`region_attention`: the public function, its argument checks and its backends."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from art_kernels._core import backends
from art_kernels._core.autograd import OperatorSpec, merge_batch, register_backend
from art_kernels._core.checks import (
    check_flag,
    check_floating,
    check_mask,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sizes,
)
from art_kernels._core.precision import autocast_as_matmul, without_autocast
from art_kernels.region_attention import reference
from art_kernels.region_attention.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_NAME = "region_attention"

_SPEC = OperatorSpec(
    name=_NAME,
    arguments=Arguments,
    outputs=("output", "softmax", "map"),
    vmap=functools.partial(merge_batch, shared=("key_position",)),
    differentiable=("queries", "regions", "key_position"),
    grad_outputs=("output", "map"),
    reference=reference.region_attention,
)
for _backend in ("torch", "triton"):
    register_backend(_SPEC, _backend, f"art_kernels.region_attention.{_backend}")
backends.register(_NAME, "reference", reference.region_attention)


@overload
def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    *,
    scale: float | None = None,
    key_position: Float[Tensor, "n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | None = None,
    layer_norm_eps: float | None = None,
    return_map: Literal[False] = False,
    backend: str | None = None,
) -> Float[Tensor, "f m c"]: ...


@overload
def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    *,
    scale: float | None = None,
    key_position: Float[Tensor, "n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | None = None,
    layer_norm_eps: float | None = None,
    return_map: Literal[True],
    backend: str | None = None,
) -> tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"]]: ...


def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    *,
    scale: float | None = None,
    key_position: Float[Tensor, "n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | None = None,
    layer_norm_eps: float | None = None,
    return_map: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "f m c"] | tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"]]:
    """Compute softmax(q (x + position)ᵀ · scale) x: attention whose keys and values are the regions themselves.

    With the projections of multi-head attention folded into `queries`, this is cross-attention that never projects the
    regions (`RegionCrossAttention`). All inputs, and the map, are differentiable to any order.

    Args:
        queries: [F,M,C], M query rows for each of F frames; float16, bfloat16, float32 or float64.
        regions: [F,N,C], N region tokens per frame, in the same dtype; read in place for any strides of F and N.
        scale: factor applied to the scores before the softmax; None for C^-1/2.
        key_position: [N,C], added to the regions as keys but not as values.
        region_mask: [F,N] bool, True where a region may be attended. The contents of masked regions, even NaN, affect
            neither output nor gradients, and their gradient is 0. A frame with no region to attend (all masked, or
            N = 0) has zero output and zero gradient.
        layer_norm_eps: if not None, x is `regions` layer-normalized over C with this epsilon, without affine
            parameters.
        return_map: also return the softmax.
        backend: "triton", "torch", "reference", or None for automatic selection (`art_kernels._core.backends`).

    Returns:
        The output [F,M,C], or with `return_map` a tuple of the output and the map [F,M,N], whose rows sum to 1. Both
        have the dtype of `queries`; the softmax is computed in float32 (float64 for float64). Under autocast, tensors
        are first cast to the autocast dtype, as in matrix products.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or value, or the backend does not support the tensors.

    Examples:
        >>> import torch
        >>> from art_kernels import region_attention
        >>> queries, regions = torch.randn(4, 2, 16), torch.randn(4, 49, 16)
        >>> output, weights = region_attention(queries, regions, return_map=True)
        >>> output.shape, weights.shape
        (torch.Size([4, 2, 16]), torch.Size([4, 2, 49]))
        >>> torch.allclose(output, weights @ regions, atol=1e-5)
        True
    """
    check_floating(_NAME, "queries", queries, "[F,M,C]")
    check_floating(_NAME, "regions", regions, "[F,N,C]")
    check_same_device(_NAME, "queries", queries, "regions", regions)
    frames, count, channels = regions.shape
    check_sizes(_NAME, "queries", queries, "[F,M,C]", (frames, queries.shape[1], channels))
    if key_position is not None:
        check_floating(_NAME, "key_position", key_position, "[N,C]")
        check_sizes(_NAME, "key_position", key_position, "[N,C]", (count, channels))
        check_same_device(_NAME, "key_position", key_position, "regions", regions)
    if region_mask is not None:
        check_mask(_NAME, "region_mask", region_mask, "[F,N]", (frames, count), regions.device)
    if layer_norm_eps is not None:
        check_number(_NAME, "layer_norm_eps", layer_norm_eps, low=0.0, low_is_open=True)
    if scale is None:
        scale = channels**-0.5
    else:
        check_number(_NAME, "scale", scale)
    check_flag(_NAME, "return_map", return_map)
    output, weights = attend(
        Arguments(queries, regions, key_position, region_mask, scale, layer_norm_eps, return_map), backend
    )
    return output if weights is None else (output, weights)


def attend(arguments: Arguments, backend: str | None) -> tuple[Tensor, Tensor | None]:
    """Compute output and map (None if not requested) from validated arguments, whose dtypes may still differ."""
    device = arguments.regions.device
    autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    if autocast:
        position = arguments.key_position
        arguments = arguments._replace(
            queries=autocast_as_matmul(arguments.queries),
            regions=autocast_as_matmul(arguments.regions),
            key_position=None if position is None else autocast_as_matmul(position),
        )
    check_same_dtype(_NAME, "queries", arguments.queries, "regions", arguments.regions)
    if arguments.key_position is not None:
        check_same_dtype(_NAME, "key_position", arguments.key_position, "regions", arguments.regions)
    run = backends.implementation(_NAME, arguments.regions, backend)
    with without_autocast(device) if autocast else nullcontext():
        output, *_, weights = run(*arguments)
    return output, weights.to(output.dtype) if arguments.return_map else None
