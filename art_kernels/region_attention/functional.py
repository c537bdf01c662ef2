"""`region_attention`: the public function, its argument checks and its backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

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
    choose_layout,
)
from art_kernels._core.precision import autocast_as_matmul, without_autocast
from art_kernels.region_attention import reference
from art_kernels.region_attention.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_NAME = "region_attention"


def _vmap(spec: OperatorSpec, operator: Any, names: Sequence[str]) -> Callable[..., Any]:
    """`merge_batch`, except that positions shared by the frames of a sample become positions of every frame."""
    merge = merge_batch(spec, operator, names)
    merge_shared = merge_batch(spec, operator, names, shared=("key_position",))
    index, gradient = names.index("key_position"), spec.differentiable.index("key_position")

    def rule(info: Any, in_dims: Sequence[int | None], *values: Any) -> tuple[Any, Any]:
        position, dim = values[index], in_dims[index]
        if position is None or position.dim() - (dim is not None) == 3:
            return merge(info, in_dims, *values)
        needed = names[-1] == "needs" and values[-1][gradient]
        if dim is None and not needed:
            return merge_shared(info, in_dims, *values)
        samples = position[None] if dim is None else position.movedim(dim, 0)[:, None]
        frames_axis = 0 if in_dims[names.index("queries")] is None else 1
        queries = values[names.index("queries")]
        if frames_axis:
            queries = queries.movedim(in_dims[names.index("queries")], 0)
        samples = samples.expand(info.batch_size, queries.shape[frames_axis], *samples.shape[-2:])
        dims = [0 if i == index else in_dim for i, in_dim in enumerate(in_dims)]
        results, out_dims = merge(info, dims, *values[:index], samples, *values[index + 1 :])
        if needed:
            results = tuple(result.sum(1) if i == gradient else result for i, result in enumerate(results))
        return results, out_dims

    return rule


_SPEC = OperatorSpec(
    name=_NAME,
    arguments=Arguments,
    outputs=("output", "softmax", "map"),
    vmap=_vmap,
    differentiable=("queries", "regions", "key_position", "attn_mask"),
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
    key_position: Float[Tensor, "n c"] | Float[Tensor, "f n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | Bool[Tensor, "f m n"] | None = None,
    attn_bias: Float[Tensor, "f n"] | Float[Tensor, "f m n"] | None = None,
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
    key_position: Float[Tensor, "n c"] | Float[Tensor, "f n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | Bool[Tensor, "f m n"] | None = None,
    attn_bias: Float[Tensor, "f n"] | Float[Tensor, "f m n"] | None = None,
    layer_norm_eps: float | None = None,
    return_map: Literal[True],
    backend: str | None = None,
) -> tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"]]: ...


def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    *,
    scale: float | None = None,
    key_position: Float[Tensor, "n c"] | Float[Tensor, "f n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | Bool[Tensor, "f m n"] | None = None,
    attn_bias: Float[Tensor, "f n"] | Float[Tensor, "f m n"] | None = None,
    layer_norm_eps: float | None = None,
    return_map: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "f m c"] | tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"]]:
    """Compute softmax(q (x + position)ᵀ · scale) x: attention whose keys and values are the regions themselves.

    With the projections of multi-head attention folded into `queries`, this is cross-attention that never projects the
    regions (`RegionCrossAttention`). All inputs, and the map, are differentiable to any order and in forward mode.

    Args:
        queries: [F,M,C], M query rows for each of F frames; float16, bfloat16, float32 or float64.
        regions: [F,N,C], N region tokens per frame, in the same dtype; read in place for any strides of F and N.
        scale: factor applied to the scores before the softmax; None for C^-1/2.
        key_position: [N,C], or [F,N,C] for positions of each frame; added to the regions as keys but not as values.
        region_mask: bool, True where a region may be attended: [F,N], or [F,M,N] for a mask of each query. The contents
            of a region that no query may attend, even NaN, affect neither output nor gradients, and its gradient is 0.
            A query with no region to attend (all masked, or N = 0) has zero output and zero gradient.
        attn_bias: added to the scaled scores: [F,N] or [F,M,N], of any floating dtype, differentiable. -inf masks, as
            False does in `region_mask`.
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
        check_position(_NAME, key_position, regions)
    if region_mask is not None or attn_bias is not None:
        layouts = {"[F,N]": (frames, count), "[F,M,N]": (frames, queries.shape[1], count)}
        check_masks(_NAME, region_mask, attn_bias, layouts, regions.device)
        masks = merge_masks(with_heads(region_mask), with_heads(attn_bias))
        region_mask, attn_mask = masks.regions, None if masks.pairs is None else masks.pairs[:, 0]
    else:
        attn_mask = None
    if layer_norm_eps is not None:
        check_number(_NAME, "layer_norm_eps", layer_norm_eps, low=0.0, low_is_open=True)
    if scale is None:
        scale = channels**-0.5
    else:
        check_number(_NAME, "scale", scale)
    check_flag(_NAME, "return_map", return_map)
    output, weights = attend(
        Arguments(queries, regions, key_position, region_mask, scale, layer_norm_eps, return_map, attn_mask), backend
    )
    return output if weights is None else (output, weights)


