"""The launches of the Triton kernels: which variant, how many programs, which buffers.

On meta tensors they can be made, and compiled, not run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from art_kernels._core.launch import KernelLaunch, alignment, float32_like, dot_precision, contiguous_last_dim
from art_kernels._core.launch import DeviceSpec
from art_kernels.tracklet_pooling import kernels
from art_kernels.tracklet_pooling.tiles import Tiles, tiles_for, tracklets_a_program


class Inputs(NamedTuple):
    """What both passes read: responses [B,T,K,C], semantics [B,J,C], valid [B,T]."""

    responses: Tensor
    semantics: Tensor
    temperature: float
    valid: Tensor | None

    def tiles(self, kernel: str, device: DeviceSpec) -> Tiles:
        """The sizes in the table, for "forward" or "backward"."""
        _, frames, _, channels = self.responses.shape
        return tiles_for(kernel, self.responses.dtype, frames, self.semantics.shape[1], channels, device)

    def arguments(self) -> dict[str, Any]:
        """Of every kernel."""
        responses, semantics, valid = contiguous_last_dim(self.responses), contiguous_last_dim(self.semantics), self.valid
        align = alignment(responses, semantics)
        return {
            "p_responses": responses,
            "p_semantics": semantics,
            "p_valid": valid,
            "scale": 1.0 / self.temperature,
            "T": responses.shape[1],
            "K": responses.shape[2],
            "J": semantics.shape[1],
            "stride_video": responses.stride(0) // align,
            "stride_frame": responses.stride(1) // align,
            "stride_tracklet": responses.stride(2) // align,
            "stride_semantics": semantics.stride(0) // align,
            "stride_semantic": semantics.stride(1) // align,
            "stride_valid_video": 0 if valid is None else valid.stride(0),
            "stride_valid": 0 if valid is None else valid.stride(1),
        }

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """Of every kernel, at compile time."""
        _, frames, _, channels = self.responses.shape
        one_tile = frames <= tiles.block_t
        return {
            "C": channels,
            "BLOCK_T": tiles.block_t,
            "BLOCK_J": tiles.block_j,
            "BLOCK_C": tiles.block_c,
            "CHUNKS": tiles.chunks(channels),
            "ALIGN": alignment(contiguous_last_dim(self.responses), contiguous_last_dim(self.semantics)),
            "VALID": self.valid is not None,
            "ONE_TILE": one_tile,
            "HOLD": one_tile and tiles.chunks(channels) == 1,
            "PRECISION": dot_precision(self.responses.dtype),
        }


def forward_call(inputs: Inputs, tiles: Tiles, saliency: Tensor) -> tuple[KernelLaunch, Tensor]:
    """The launch that fills `saliency` [B,T,K], and the tensor into which it puts the aggregated tracklets [B,K,C]: in
    float32 where it adds up several tiles."""
    videos, frames, count, channels = inputs.responses.shape
    if frames <= tiles.block_t:
        aggregated = saliency.new_empty(videos, count, channels)
    else:
        aggregated = float32_like(saliency, videos, count, channels)
    arguments = {**inputs.arguments(), "p_aggregated": aggregated, "p_saliency": saliency}
    return KernelLaunch(
        kernels.forward_kernel,
        (videos * count,),
        arguments,
        inputs.constants(tiles),
        tiles.num_warps,
        1,
        tiles.registers,
    ), aggregated


def backward_call(
    inputs: Inputs,
    tiles: Tiles,
    grad_aggregated: Tensor,
    grad_saliency: Tensor | None,
    grad_responses: Tensor | None,
    needs_semantics: bool,
) -> tuple[KernelLaunch, Tensor | None]:
    """The launch that fills `grad_responses`, and the tensor into which it puts parts of the gradient of the semantics
    [B,G,J,C] in float32, to be summed; None where that is not needed."""
    videos, _, count, channels = inputs.responses.shape
    a_program = tracklets_a_program(videos, count, inputs.responses.device)
    groups = -(-count // a_program)
    parts = None
    if needs_semantics:
        parts = float32_like(inputs.semantics, videos, groups, inputs.semantics.shape[1], channels)
    arguments = {
        **inputs.arguments(),
        "p_grad_aggregated": grad_aggregated,
        "p_grad_saliency": grad_saliency,
        "p_grad_responses": grad_responses,
        "p_grad_semantics": parts,
        "tracklets_a_program": a_program,
    }
    constants = {
        **inputs.constants(tiles),
        "GRAD_SALIENCY": grad_saliency is not None,
        "GRAD_RESPONSES": grad_responses is not None,
        "GRAD_SEMANTICS": needs_semantics,
    }
    return KernelLaunch(
        kernels.backward_kernel, (videos * groups,), arguments, constants, tiles.num_warps, 1, tiles.registers
    ), parts
