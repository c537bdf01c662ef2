"""The "triton" backend: both passes of the multilevel tracklet contrastive loss, and the launches they consist of.

Launches can be created on meta tensors, to compile the kernels without a GPU (:func:`variants`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor

from art_kernels._core.launch import (
    DTYPES,
    ConfigRow,
    DeviceSpec,
    KernelLaunch,
    alignment,
    chunk_width,
    contiguous_last_dim,
    device_spec,
    device_unsupported_reason,
    dot_precision,
    float32_like,
    meta_tensor,
    num_sms,
)
from art_kernels.tracklet_contrast import kernels
from art_kernels.tracklet_contrast.configs import (
    MAX_TRACKLETS,
    MEAN_CHANNELS,
    MEAN_FRAMES,
    TERMS_PROGRAMS,
    WEIGH_ELEMENTS,
    find_config,
)
from art_kernels.tracklet_contrast.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.levels_kernel, triton.runtime.JITFunction)
SAVED_OUTPUTS = ("scale", "spatial_grad", "temporal_grad", "tracklet_grad")


def unsupported_reason(responses: Tensor) -> str | None:
    """Return why the kernels do not support `responses`, or None if they do."""
    if responses.dim() == 4 and responses.shape[2] > MAX_TRACKLETS:
        return f"the kernels compare at most {MAX_TRACKLETS} tracklets, responses has {responses.shape[2]}"
    return device_unsupported_reason(responses, INTERPRETED)


def opt_in(responses: Tensor) -> bool:
    """Return whether `responses` would be computed in Triton's interpreter, which is for tests."""
    return responses.device.type != "cuda"


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
    """Return terms [3], scale [3] and the gradients of the three sums, each empty without `gradients`.

    `scale` is the factor of each term's sum that makes it a mean. spatial_grad and temporal_grad are [B,T,K,C], and
    tracklet_grad is [B,K,C] (with respect to the pooled tracklets), or [B,T,K,C] if flattened. Responses are read once,
    and once more if they are pooled here.
    """
    responses, aggregated = contiguous_last_dim(responses), contiguous_last_dim(aggregated)
    arguments = Arguments(responses, aggregated, valid, margin, absolute, clamp, flattened, gradients)
    terms, scale, *saved = fake(arguments)
    if responses.numel() == 0:
        return terms.zero_(), scale.zero_(), *saved
    spatial_grad, temporal_grad, tracklet_grad = saved if gradients else (None, None, None)
    rows = Rows(responses, valid, device_spec(responses.device))
    launch, partial = levels_launch(rows, arguments, spatial_grad, temporal_grad, temporal=True)
    launch.run()
    if flattened:
        launch, tracklet_partial = flattened_launch(rows, arguments, tracklet_grad)
    else:
        pooled = _pool(rows, aggregated)
        launch, tracklet_partial = levels_launch(pooled, arguments, tracklet_grad, None, temporal=False)
    launch.run()
    terms_launch(partial, tracklet_partial, responses.shape[2], terms, scale).run()
    return terms, scale, *saved


def fake(arguments: Arguments) -> tuple[Tensor, ...]:
    """Return uninitialized outputs of `forward`."""
    responses, aggregated = arguments.responses, arguments.aggregated
    terms = (float32_like(responses, 3), float32_like(responses, 3))
    if not arguments.gradients:
        return *terms, *(responses.new_empty(0) for _ in range(3))
    batch, _, count, channels = responses.shape
    tracklet_shape = responses.shape if arguments.flattened else (batch, count, channels)
    tracklet_dtype = torch.float32 if aggregated is None and not arguments.flattened else responses.dtype
    frame_grads = (responses.new_empty(responses.shape), responses.new_empty(responses.shape))
    return *terms, *frame_grads, responses.new_empty(tracklet_shape, dtype=tracklet_dtype)


