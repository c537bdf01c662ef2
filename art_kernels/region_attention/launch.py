"""Launching the Triton kernels: which variant, how many programs, which buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from art_kernels.call import Call
from art_kernels.devices import Device, device_of
from art_kernels.region_attention import kernels
from art_kernels.region_attention.passes import Forward, Gradients
from art_kernels.region_attention.tiles import (
    MAX_CHANNELS,
    Tiles,
    backward_tiles,
    forward_tiles,
    splits_for,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)


def refusal(regions: Tensor) -> str | None:
    """Why the kernels cannot serve `regions`, or None where they can."""
    channels = regions.shape[-1]
    if regions.dtype == torch.float64:
        return "the kernels compute in float32"
    if channels > MAX_CHANNELS:
        return f"the kernels keep a region of at most {MAX_CHANNELS} channels, and these have {channels}"
    if regions.device.type == "cuda":
        return None
    if not INTERPRETED:
        return "the kernels run on GPUs (and on the CPU under TRITON_INTERPRET=1, set before the import, to test them)"
    return "Triton's interpreter multiplies bfloat16 as integers" if regions.dtype == torch.bfloat16 else None


def by_name_only(regions: Tensor) -> bool:
    """Whether the kernels serve `regions` only when asked for: in Triton's interpreter, which is there for tests, and
    in float32, whose exact products take no tensor core and, with many channels, more registers than there are."""
    return regions.device.type != "cuda" or regions.dtype == torch.float32


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
    (frames, rows, _), count = queries.shape, regions.shape[1]
    output = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    softmax = _float32(queries, frames, rows, 2)
    scores = _float32(queries, frames, rows, count) if return_map else None
    if output.numel() * count == 0:
        output.zero_()
        softmax.zero_()
    else:
        for call in forward_calls(
            queries,
            regions,
            key_position,
            region_mask,
            scale,
            layer_norm_eps,
            output,
            softmax,
            scores,
            device_of(regions.device),
        ):
            call.run()
    if scores is None:
        return Forward(output, softmax, queries.new_empty(0))
    weights = scores.softmax(-1).to(queries.dtype)
    return Forward(output, softmax, weights.masked_fill_(softmax[..., 1:] == 0, 0.0))  # nothing to attend: 0, not 0/0


def forward_calls(
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    scale: float,
    layer_norm_eps: float | None,
    output: Tensor,
    softmax: Tensor,
    scores: Tensor | None,
    device: Device,
) -> list[Call]:
    """The launches that fill `output`, `softmax` and `scores` on such a device. On meta tensors they can be made, and
    compiled, not run."""
    frames, rows, channels = queries.shape
    count = regions.shape[1]
    queries, regions, position = _readable(queries), _readable(regions), _readable(key_position)
    tiles = forward_tiles(
        regions.dtype,
        rows,
        channels,
        device,
        position=position is not None,
        normalize=layer_norm_eps is not None,
    )
    row_blocks = -(-rows // tiles.block_m)
    splits, regions_a_split = splits_for(count, frames * row_blocks * tiles.parts, tiles.block_n, regions.device)
    partial, partial_softmax = output, softmax
    if splits > 1:
        partial = _float32(queries, splits, frames, rows, channels)
        partial_softmax = _float32(queries, splits, frames, rows, 2)
    arguments = {
        **_inputs(queries, regions, position, region_mask, scale, layer_norm_eps),
        "p_output": partial,
        "p_softmax": partial_softmax,
        "p_scores": scores,
        "regions_a_split": regions_a_split,
        "splits": splits,
    }
    constants = {
        **_constants(tiles, queries, regions, position, region_mask, layer_norm_eps),
        "PARTS": tiles.parts,
        "SCORES": scores is not None,
        "HOLD": tiles.hold,
    }
    calls = [
        Call(
            kernels.forward_kernel,
            (frames * row_blocks * splits * tiles.parts,),
            arguments,
            constants,
            tiles.num_warps,
            tiles.num_stages,
            tiles.registers,
        )
    ]
    if splits > 1:
        width = min(1024, triton.next_power_of_2(channels))
        arguments = {
            "p_partial": partial,
            "p_partial_softmax": partial_softmax,
            "p_output": output,
            "p_softmax": softmax,
            "rows": frames * rows,
            "splits": splits,
        }
        grid = (frames * rows, -(-channels // width))
        calls.append(Call(kernels.combine_kernel, grid, arguments, {"C": channels, "BLOCK_C": width}, 4, 1))
    return calls


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
    """The gradients, each region read once and its gradient written once; no atomics, so that two runs agree."""
    (frames, rows, _), count = queries.shape, regions.shape[1]
    grad_queries = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    grad_regions = torch.empty(regions.shape, dtype=regions.dtype, device=regions.device) if needs_regions else None
    grad_scores = queries.new_empty(frames, rows, count) if needs_position else None
    if queries.numel() * count == 0:
        zero = regions.new_zeros(regions.shape[1:]) if needs_position else None
        return Gradients(grad_queries.zero_(), None if grad_regions is None else grad_regions.zero_(), zero)
    grad_output, device = grad_output.contiguous(), device_of(regions.device)
    grad_map = None if grad_map is None else grad_map.contiguous()
    if queries.dtype == torch.float32:
        call, delta = delta_call(
            grad_output, grad_map, queries, regions, key_position, region_mask, saved.softmax, scale, layer_norm_eps,
            device,
        )  # fmt: skip
        call.run()
        delta = delta.sum(0)
    else:  # what the products round is far below the rounding of a 16-bit result: no reading of the regions for it
        delta = (grad_output.float() * saved.output.float()).sum(-1)
        if grad_map is not None:
            delta += (grad_map.float() * saved.map.float()).sum(-1)
    call, partial = backward_call(
        grad_output, grad_map, queries, regions, key_position, region_mask, saved.softmax, delta, scale,
        layer_norm_eps, grad_queries, grad_regions, grad_scores, device,
    )  # fmt: skip
    call.run()
    if partial is not grad_queries:
        grad_queries = partial.sum(0).to(queries.dtype)
    grad_position = None
    if grad_scores is not None:
        grad_position = grad_scores.flatten(0, 1).mT @ queries.flatten(0, 1)
    return Gradients(grad_queries, grad_regions, grad_position)


def delta_call(
    grad_output: Tensor,
    grad_map: Tensor | None,
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    softmax: Tensor,
    scale: float,
    layer_norm_eps: float | None,
    device: Device,
) -> tuple[Call, Tensor]:
    """The launch that takes delta from the products of the backward pass, and the tensor into which it puts a part for
    each split [splits, F, M], to be summed."""
    frames, rows = queries.shape[:2]
    queries, regions, position = _readable(queries), _readable(regions), _readable(key_position)
    tiles, _ = _backward_tiles(queries, regions, position, layer_norm_eps, device)
    row_blocks = -(-rows // tiles.block_m)
    splits, regions_a_split = splits_for(regions.shape[1], frames * row_blocks, tiles.block_n, regions.device)
    delta = _float32(queries, splits, frames, rows)
    arguments = {
        **_inputs(queries, regions, position, region_mask, scale, layer_norm_eps),
        "p_softmax": softmax,
        "p_grad_output": grad_output,
        "p_grad_map": grad_map,
        "p_delta": delta,
        "regions_a_split": regions_a_split,
        "splits": splits,
    }
    constants = {
        **_constants(tiles, queries, regions, position, region_mask, layer_norm_eps),
        "GRAD_MAP": grad_map is not None,
    }
    grid = (frames * row_blocks * splits,)
    return Call(
        kernels.delta_kernel, grid, arguments, constants, tiles.num_warps, tiles.num_stages, tiles.registers
    ), delta


def backward_call(
    grad_output: Tensor,
    grad_map: Tensor | None,
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None,
    region_mask: Tensor | None,
    softmax: Tensor,
    delta: Tensor,
    scale: float,
    layer_norm_eps: float | None,
    grad_queries: Tensor,
    grad_regions: Tensor | None,
    grad_scores: Tensor | None,
    device: Device,
) -> tuple[Call, Tensor]:
    """The launch, and the tensor into which it puts the gradient of the queries: `grad_queries`, or a part for each
    split [splits, F, M, C], to be summed."""
    frames, rows, channels = queries.shape
    queries, regions, position = _readable(queries), _readable(regions), _readable(key_position)
    tiles, one_block = _backward_tiles(queries, regions, position, layer_norm_eps, device)
    splits, regions_a_split = splits_for(regions.shape[1], frames * tiles.parts, tiles.block_n, regions.device)
    partial = grad_queries
    if splits > 1 or not one_block:
        partial = _float32(queries, splits, frames, rows, channels)
    arguments = {
        **_inputs(queries, regions, position, region_mask, scale, layer_norm_eps),
        "p_softmax": softmax,
        "p_delta": delta,
        "p_grad_output": grad_output,
        "p_grad_map": grad_map,
        "p_grad_queries": partial,
        "p_grad_regions": grad_regions,
        "p_grad_scores": grad_scores,
        "regions_a_split": regions_a_split,
        "splits": splits,
    }
    constants = {
        **_constants(tiles, queries, regions, position, region_mask, layer_norm_eps),
        "PARTS": tiles.parts,
        "GRAD_MAP": grad_map is not None,
        "GRAD_REGIONS": grad_regions is not None,
        "GRAD_SCORES": grad_scores is not None,
    }
    kernel = kernels.backward_many_rows_kernel
    if one_block:
        kernel = kernels.backward_kernel
        constants["HOLD"] = tiles.hold
    grid = (frames * splits * tiles.parts,)
    return Call(kernel, grid, arguments, constants, tiles.num_warps, tiles.num_stages, tiles.registers), partial


def _backward_tiles(
    queries: Tensor, regions: Tensor, position: Tensor | None, layer_norm_eps: float | None, device: Device
) -> tuple[Tiles, bool]:
    return backward_tiles(
        regions.dtype,
        queries.shape[1],
        regions.shape[2],
        device,
        position=position is not None,
        normalize=layer_norm_eps is not None,
    )


def _inputs(
    queries: Tensor,
    regions: Tensor,
    position: Tensor | None,
    mask: Tensor | None,
    scale: float,
    layer_norm_eps: float | None,
) -> dict[str, Any]:
    align = _alignment(queries, regions, position)
    return {
        "p_queries": queries,
        "p_regions": regions,
        "p_position": position,
        "p_mask": mask,
        "scale": scale,
        "eps": layer_norm_eps or 0.0,
        "M": queries.shape[1],
        "N": regions.shape[1],
        "stride_query_frame": queries.stride(0) // align,
        "stride_query_row": queries.stride(1) // align,
        "stride_region_frame": regions.stride(0) // align,
        "stride_region": regions.stride(1) // align,
        "stride_position": 0 if position is None else position.stride(0) // align,
        "stride_mask_frame": 0 if mask is None else mask.stride(0),
        "stride_mask": 0 if mask is None else mask.stride(1),
    }


def _constants(
    tiles: Tiles,
    queries: Tensor,
    regions: Tensor,
    position: Tensor | None,
    mask: Tensor | None,
    layer_norm_eps: float | None,
) -> dict[str, Any]:
    channels = regions.shape[-1]
    return {
        "C": channels,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_C": tiles.block_c,
        "CHUNKS": tiles.chunks(channels),
        "ALIGN": _alignment(queries, regions, position),
        "POSITION": position is not None,
        "MASK": mask is not None,
        "NORMALIZE": layer_norm_eps is not None,
        "PRECISION": matmul_precision(regions.dtype),
    }


def matmul_precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: "tf32" only where the user allows it for PyTorch's own; else "ieee"."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _readable(tensor: Any) -> Any:
    """The tensor itself where neighbouring channels are neighbours in memory, which is all that a kernel asks for."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _alignment(*tensors: Tensor | None) -> int:
    """The largest power of two, up to 16 bytes in elements, that divides every stride but that of the channels."""
    present = [tensor for tensor in tensors if tensor is not None]
    align = 16 // present[0].element_size()
    while any(stride % align for tensor in present for stride in tensor.stride()[:-1]):
        align //= 2
    return align


def _float32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
