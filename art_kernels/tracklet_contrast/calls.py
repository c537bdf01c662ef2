"""The launches of the contrast kernels: which variant, how many programs, which buffers.

On meta tensors they can be made, and compiled, not run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_kernels._core.launch import KernelLaunch, alignment, chunk_width, dot_precision, contiguous_last_dim
from art_kernels._core.launch import DeviceSpec, num_sms
from art_kernels.tracklet_contrast import kernels
from art_kernels.tracklet_contrast.passes import Options
from art_kernels.tracklet_contrast.tiles import (
    MEAN_FRAMES,
    MEAN_WIDEST,
    TERMS_PROGRAMS,
    WEIGH_NUMBERS,
    Tiles,
    tiles_for,
)


class Rows(NamedTuple):
    """What a kernel reads, rows [B,T,K,C] and which frames are there [B,T]; and the kind of device that runs it."""

    responses: Tensor
    valid: Tensor | None
    device: DeviceSpec

    def arguments(self) -> dict[str, Any]:
        """Of every kernel that reads them."""
        rows = contiguous_last_dim(self.responses)
        align = alignment(rows)
        video, frame, tracklet, _ = (stride // align for stride in rows.stride())
        return {
            "p_responses": rows,
            "T": rows.shape[1],
            "K": rows.shape[2],
            "stride_video": video,
            "stride_frame": frame,
            "stride_tracklet": tracklet,
            **_validity(self.valid),
        }

    def constants(self, widest: int) -> dict[str, Any]:
        """Of every kernel that reads them, at compile time."""
        channels = self.responses.shape[-1]
        width = chunk_width(channels, widest)
        return {
            "C": channels,
            "BLOCK_C": width,
            "CHUNKS": -(-channels // width),
            "ALIGN": alignment(contiguous_last_dim(self.responses)),
            "VALID": self.valid is not None,
        }

    def products(self) -> dict[str, Any]:
        """Of the kernels that multiply rows with each other, at compile time."""
        tiles, precision = self.tiles(), dot_precision(self.responses.dtype)
        return {**self.constants(tiles.widest), "BLOCK_R": tiles.block_r, "PRECISION": precision}

    def tiles(self) -> Tiles:
        """The sizes in the table."""
        return tiles_for(self.responses.dtype, self.responses.shape[2], self.device)


def mean_call(rows: Rows, mean: Tensor) -> KernelLaunch:
    """The launch that fills `mean` [B,K,C], float32."""
    batch, _, count, _ = rows.responses.shape
    constants = {**rows.constants(MEAN_WIDEST), "BLOCK_T": MEAN_FRAMES}
    grid = (batch * count * constants["CHUNKS"],)
    return KernelLaunch(kernels.mean_kernel, grid, {**rows.arguments(), "p_mean": mean}, constants, 4, 1)


def levels_call(
    rows: Rows, options: Options, within: Tensor | None, across: Tensor | None, *, temporal: bool
) -> tuple[KernelLaunch, Tensor]:
    """The launch that fills the gradients `within` and `across` [B,T,K,C] where they are given, and the tensor into
    which it puts the sums [programs, 4]; without `temporal` the spatial term alone."""
    batch, frames, count, _ = rows.responses.shape
    tiles = rows.tiles()
    frames_a_block = min(tiles.frames(count), frames)
    programs = batch * -(-frames // frames_a_block)
    partial = _partial(rows, programs)
    arguments = {
        **rows.arguments(),
        "p_within": within,
        "p_across": across,
        "p_partial": partial,
        "margin": options.margin,
        "frames_a_block": frames_a_block,
    }
    constants = {
        **rows.products(),
        "TEMPORAL": temporal,
        "ABSOLUTE": options.absolute,
        "CLAMP": options.clamp,
        "GRADIENTS": within is not None,
    }
    return KernelLaunch(kernels.levels_kernel, (programs,), arguments, constants, *tiles.of_a_program()), partial


def flattened_call(rows: Rows, options: Options, whole: Tensor | None) -> tuple[KernelLaunch, Tensor]:
    """The launch that fills the gradient `whole` [B,T,K,C] where it is given, and the tensor into which it puts the
    sums [programs, 4]."""
    batch, frames, *_ = rows.responses.shape
    tiles = rows.tiles()
    wanted = max(1, min(num_sms(rows.responses.device) // max(batch, 1), frames)) if whole is not None else 1
    frames_a_part = -(-frames // wanted)
    parts = -(-frames // frames_a_part)
    partial = _partial(rows, batch * parts)
    arguments = {
        **rows.arguments(),
        "p_whole": whole,
        "p_partial": partial,
        "frames_a_block": frames_a_part,
        "parts": parts,
    }
    constants = {**rows.products(), "CLAMP": options.clamp, "GRADIENTS": whole is not None}
    return KernelLaunch(kernels.flattened_kernel, (batch * parts,), arguments, constants, *tiles.of_a_program()), partial


def terms_call(partial: Tensor, tracklet_partial: Tensor, count: int, terms: Tensor, scale: Tensor) -> KernelLaunch:
    """The launch that fills `terms` [3] and `scale` [3]."""
    arguments = {
        "p_partial": partial,
        "p_tracklet_partial": tracklet_partial,
        "p_terms": terms,
        "p_scale": scale,
        "programs": len(partial),
        "tracklet_programs": len(tracklet_partial),
        "K": count,
    }
    return KernelLaunch(kernels.terms_kernel, (1,), arguments, {"BLOCK": TERMS_PROGRAMS}, 4, 1)


def weigh_call(
    grad_terms: Tensor,
    scale: Tensor,
    within: Tensor,
    across: Tensor,
    whole: Tensor,
    share: Tensor | None,
    valid: Tensor | None,
    grad: Tensor,
) -> KernelLaunch:
    """The launch that fills `grad` [B,T,K,C]. `whole` is [B,T,K,C], or with the `share` [B] of each valid frame
    [B,K,C]; a `whole` without elements adds nothing."""
    batch, frames, count, channels = grad.shape
    size = count * channels
    arguments = {
        "p_within": within,
        "p_across": across,
        "p_whole": whole,
        "p_grad_terms": grad_terms,
        "p_scale": scale,
        "p_share": share,
        **_validity(valid),
        "p_grad": grad,
        "T": frames,
    }
    kind = "none" if whole.numel() == 0 else "frames" if share is None else "videos"
    constants = {"SIZE": size, "BLOCK": WEIGH_NUMBERS, "WHOLE": kind, "VALID": valid is not None and kind == "videos"}
    grid = (batch * frames * -(-size // WEIGH_NUMBERS),)
    return KernelLaunch(kernels.weigh_kernel, grid, arguments, constants, 4, 1)


def _partial(rows: Rows, programs: int) -> Tensor:
    return torch.empty((programs, 4), dtype=torch.float32, device=rows.responses.device)


def _validity(valid: Tensor | None) -> dict[str, Any]:
    """Where to read whether a frame is there."""
    strides = (0, 0) if valid is None else valid.stride()
    return {"p_valid": valid, "stride_valid_video": strides[0], "stride_valid_frame": strides[1]}
