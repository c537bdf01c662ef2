"""`region_attention`: the public operation, its checks and its choice of backend."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, overload

from art_kernels._core import backends
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
from art_kernels.region_attention import native, reference
from art_kernels.region_attention.registration import passes, region_attention_forward

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_NAME = "region_attention"


def _definition(
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    scale: float,
    layer_norm_eps: float | None,
    return_map: bool,
) -> tuple[Tensor, Tensor]:
    return reference.region_attention(queries, regions, scale, key_position, region_mask, layer_norm_eps)


def _fused(*arguments: Any, backend: str) -> tuple[Tensor, Tensor]:
    output, _, weights = region_attention_forward(*arguments, backend)
    return output, weights


passes["torch"] = native
backends.register(_NAME, "torch", functools.partial(_fused, backend="torch"))
backends.register(_NAME, "reference", _definition)
try:
    from art_kernels.region_attention import launch
except ImportError as error:
    backends.register_missing(_NAME, "triton", f"triton cannot be imported: {error}")
else:
    passes["triton"] = launch
    backends.register(
        _NAME, "triton", functools.partial(_fused, backend="triton"), launch.unsupported_reason, opt_in=launch.opt_in
    )


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
    """softmax(q (x + position)ᵀ · scale) x: attention whose keys and values are the regions themselves.

    With the projections of a multi-head attention folded into `queries` this is cross-attention in which no region is
    ever projected (`RegionCrossAttention`). All inputs, and the map, carry gradients, of any order.

    Args:
        queries: [F,M,C], M query rows for each of F frames; float16, bfloat16, float32 or float64.
        regions: [F,N,C], N region tokens a frame; any strides in F and N, read in place.
        scale: factor on the scores before the softmax; None is C^-1/2.
        key_position: [N,C], added to the regions as keys and not as values.
        region_mask: [F,N] bool, True where a region may be attended. What a masked region holds, NaN included, reaches
            neither output nor gradient, and its gradient is 0. A frame without a region to attend (all masked, or N =
            0) gives zeros, with zero gradient.
        layer_norm_eps: where given, x is `regions` layer-normalised over C with this epsilon and no affine part.
        return_map: also return the softmax.
        backend: "triton", "torch", "reference", or None to choose (`art_kernels._core.backends`).

    Returns:
        [F,M,C], or with `return_map` the pair of it and the map [F,M,N], whose rows sum to 1. Both have the dtype of
        `queries`; the softmax is taken in float32 (float64 for float64). Under autocast the tensors are cast to the
        autocast dtype first, as for a matrix product.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value, or a backend that cannot serve these tensors.

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

    queries, regions = autocast_as_matmul(queries), autocast_as_matmul(regions)
    check_same_dtype(_NAME, "queries", queries, "regions", regions)
    if key_position is not None:
        key_position = autocast_as_matmul(key_position)
        check_same_dtype(_NAME, "key_position", key_position, "regions", regions)

    run = backends.implementation(_NAME, regions, backend)
    with without_autocast(regions.device):
        output, weights = run(queries, regions, key_position, region_mask, scale, layer_norm_eps, return_map)
    return (output, weights.to(output.dtype)) if return_map else output
