"""Triton backend of region attention: the launches of both passes, and the variants that are compiled ahead of time.

Launches can be built, and compiled, on meta tensors, but not run on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from art_kernels._core.launch import (
    DTYPES,
    DeviceSpec,
    KernelLaunch,
    LaunchConfig,
    alignment,
    choose_splits,
    contiguous_last_dim,
    device_spec,
    device_unsupported_reason,
    dot_precision,
    float32_like,
    meta_tensor,
)
from art_kernels.region_attention import backward as backward_kernels
from art_kernels.region_attention import forward as forward_kernels
from art_kernels.region_attention.configs import MAX_CHANNELS, backward_config, candidates, forward_config
from art_kernels.region_attention.reference import Arguments, mask_gradient

#: Outputs of `forward` that `backward` reads.
SAVED_OUTPUTS = ("output", "softmax", "map")
#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(forward_kernels.forward_kernel, triton.runtime.JITFunction)

_forward_config = functools.cache(forward_config)
_backward_config = functools.cache(backward_config)


def unsupported_reason(regions: Tensor) -> str | None:
    """Return why the kernels do not support `regions`, or None if they do."""
    channels = regions.shape[-1]
    if channels > MAX_CHANNELS:
        return f"the kernels support at most {MAX_CHANNELS} channels, got {channels}"
    return device_unsupported_reason(regions, INTERPRETED)


def opt_in(regions: Tensor) -> bool:
    """Return whether the kernels must be requested by name: in the interpreter, and for float32.

    Exact float32 products do not use tensor cores, and with many channels several programs repeat them.
    """
    return regions.device.type != "cuda" or regions.dtype == torch.float32


def forward(*fields: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return output [F,M,C], softmax statistics [F,M,2] and the map [F,M,N], empty if it was not requested.

    The statistics of a row are, in float32, the maximum score m and Σ exp(score - m).
    """
    arguments = Arguments(*fields)
    queries, regions = arguments.queries, arguments.regions
    output = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    softmax = torch.empty((*queries.shape[:2], 2), dtype=torch.float32, device=queries.device)
    scores = None
    if arguments.return_map:
        scores = float32_like(queries, *queries.shape[:2], regions.shape[1])
    if output.numel() * regions.shape[1] == 0:
        output.zero_()
        softmax.zero_()
    else:
        config = _select(_forward_config, arguments, device_spec(regions.device))
        for launch in forward_launches(arguments, config, output, softmax, scores):
            launch.run()
    if scores is None:
        return output, softmax, queries.new_empty(0)
    weights = scores.softmax(-1).to(queries.dtype)
    return output, softmax, weights.masked_fill_(softmax[..., 1:] == 0, 0.0)  # a fully masked row is 0, not 0/0