def backward(
    grads: Sequence[Tensor], arguments: Arguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return weighted sums of the gradients that the forward pass saved."""
    responses, aggregated, valid, _, _, _, flattened, _ = arguments
    scale, spatial_grad, temporal_grad, tracklet_grad = saved
    grad_terms = grads[0].contiguous()
    needs_responses, needs_aggregated = needs
    grad_responses = grad_aggregated = None
    if needs_aggregated:
        grad_aggregated = (tracklet_grad.float() * (grad_terms[2] * scale[2])).to(tracklet_grad.dtype)
    if needs_responses:
        grad_responses = torch.empty(responses.shape, dtype=responses.dtype, device=responses.device)
        frame_weight = None if aggregated is not None or flattened else 1 / _num_frames(responses, valid)
        if responses.numel() > 0:
            weigh_launch(
                grad_terms, scale, spatial_grad, temporal_grad, tracklet_grad if aggregated is None else None,
                frame_weight, valid, grad_responses,
            ).run()  # fmt: skip
    return grad_responses, grad_aggregated


def _pool(rows: Rows, aggregated: Tensor | None) -> Rows:
    """Return the tracklets as rows of one frame, which is valid if the video has a valid frame."""
    batch, _, count, channels = rows.responses.shape
    if aggregated is None:
        aggregated = float32_like(rows.responses, batch, count, channels)
        mean_launch(rows, aggregated).run()
    valid = None if rows.valid is None else rows.valid.any(1, keepdim=True)
    return Rows(aggregated[:, None], valid, rows.device)


def _num_frames(responses: Tensor, valid: Tensor | None) -> Float[Tensor, " b"]:
    """Return the number of valid frames of each video, at least 1."""
    if valid is None:
        return torch.full(responses.shape[:1], responses.shape[1], dtype=torch.float32, device=responses.device)
    return valid.sum(1, dtype=torch.float32).clamp(min=1)


class Rows(NamedTuple):
    """Input of a kernel: responses [B,T,K,C] (last dimension contiguous), valid frames [B,T], and the device."""

    responses: Tensor
    valid: Tensor | None
    device: DeviceSpec

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that all kernels share."""
        align = alignment(self.responses)
        video, frame, tracklet, _ = (stride // align for stride in self.responses.stride())
        return {
            "p_responses": self.responses,
            "T": self.responses.shape[1],
            "K": self.responses.shape[2],
            "stride_video": video,
            "stride_frame": frame,
            "stride_tracklet": tracklet,
            **_valid_arguments(self.valid),
        }

    def constants(self, max_block_c: int) -> dict[str, Any]:
        """Return the constants that all kernels share."""
        channels = self.responses.shape[-1]
        width = chunk_width(channels, max_block_c)
        return {
            "C": channels,
            "BLOCK_C": width,
            "CHUNKS": -(-channels // width),
            "ALIGN": alignment(self.responses),
            "VALID": self.valid is not None,
        }

    def config(self) -> ConfigRow:
        """Return the block sizes."""
        return find_config(self.responses.dtype, self.responses.shape[2], self.device)

    def product_launch(
        self, kernel: Any, programs: int, arguments: dict[str, Any], constants: dict[str, Any]
    ) -> KernelLaunch:
        """Return the launch of a kernel that multiplies rows with each other."""
        config = self.config()
        constants = {
            **self.constants(config.max_block_c),
            "BLOCK_R": config.block_m,
            "PRECISION": dot_precision(self.responses.dtype),
            **constants,
        }
        arguments = {**self.arguments(), **arguments}
        return KernelLaunch(kernel, (programs,), arguments, constants, config.num_warps, 1, config.maxnreg)


def mean_launch(rows: Rows, mean: Tensor) -> KernelLaunch:
    """Return the launch that fills `mean` [B,K,C], float32."""
    batch, _, count, _ = rows.responses.shape
    constants = {**rows.constants(MEAN_CHANNELS), "BLOCK_T": MEAN_FRAMES}
    grid = (batch * count * constants["CHUNKS"],)
    return KernelLaunch(kernels.mean_kernel, grid, {**rows.arguments(), "p_mean": mean}, constants)


def levels_launch(
    rows: Rows, options: Arguments, spatial_grad: Tensor | None, temporal_grad: Tensor | None, *, temporal: bool
) -> tuple[KernelLaunch, Tensor]:
    """Return the launch that fills the gradients [B,T,K,C], if any, and the tensor for its sums [programs,4].

    Without `temporal` it computes the spatial term only.
    """
    batch, frames, count, _ = rows.responses.shape
    frames_per_block = min(rows.config().block_m // count, frames)
    programs = batch * -(-frames // frames_per_block)
    partial = float32_like(rows.responses, programs, 4)
    arguments = {
        "p_spatial_grad": spatial_grad,
        "p_temporal_grad": temporal_grad,
        "p_partial": partial,
        "margin": options.margin,
        "frames_per_block": frames_per_block,
    }
    constants = {
        "TEMPORAL": temporal,
        "ABSOLUTE": options.absolute,
        "CLAMP": options.clamp,
        "GRADIENTS": spatial_grad is not None,
    }
    return rows.product_launch(kernels.levels_kernel, programs, arguments, constants), partial


def flattened_launch(rows: Rows, options: Arguments, tracklet_grad: Tensor | None) -> tuple[KernelLaunch, Tensor]:
    """Return the launch that fills the gradient [B,T,K,C], if any, and the tensor for its sums [programs,4]."""
    batch, frames, *_ = rows.responses.shape
    wanted = 1
    if tracklet_grad is not None:
        wanted = max(1, min(num_sms(rows.responses.device) // max(batch, 1), frames))
    frames_per_block = -(-frames // wanted)
    splits = -(-frames // frames_per_block)
    partial = float32_like(rows.responses, batch * splits, 4)
    arguments = {
        "p_tracklet_grad": tracklet_grad,
        "p_partial": partial,
        "frames_per_block": frames_per_block,
        "splits": splits,
    }
    constants = {"CLAMP": options.clamp, "GRADIENTS": tracklet_grad is not None}
    return rows.product_launch(kernels.flattened_kernel, batch * splits, arguments, constants), partial


def terms_launch(partial: Tensor, tracklet_partial: Tensor, count: int, terms: Tensor, scale: Tensor) -> KernelLaunch:
    """Return the launch that fills `terms` [3] and `scale` [3]."""
    arguments = {
        "p_partial": partial,
        "p_tracklet_partial": tracklet_partial,
        "p_terms": terms,
        "p_scale": scale,
        "programs": len(partial),
        "tracklet_programs": len(tracklet_partial),
        "K": count,
    }
    return KernelLaunch(kernels.terms_kernel, (1,), arguments, {"BLOCK": TERMS_PROGRAMS})


def weigh_launch(
    grad_terms: Tensor,
    scale: Tensor,
    spatial_grad: Tensor,
    temporal_grad: Tensor,
    tracklet_grad: Tensor | None,
    frame_weight: Tensor | None,
    valid: Tensor | None,
    grad: Tensor,
) -> KernelLaunch:
    """Return the launch that fills `grad` [B,T,K,C].

    `tracklet_grad` is None, [B,T,K,C], or, with the `frame_weight` [B] of each valid frame, [B,K,C].
    """
    batch, frames, count, channels = grad.shape
    size = count * channels
    arguments = {
        "p_spatial_grad": spatial_grad,
        "p_temporal_grad": temporal_grad,
        "p_tracklet_grad": tracklet_grad,
        "p_grad_terms": grad_terms,
        "p_scale": scale,
        "p_frame_weight": frame_weight,
        **_valid_arguments(valid),
        "p_grad": grad,
        "T": frames,
    }
    layout = "none" if tracklet_grad is None else "frames" if frame_weight is None else "videos"
    constants = {
        "SIZE": size,
        "BLOCK": WEIGH_ELEMENTS,
        "TRACKLET_GRAD": layout,
        "VALID": valid is not None and layout == "videos",
    }
    return KernelLaunch(kernels.weigh_kernel, (batch * frames * -(-size // WEIGH_ELEMENTS),), arguments, constants)


def _valid_arguments(valid: Tensor | None) -> dict[str, Any]:
    strides = (0, 0) if valid is None else valid.stride()
    return {"p_valid": valid, "stride_valid_video": strides[0], "stride_valid_frame": strides[1]}


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Yield the kernel variants of a device, such as "levels.bf16.c256.k32.plain", as launches on meta tensors."""
    partial = meta_tensor(torch.float32, 4096, 4)
    yield "terms", terms_launch(partial, partial, 2, partial, partial)
    for dtype_name, dtype in DTYPES.items():
        for channels in (96, 256, 1000, 1024):  # with and without partly filled chunks
            for count in (2, 32):  # one per row of the table
                for option in ("plain", "all"):
                    for kernel, launch in _variant_launches(dtype, channels, count, option == "all", device).items():
                        yield f"{kernel}.{dtype_name}.c{channels}.k{count}.{option}", launch


def _variant_launches(
    dtype: torch.dtype, channels: int, count: int, all_options: bool, device: DeviceSpec
) -> dict[str, KernelLaunch]:
    responses = meta_tensor(dtype, 64, 64, count, channels)
    rows = Rows(responses, meta_tensor(torch.bool, 64, 64) if all_options else None, device)
    tracklets = meta_tensor(dtype if all_options else torch.float32, 64, 1, count, channels)
    pooled = Rows(tracklets, meta_tensor(torch.bool, 64, 1) if all_options else None, device)
    options = Arguments(responses, None, rows.valid, 0.6, all_options, all_options, False, True)
    mean = meta_tensor(torch.float32, 64, count, channels)
    weight = meta_tensor(torch.float32, 64)
    launches = {
        "levels": levels_launch(rows, options, responses, responses, temporal=True)[0],
        "values": levels_launch(rows, options, None, None, temporal=True)[0],
        "tracklets": levels_launch(pooled, options, tracklets, None, temporal=False)[0],
        "flattened": flattened_launch(rows, options, responses)[0],
        "weigh": weigh_launch(weight, weight, responses, responses, mean, weight, rows.valid, responses),
    }
    if count == 2:  # it does not depend on the number of tracklets
        launches["mean"] = mean_launch(rows, mean)
    return launches
