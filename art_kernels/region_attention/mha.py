"""The call of `nn.MultiheadAttention`, converted to the arguments of `RegionCrossAttention`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from art_kernels._core.checks import (
    check_flag,
    check_floating,
    check_same_device,
    check_same_dtype,
    check_sizes,
    choose_layout,
)
from art_kernels._core.precision import autocast_dtype
from art_kernels.region_attention.functional import Masks, merge_masks

if TYPE_CHECKING:
    from art_kernels.region_attention.module import RegionCrossAttention

_NAME = "RegionCrossAttention"


class MultiheadCall(NamedTuple):
    """A converted call.

    Attributes:
        queries: [F,K,E].
        regions: [F,N,C], the values.
        keys: [F,N,C]; None if they are the regions.
        masks: see :func:`merge_masks`.
        need_weights: whether to return the map.
        average: whether to average the map over the heads.
        batched: whether the caller's tensors have a batch dimension.
    """

    queries: Tensor
    regions: Tensor
    keys: Tensor | None
    masks: Masks
    need_weights: bool
    average: bool
    batched: bool

    def results(self, output: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Convert the output and the map to the results of `nn.MultiheadAttention`."""
        if weights is not None and self.average:
            weights = weights.mean(1)
        if self.batched:
            return output, weights
        return output[0], weights if weights is None else weights[0]


def from_multihead_call(
    module: RegionCrossAttention,
    queries: Tensor | None,
    regions: Tensor | None,
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor | None,
    key_padding_mask: Tensor | None,
    need_weights: bool | None,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
    own_options: Mapping[str, object],
) -> MultiheadCall:
    """Check and convert a call of `nn.MultiheadAttention`; `queries` and `regions` are its positional query and key.

    Raises:
        TypeError: if an argument is missing, has the wrong type or dtype, or belongs to the other form of call.
        ValueError: if an argument has the wrong shape or device.
    """
    if (query is not None and queries is not None) or (key is not None and regions is not None):
        raise TypeError(f"{_NAME}: query or key is passed twice, by position and by name; pass it once")
    query, key = queries if query is None else query, regions if key is None else key
    if query is None or key is None or value is None:
        missing = " and ".join(n for n, v in (("query", query), ("key", key), ("value", value)) if v is None)
        raise TypeError(
            f"{_NAME}: {missing} is None, expected query, key and value with the options of nn.MultiheadAttention; "
            "pass all three, or queries and regions with region_mask= and return_map="
        )
    mixed = [name for name, option in own_options.items() if option is not None]
    if mixed:
        raise TypeError(
            f"{_NAME}: {mixed[0]} is passed with query, key and value, expected the options of nn.MultiheadAttention "
            "(key_padding_mask, attn_mask, need_weights); pass queries and regions instead"
        )
    need_weights = True if need_weights is None else need_weights
    flags = {"need_weights": need_weights, "average_attn_weights": average_attn_weights, "is_causal": is_causal}
    for name, flag in flags.items():
        check_flag(_NAME, name, flag)
    if is_causal and attn_mask is None:
        raise ValueError(
            f"{_NAME}: is_causal is True without attn_mask, expected the mask that it describes; "
            "pass attn_mask=torch.ones(K, N, dtype=torch.bool).triu(1)"
        )
    batched = not (isinstance(query, Tensor) and query.dim() == 2)
    _check_tokens(module, query, key, value, batched)
    keys = None if key is value else key
    if keys is not None and module.norm_regions:
        raise ValueError(
            f"{_NAME}: key is not value, expected one tensor for both with norm_regions=True; "
            "pass queries and regions, and positions as key_position="
        )
    if not batched:
        query, value, keys = query[None], value[None], None if keys is None else keys[None]
        key_padding_mask = key_padding_mask[None] if isinstance(key_padding_mask, Tensor) else key_padding_mask
    masks = _convert_masks(module, query, value, key_padding_mask, attn_mask)
    return MultiheadCall(query, value, keys, masks, need_weights, average_attn_weights, batched)


def _check_tokens(module: RegionCrossAttention, query: Tensor, key: Tensor, value: Tensor, batched: bool) -> None:
    batch = "F," if batched else ""
    check_floating(_NAME, "query", query, f"[{batch}K,E]")
    check_floating(_NAME, "key", key, f"[{batch}N,C]")
    check_floating(_NAME, "value", value, f"[{batch}N,C]")
    if key.shape != value.shape:
        raise ValueError(
            f"{_NAME}: key has shape {list(key.shape)} and value {list(value.shape)}, expected the same tokens, "
            "with or without positions added to key; use nn.MultiheadAttention for keys and values of different sources"
        )
    check_same_device(_NAME, "key", key, "value", value)
    if autocast_dtype(key.device) is None:
        check_same_dtype(_NAME, "key", key, "value", value)
    if batched and query.shape[0] != key.shape[0]:
        raise ValueError(
            f"{_NAME}: query has shape {list(query.shape)} and key {list(key.shape)}, expected [F,K,E] and [F,N,C] "
            "with the same F, as with batch_first=True; transpose(0, 1) tensors whose batch dimension is second"
        )
    widths = {"query": (query, module.embed_dim), "key": (key, module.region_dim)}
    for name, (tensor, width) in widths.items():
        if tensor.shape[-1] != width:
            raise ValueError(
                f"{_NAME}: {name} has {tensor.shape[-1]} channels, expected {width}; check the "
                f"{'embed_dim' if name == 'query' else 'region_dim'} of the module"
            )


def _convert_masks(
    module: RegionCrossAttention,
    query: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> Masks:
    """Merge both masks of `nn.MultiheadAttention`, in which True excludes."""
    (frames, rows), count, heads = query.shape[:2], value.shape[1], module.num_heads
    masks = []
    if key_padding_mask is not None:
        _check_mask("key_padding_mask", key_padding_mask, {"[F,N]": (frames, count)}, query.device)
        masks.append(key_padding_mask[:, None, None])
    if attn_mask is not None:
        layouts = {"[K,N]": (rows, count), "[F*H,K,N]": (frames * heads, rows, count)}
        _check_mask("attn_mask", attn_mask, layouts, query.device)
        if attn_mask.dim() == 2:
            masks.append(attn_mask.expand(frames, 1, -1, -1))
        else:
            masks.append(attn_mask.unflatten(0, (frames, heads)))
    allowed = bias = None
    for mask in masks:
        if mask.dtype == torch.bool:
            allowed = ~mask if allowed is None else allowed & ~mask
        else:
            bias = mask if bias is None else bias + mask
    return merge_masks(allowed, bias)


def _check_mask(name: str, mask: Tensor, layouts: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{_NAME}: {name} is of type {type(mask).__name__}, expected a torch.Tensor of bool or floats")
    layout = choose_layout(_NAME, name, mask, layouts)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{_NAME}: {name} has dtype {mask.dtype}, expected torch.bool with True for excluded entries, or a "
            f"floating dtype that is added to the scores; convert it with {name}.bool()"
        )
    check_sizes(_NAME, name, mask, layout, layouts[layout])
    if mask.device != device:
        raise ValueError(
            f"{_NAME}: {name} is on {mask.device}, expected {device}, the device of query; "
            f"move it with {name}.to({str(device)!r})"
        )
