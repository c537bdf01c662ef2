"""The launches of the Triton kernels: which variant, how many programs, which buffers.

On meta tensors they can be made, and compiled, not run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from torch import Tensor

from art_kernels._core.launch import KernelLaunch, alignment, float32_like, dot_precision, contiguous_last_dim
from art_kernels._core.launch import DeviceSpec, choose_splits
from art_kernels.region_attention import kernels
from art_kernels.region_attention.tiles import Tiles, backward_tiles, forward_tiles


class Inputs(NamedTuple):
    """What both passes read: queries [F,M,C], regions [F,N,C], key_position [N,C], region_mask [F,N]."""

    queries: Tensor
    regions: Tensor
    key_position: Tensor | None
    region_mask: Tensor | None
    scale: float
    layer_norm_eps: float | None

    def forward_tiles(self, device: DeviceSpec) -> Tiles:
        """The sizes in the table."""
        return forward_tiles(self.regions.dtype, self.queries.shape[1], self.regions.shape[2], device, **self._more())

    def backward_tiles(self, device: DeviceSpec) -> tuple[Tiles, bool]:
        """The sizes in the table, and whether one block holds all rows."""
        return backward_tiles(self.regions.dtype, self.queries.shape[1], self.regions.shape[2], device, **self._more())

    def arguments(self) -> dict[str, Any]:
        """Of every kernel."""
        queries, regions, position = self._readable()
        mask, align = self.region_mask, alignment(queries, regions, position)
        return {
            "p_queries": queries,
            "p_regions": regions,
            "p_position": position,
            "p_mask": mask,
            "scale": self.scale,
            "eps": self.layer_norm_eps or 0.0,
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

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """Of every kernel, at compile time."""
        channels = self.regions.shape[-1]
        return {
            "C": channels,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_C": tiles.block_c,
            "CHUNKS": tiles.chunks(channels),
            "ALIGN": alignment(*self._readable()),
            "POSITION": self.key_position is not None,
            "MASK": self.region_mask is not None,
            "NORMALIZE": self.layer_norm_eps is not None,
            "PRECISION": dot_precision(self.regions.dtype),
        }

    def _more(self) -> dict[str, bool]:
        return {"position": self.key_position is not None, "normalize": self.layer_norm_eps is not None}

    def _readable(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return contiguous_last_dim(self.queries), contiguous_last_dim(self.regions), contiguous_last_dim(self.key_position)


def forward_calls(inputs: Inputs, tiles: Tiles, output: Tensor, softmax: Tensor, scores: Tensor | None) -> list[KernelLaunch]:
    """The launches that fill `output` [F,M,C], `softmax` [F,M,2] and, where it is given, `scores` [F,M,N]."""
    (frames, rows, channels), (_, count, _) = inputs.queries.shape, inputs.regions.shape
    row_blocks = -(-rows // tiles.block_m)
    programs = frames * row_blocks * tiles.parts
    splits, regions_a_split = choose_splits(count, programs, tiles.block_n, inputs.regions.device)
    partial, partial_softmax = output, softmax
    if splits > 1:
        partial = float32_like(output, splits, frames, rows, channels)
        partial_softmax = float32_like(output, splits, frames, rows, 2)
    arguments = {
        **inputs.arguments(),
        "p_output": partial,
        "p_softmax": partial_softmax,
        "p_scores": scores,
        "regions_a_split": regions_a_split,
        "splits": splits,
    }
    constants = {
        **inputs.constants(tiles),
        "PARTS": tiles.parts,
        "SCORES": scores is not None,
        "HOLD": tiles.hold,
    }
    calls = [KernelLaunch(kernels.forward_kernel, (programs * splits,), arguments, constants, *tiles.of_a_program())]
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
        calls.append(KernelLaunch(kernels.combine_kernel, grid, arguments, {"C": channels, "BLOCK_C": width}, 4, 1))
    return calls


def delta_call(
    inputs: Inputs, tiles: Tiles, softmax: Tensor, grad_output: Tensor, grad_map: Tensor | None
) -> tuple[KernelLaunch, Tensor]:
    """The launch that takes delta from the products of the backward pass, whose sizes it has to have, and the tensor
    into which it puts a part for each split [splits, F, M], to be summed."""
    (frames, rows, _), (_, count, _) = inputs.queries.shape, inputs.regions.shape
    programs = frames * -(-rows // tiles.block_m)
    splits, regions_a_split = choose_splits(count, programs, tiles.block_n, inputs.regions.device)
    delta = float32_like(grad_output, splits, frames, rows)
    arguments = {
        **inputs.arguments(),
        "p_softmax": softmax,
        "p_grad_output": grad_output,
        "p_grad_map": grad_map,
        "p_delta": delta,
        "regions_a_split": regions_a_split,
        "splits": splits,
    }
    constants = {**inputs.constants(tiles), "GRAD_MAP": grad_map is not None}
    return KernelLaunch(kernels.delta_kernel, (programs * splits,), arguments, constants, *tiles.of_a_program()), delta


def backward_call(
    inputs: Inputs,
    tiles: Tiles,
    one_block: bool,
    softmax: Tensor,
    delta: Tensor,
    grad_output: Tensor,
    grad_map: Tensor | None,
    grad_queries: Tensor,
    grad_regions: Tensor | None,
    grad_scores: Tensor | None,
) -> tuple[KernelLaunch, Tensor]:
    """The launch, and the tensor into which it puts the gradient of the queries: `grad_queries`, or a part for each
    split [splits, F, M, C], to be summed."""
    (frames, rows, channels), (_, count, _) = inputs.queries.shape, inputs.regions.shape
    programs = frames * tiles.parts
    splits, regions_a_split = choose_splits(count, programs, tiles.block_n, inputs.regions.device)
    partial = grad_queries
    if splits > 1 or not one_block:
        partial = float32_like(grad_queries, splits, frames, rows, channels)
    arguments = {
        **inputs.arguments(),
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
        **inputs.constants(tiles),
        "PARTS": tiles.parts,
        "GRAD_MAP": grad_map is not None,
        "GRAD_REGIONS": grad_regions is not None,
        "GRAD_SCORES": grad_scores is not None,
    }
    kernel = kernels.backward_many_rows_kernel
    if one_block:
        kernel = kernels.backward_kernel
        constants["HOLD"] = tiles.hold
    return KernelLaunch(kernel, (programs * splits,), arguments, constants, *tiles.of_a_program()), partial