class Masks(NamedTuple):
    """Masks as the backends take them; see :func:`merge_masks`.

    Attributes:
        regions: [F,N] bool, whether any query may attend a region; None for all.
        pairs: [F,H,M,N], [F,1,M,N] or [F,1,1,N], bool or floating, as `attn_mask` of :class:`Arguments`; None if
            `regions` is the whole mask.
        rows: [F,H,M,1], [F,1,M,1] or [F,1,1,1] bool, whether a query may attend any region; None for all.
    """

    regions: Tensor | None
    pairs: Tensor | None
    rows: Tensor | None


def merge_masks(allowed: Tensor | None, bias: Tensor | None) -> Masks:
    """Merge a boolean and an additive mask, each [F,H,M,N] with H, or H and M, possibly 1."""
    pairs = None
    if bias is not None:
        pairs = bias if allowed is None else torch.where(allowed, bias, -torch.inf)
        allowed = ~pairs.isneginf()
    elif allowed is None:
        return Masks(None, None, None)
    elif allowed.shape[1] > 1 or allowed.shape[2] != 1:
        pairs = allowed
    regions = allowed[:, 0, 0] if allowed.shape[1:3] == (1, 1) else allowed.any(2).any(1)
    return Masks(regions, pairs, allowed.any(-1, keepdim=True))


def with_heads(mask: Tensor | None) -> Tensor | None:
    """View [F,N], [F,M,N] or [F,H,M,N] with four dimensions."""
    if mask is None or mask.dim() == 4:
        return mask
    return mask[:, None, None] if mask.dim() == 2 else mask[:, None]


def check_position(operation: str, position: Tensor, regions: Tensor) -> None:
    """Check that `position` is [N,C] or [F,N,C] for `regions` [F,N,C]."""
    frames, count, channels = regions.shape
    layouts = {"[N,C]": (count, channels), "[F,N,C]": (frames, count, channels)}
    layout = choose_layout(operation, "key_position", position, layouts)
    check_floating(operation, "key_position", position, layout)
    check_sizes(operation, "key_position", position, layout, layouts[layout])
    check_same_device(operation, "key_position", position, "regions", regions)


def check_masks(
    operation: str,
    region_mask: Tensor | None,
    attn_bias: Tensor | None,
    layouts: Mapping[str, Sequence[int]],
    device: torch.device,
) -> None:
    """Check that each mask is on `device` and has one of `layouts`, a dict from "[F,N]" to its sizes."""
    if region_mask is not None:
        if isinstance(region_mask, Tensor) and region_mask.is_floating_point():
            raise TypeError(
                f"{operation}: region_mask has dtype {region_mask.dtype}, expected torch.bool with True where a region "
                "may be attended; pass an additive mask as attn_bias=, or compare first, for example mask > 0"
            )
        layout = choose_layout(operation, "region_mask", region_mask, layouts)
        check_mask(operation, "region_mask", region_mask, layout, layouts[layout], device)
    if attn_bias is not None:
        layout = choose_layout(operation, "attn_bias", attn_bias, layouts)
        check_floating(operation, "attn_bias", attn_bias, layout)
        check_sizes(operation, "attn_bias", attn_bias, layout, layouts[layout])
        if attn_bias.device != device:
            raise ValueError(
                f"{operation}: attn_bias is on {attn_bias.device}, expected {device}, the device of regions; "
                f"move it with attn_bias.to({str(device)!r})"
            )


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