def fake(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialized outputs of :func:`forward`."""
    queries = arguments.queries
    frames, rows, _ = queries.shape
    return (
        queries.new_empty(queries.shape),
        queries.new_empty((frames, rows, 2), dtype=torch.float32),
        queries.new_empty((frames, rows, arguments.regions.shape[1]) if arguments.return_map else (0,)),
    )


def backward(
    grads: Sequence[Tensor | None], arguments: Arguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of queries, regions, key_position and attn_mask.

    Each region is read once and its gradient is written once. Without atomics, two runs are bitwise identical.
    """
    queries, regions = arguments.queries, arguments.regions
    (frames, rows, _), count = queries.shape, regions.shape[1]
    grad_output, grad_map = grads
    output, softmax, weights = saved
    _, needs_regions, needs_position, needs_mask = needs
    position, attn_mask = arguments.key_position, arguments.attn_mask
    grad_queries = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    grad_regions = torch.empty(regions.shape, dtype=regions.dtype, device=regions.device) if needs_regions else None
    grad_scores = None
    if needs_mask:
        grad_scores = float32_like(queries, frames, rows, count)
    elif needs_position:
        grad_scores = queries.new_empty(frames, rows, count)
    if queries.numel() * count == 0:
        return (
            grad_queries.zero_(),
            None if grad_regions is None else grad_regions.zero_(),
            None if position is None else torch.zeros_like(position),
            None if attn_mask is None else torch.zeros_like(attn_mask),
        )
    grad_output = torch.zeros_like(queries) if grad_output is None else grad_output.contiguous()
    grad_map = grad_map.contiguous() if grad_map is not None and arguments.return_map else None
    config, one_block = _select(_backward_config, arguments, device_spec(regions.device))
    if grad_output.dtype == torch.float32:
        launch, delta = delta_launch(arguments, config, softmax, grad_output, grad_map)
        launch.run()
        delta = delta.sum(0)
    else:
        # 16-bit results round far more coarsely than the products: delta = do · o, without reading the regions.
        delta = (grad_output.float() * output.float()).sum(-1)
        if grad_map is not None:
            delta += (grad_map.float() * weights.float()).sum(-1)
    launch, partial = backward_launch(
        arguments, config, one_block, softmax, delta, grad_output, grad_map, grad_queries, grad_regions, grad_scores,
        unscaled=needs_mask,
    )  # fmt: skip
    launch.run()
    if partial is not grad_queries:
        grad_queries = partial.sum(0).to(queries.dtype)
    grad_position = grad_mask = None
    if needs_mask:
        grad_mask = mask_gradient(grad_scores, attn_mask)
    if grad_scores is not None and position is not None and needs_position:
        if needs_mask:
            grad_scores = (grad_scores * arguments.scale).to(queries.dtype)
        if position.dim() == 3:
            grad_position = grad_scores.mT @ queries
        else:
            grad_position = grad_scores.flatten(0, 1).mT @ queries.flatten(0, 1)
    return grad_queries, grad_regions, grad_position, grad_mask


def forward_launches(
    arguments: Arguments, config: LaunchConfig, output: Tensor, softmax: Tensor, scores: Tensor | None
) -> list[KernelLaunch]:
    """Build the launches that fill `output` [F,M,C], `softmax` [F,M,2] and, unless None, `scores` [F,M,N]."""
    frames, rows, channels = output.shape
    programs = frames * -(-rows // config.block_m) * config.channel_splits
    values, constants, splits = _shared_values(arguments, config, programs)
    partial, partial_softmax = output, softmax
    if splits > 1:
        partial = float32_like(output, splits, frames, rows, channels)
        partial_softmax = float32_like(output, splits, frames, rows, 2)
    values |= {"p_output": partial, "p_softmax": partial_softmax, "p_scores": scores}
    constants |= {
        "CHANNEL_SPLITS": config.channel_splits,
        "SCORES": scores is not None,
        "KEEP_IN_REGS": config.keep_in_regs,
    }
    launches = [
        KernelLaunch(
            forward_kernels.forward_kernel, (programs * splits,), values, constants, *config.options(),
            _tunable(arguments, config),
        )
    ]  # fmt: skip
    if splits > 1:
        width = min(1024, triton.next_power_of_2(channels))
        values = {
            "p_partial": partial,
            "p_partial_softmax": partial_softmax,
            "p_output": output,
            "p_softmax": softmax,
            "rows": frames * rows,
            "splits": splits,
        }
        grid = (frames * rows, -(-channels // width))
        launches.append(
            KernelLaunch(forward_kernels.combine_kernel, grid, values, {"C": channels, "BLOCK_C": width}, 4, 1)
        )
    return launches


def delta_launch(
    arguments: Arguments, config: LaunchConfig, softmax: Tensor, grad_output: Tensor, grad_map: Tensor | None
) -> tuple[KernelLaunch, Tensor]:
    """Build the launch that computes delta; returns it and its output [splits, F, M], to be summed over splits.

    `config` must be that of the backward kernel, so that both round the same products.
    """
    frames, rows, _ = grad_output.shape
    programs = frames * -(-rows // config.block_m)
    values, constants, splits = _shared_values(arguments, config, programs)
    delta = float32_like(grad_output, splits, frames, rows)
    values |= {"p_softmax": softmax, "p_grad_output": grad_output, "p_grad_map": grad_map, "p_delta": delta}
    constants["GRAD_MAP"] = grad_map is not None
    kernel = backward_kernels.delta_kernel
    return KernelLaunch(kernel, (programs * splits,), values, constants, *config.options()), delta


def backward_launch(
    arguments: Arguments,
    config: LaunchConfig,
    one_block: bool,
    softmax: Tensor,
    delta: Tensor,
    grad_output: Tensor,
    grad_map: Tensor | None,
    grad_queries: Tensor,
    grad_regions: Tensor | None,
    grad_scores: Tensor | None,
    unscaled: bool = False,
) -> tuple[KernelLaunch, Tensor]:
    """Build the backward launch; returns it and the tensor that receives the gradient of the queries.

    That tensor is `grad_queries`, or partial results [splits, F, M, C] to be summed over splits. The launch fills
    `grad_regions` and `grad_scores` [F,M,N], unless they are None, the latter with the gradient of q · key or, if
    `unscaled`, that of q · key · scale, which is also that of an additive mask and must be float32.
    """
    frames, rows, channels = grad_queries.shape
    programs = frames * config.channel_splits
    values, constants, splits = _shared_values(arguments, config, programs)
    partial = grad_queries
    if splits > 1 or not one_block:
        partial = float32_like(grad_queries, splits, frames, rows, channels)
    values |= {
        "p_softmax": softmax,
        "p_delta": delta,
        "p_grad_output": grad_output,
        "p_grad_map": grad_map,
        "p_grad_queries": partial,
        "p_grad_regions": grad_regions,
        "p_grad_scores": grad_scores,
    }
    constants |= {
        "CHANNEL_SPLITS": config.channel_splits,
        "GRAD_MAP": grad_map is not None,
        "GRAD_REGIONS": grad_regions is not None,
        "GRAD_SCORES": 0 if grad_scores is None else 2 if unscaled else 1,
    }
    kernel = backward_kernels.backward_multi_block_kernel
    if one_block:
        kernel = backward_kernels.backward_kernel
        constants["KEEP_IN_REGS"] = config.keep_in_regs
    launch = KernelLaunch(
        kernel, (programs * splits,), values, constants, *config.options(), _tunable(arguments, config)
    )  # fmt: skip
    return launch, partial


def _select(configure: Callable[..., Any], arguments: Arguments, device: DeviceSpec) -> Any:
    """Call `_forward_config` or `_backward_config` for these arguments."""
    return configure(
        arguments.regions.dtype, arguments.queries.shape[1], arguments.regions.shape[2], device,
        position=arguments.key_position is not None, normalize=arguments.layer_norm_eps is not None,
    )  # fmt: skip


def _shared_values(
    arguments: Arguments, config: LaunchConfig, programs: int
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return the arguments and constants that all kernels share, and the number of splits of the regions."""
    queries, regions = contiguous_last_dim(arguments.queries), contiguous_last_dim(arguments.regions)
    position, mask, attn_mask = arguments.key_position, arguments.region_mask, arguments.attn_mask
    if position is not None:
        position = contiguous_last_dim(position)
    if attn_mask is not None:
        attn_mask = contiguous_last_dim(attn_mask)
    align = alignment(queries, regions, position)
    _, count, channels = regions.shape
    splits, regions_per_split = choose_splits(count, programs, config.block_n, regions.device)
    values = {
        "p_queries": queries,
        "p_regions": regions,
        "p_position": position,
        "p_mask": mask,
        "p_attn_mask": attn_mask,
        "scale": arguments.scale,
        "eps": arguments.layer_norm_eps or 0.0,
        "M": queries.shape[1],
        "N": count,
        "regions_per_split": regions_per_split,
        "splits": splits,
        "stride_query_frame": queries.stride(0) // align,
        "stride_query_row": queries.stride(1) // align,
        "stride_region_frame": regions.stride(0) // align,
        "stride_region": regions.stride(1) // align,
        "stride_position_frame": 0 if position is None or position.dim() == 2 else position.stride(0) // align,
        "stride_position": 0 if position is None else position.stride(-2) // align,
        "stride_mask_frame": 0 if mask is None else mask.stride(0),
        "stride_mask": 0 if mask is None else mask.stride(1),
        "attn_mask_rows": 1 if attn_mask is None else attn_mask.shape[1],
        "stride_attn_mask_frame": 0 if attn_mask is None else attn_mask.stride(0),
        "stride_attn_mask_row": 0 if attn_mask is None else attn_mask.stride(1),
    }
    constants = {
        "C": channels,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_C": config.block_c,
        "CHUNKS": config.chunks(channels),
        "ALIGN": align,
        "POSITION": position is not None,
        "MASK": mask is not None,
        "ATTN_MASK": 0 if attn_mask is None else 1 if attn_mask.dtype == torch.bool else 2,
        "NORMALIZE": arguments.layer_norm_eps is not None,
        "PRECISION": dot_precision(regions.dtype),
    }
    return values, constants, splits


def _tunable(arguments: Arguments, config: LaunchConfig) -> tuple[LaunchConfig, ...]:
    """Candidates for autotuning; none in float32, where delta must use the block sizes of the backward kernel."""
    return candidates(config) if arguments.regions.dtype != torch.float32 else ()


#: Representative numbers of channels: every row of the table of configurations, with full and partial chunks.
CHANNELS = (32, 96, 256, 512, 768, 1000, 1024, 1408, 1536)
#: Query rows that fit in one block, and in several.
ROWS = (16, 64)
#: By name: whether a launch has a LayerNorm, and all of: positions and masks of both kinds, and a map.
OPTIONS = {"plain": (False, False), "normed": (True, False), "all": (True, True)}


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Yield names such as "backward.bf16.c768.m16.normed" and launches on meta tensors, as built for `device`."""
    for dtype_name, dtype in DTYPES.items():
        for channels in CHANNELS:
            for option in OPTIONS:
                name = f"{dtype_name}.c{channels}.split.{option}"
                arguments = _meta_arguments(dtype, 1, channels, option, frames=1, count=4096)
                forward, combine = _forward_variants(arguments, device)
                if option == "plain":
                    yield f"combine.{dtype_name}.c{channels}", combine
                if dtype != torch.float32:  # splits write float32 in any case
                    yield f"forward.{name}", forward
                    backward, one_block = _backward_variants(arguments, device)
                    if one_block:  # several blocks accumulate in float32 even without splits
                        yield f"backward.{name}", backward["backward"]
            for rows in ROWS:
                for option in OPTIONS:
                    name = f"{dtype_name}.c{channels}.m{rows}.{option}"
                    arguments = _meta_arguments(dtype, rows, channels, option)
                    yield f"forward.{name}", _forward_variants(arguments, device)[0]
                    for kernel, launch in _backward_variants(arguments, device)[0].items():
                        yield f"{kernel}.{name}", launch


def _meta_arguments(
    dtype: torch.dtype, rows: int, channels: int, option: str, *, frames: int = 4096, count: int = 196
) -> Arguments:
    normed, masked = OPTIONS[option]
    return Arguments(
        queries=meta_tensor(dtype, frames, rows, channels),
        regions=meta_tensor(dtype, frames, count, channels),
        key_position=meta_tensor(dtype, frames, count, channels) if masked else None,
        region_mask=meta_tensor(torch.bool, frames, count) if masked else None,
        scale=1.0,
        layer_norm_eps=1e-5 if normed else None,
        return_map=masked,
        attn_mask=meta_tensor(torch.float32, frames, rows, count) if masked else None,
    )


def _forward_variants(arguments: Arguments, device: DeviceSpec) -> list[KernelLaunch]:
    (frames, rows, _), count = arguments.queries.shape, arguments.regions.shape[1]
    config = _select(_forward_config, arguments, device)
    scores = meta_tensor(torch.float32, frames, rows, count) if arguments.return_map else None
    return forward_launches(arguments, config, arguments.queries, meta_tensor(torch.float32, frames, rows, 2), scores)


def _backward_variants(arguments: Arguments, device: DeviceSpec) -> tuple[dict[str, KernelLaunch], bool]:
    """Return the launches by kernel, and whether one block holds all rows."""
    (frames, rows, _), count = arguments.queries.shape, arguments.regions.shape[1]
    config, one_block = _select(_backward_config, arguments, device)
    softmax = meta_tensor(torch.float32, frames, rows, 2)
    pairs = meta_tensor(arguments.queries.dtype, frames, rows, count)
    grad_map = pairs if arguments.return_map else None
    launch, _ = backward_launch(
        arguments, config, one_block, softmax, softmax, arguments.queries, grad_map, arguments.queries,
        arguments.regions, arguments.attn_mask, unscaled=arguments.attn_mask is not None,
    )  # fmt: skip
    launches = {"backward": launch}
    if arguments.queries.dtype == torch.float32:
        launches["delta"], _ = delta_launch(arguments, config, softmax, arguments.queries, grad_map)
    return launches, one_block
