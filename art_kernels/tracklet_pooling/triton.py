"""The "triton" backend: both passes of text-guided tracklet pooling, one launch each.

Launches can be created on meta tensors, to compile the kernels without a GPU (:func:`variants`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from art_kernels._core.launch import (
    DTYPES,
    DeviceSpec,
    KernelLaunch,
    LaunchConfig,
    alignment,
    contiguous_last_dim,
    device_spec,
    device_unsupported_reason,
    dot_precision,
    float32_like,
    meta_tensor,
)
from art_kernels.tracklet_pooling import kernels
from art_kernels.tracklet_pooling.configs import MAX_SEMANTICS, find_config, tracklets_per_program
from art_kernels.tracklet_pooling.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)


def unsupported_reason(semantics: Tensor) -> str | None:
    """Return why the kernels do not support `semantics` [B,J,C], or None if they do."""
    count = semantics.shape[1] if semantics.dim() > 1 else 0  # `python -m art_kernels` passes a tensor of one dimension
    if count > MAX_SEMANTICS:
        return f"the kernels support at most {MAX_SEMANTICS} semantics per video, semantics has {count}"
    return device_unsupported_reason(semantics, INTERPRETED)


def opt_in(semantics: Tensor) -> bool:
    """Return whether `semantics` would be computed in Triton's interpreter, which is for tests."""
    return semantics.device.type != "cuda"


def forward(
    responses: Float[Tensor, "b t k c"],
    semantics: Float[Tensor, "b j c"],
    temperature: float,
    valid: Bool[Tensor, "b t"] | None,
) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b t k"]]:
    """Return the aggregated tracklets and the saliency, in the dtype of the responses."""
    arguments = Arguments(contiguous_last_dim(responses), contiguous_last_dim(semantics), temperature, valid)
    saliency = responses.new_empty(responses.shape[:3])
    if saliency.numel() == 0:
        return fake(arguments)
    launch, aggregated = forward_launch(arguments, device_spec(responses.device), saliency)
    launch.run()
    return aggregated.to(responses.dtype), saliency


def fake(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return uninitialized outputs of `forward`."""
    videos, frames, count, channels = arguments.responses.shape
    new_empty = arguments.responses.new_empty
    return new_empty(videos, count, channels), new_empty(videos, frames, count)


def backward(
    grads: Sequence[Tensor | None], arguments: Arguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of responses and semantics."""
    responses, semantics = contiguous_last_dim(arguments.responses), contiguous_last_dim(arguments.semantics)
    arguments = arguments._replace(responses=responses, semantics=semantics)
    grad_aggregated, grad_saliency = grads
    needs_responses, needs_semantics = needs
    grad_responses = None
    if needs_responses:
        grad_responses = torch.empty(responses.shape, dtype=responses.dtype, device=responses.device)
    if responses.numel() == 0:
        return grad_responses, torch.zeros_like(semantics) if needs_semantics else None
    if grad_aggregated is None:
        grad_aggregated = responses.new_zeros(responses.shape[0], *responses.shape[2:])
    launch, partial = backward_launch(
        arguments, device_spec(responses.device), grad_aggregated.contiguous(),
        None if grad_saliency is None else grad_saliency.contiguous(), grad_responses, needs_semantics,
    )  # fmt: skip
    launch.run()
    return grad_responses, None if partial is None else partial.sum(1).to(semantics.dtype)


def _launch_config(kernel: str, inputs: Arguments, device: DeviceSpec) -> LaunchConfig:
    _, frames, _, channels = inputs.responses.shape
    return find_config(kernel, inputs.responses.dtype, frames, inputs.semantics.shape[1], channels, device)


def _shared_arguments(inputs: Arguments) -> dict[str, Any]:
    """Return the arguments of both kernels."""
    responses, semantics = inputs.responses, inputs.semantics
    align = alignment(responses, semantics)
    valid = inputs.valid
    return {
        "p_responses": responses,
        "p_semantics": semantics,
        "p_valid": valid,
        "scale": 1.0 / inputs.temperature,
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


def _shared_constants(inputs: Arguments, config: LaunchConfig) -> dict[str, Any]:
    """Return the compile-time constants of both kernels."""
    _, frames, _, channels = inputs.responses.shape
    one_tile, chunks = frames <= config.block_m, config.chunks(channels)
    return {
        "C": channels,
        "BLOCK_T": config.block_m,
        "BLOCK_J": config.block_n,
        "BLOCK_C": config.block_c,
        "CHUNKS": chunks,
        "ALIGN": alignment(inputs.responses, inputs.semantics),
        "VALID": inputs.valid is not None,
        "ONE_TILE": one_tile,
        "KEEP_IN_REGS": one_tile and chunks == 1,
        "PRECISION": dot_precision(inputs.responses.dtype),
    }


def forward_launch(inputs: Arguments, device: DeviceSpec, saliency: Tensor) -> tuple[KernelLaunch, Tensor]:
    """Return the launch that fills `saliency` [B,T,K], and the tensor for the aggregated tracklets [B,K,C].

    The latter is float32 if several tiles are accumulated in it.
    """
    config = _launch_config("forward", inputs, device)
    videos, frames, count, channels = inputs.responses.shape
    dtype = saliency.dtype if frames <= config.block_m else torch.float32
    aggregated = saliency.new_empty((videos, count, channels), dtype=dtype)
    arguments = {**_shared_arguments(inputs), "p_aggregated": aggregated, "p_saliency": saliency}
    constants = _shared_constants(inputs, config)
    return KernelLaunch(kernels.forward_kernel, (videos * count,), arguments, constants, *config.options()), aggregated


def backward_launch(
    inputs: Arguments,
    device: DeviceSpec,
    grad_aggregated: Tensor,
    grad_saliency: Tensor | None,
    grad_responses: Tensor | None,
    needs_semantics: bool,
) -> tuple[KernelLaunch, Tensor | None]:
    """Return the launch that fills `grad_responses`, and the tensor for partial gradients of the semantics.

    The partial gradients [B,G,J,C] in float32 are to be summed over G; None if they are not needed.
    """
    config = _launch_config("backward", inputs, device)
    videos, _, count, channels = inputs.responses.shape
    tracklets = tracklets_per_program(videos, count, inputs.responses.device)
    groups = -(-count // tracklets)
    partial = None
    if needs_semantics:
        partial = float32_like(inputs.semantics, videos, groups, inputs.semantics.shape[1], channels)
    arguments = {
        **_shared_arguments(inputs),
        "p_grad_aggregated": grad_aggregated,
        "p_grad_saliency": grad_saliency,
        "p_grad_responses": grad_responses,
        "p_grad_semantics": partial,
        "tracklets_per_program": tracklets,
    }
    constants = {
        **_shared_constants(inputs, config),
        "GRAD_SALIENCY": grad_saliency is not None,
        "GRAD_RESPONSES": grad_responses is not None,
        "GRAD_SEMANTICS": needs_semantics,
    }
    return KernelLaunch(kernels.backward_kernel, (videos * groups,), arguments, constants, *config.options()), partial


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Yield the kernel variants of a device, such as "backward.bf16.c256.j16.t64.all", as launches on meta tensors."""
    for dtype_name, dtype in DTYPES.items():
        for channels in (256, 1000):  # full chunks, and a partly filled last one
            for semantics, frames in ((16, 16), (16, 64), (16, 256), (64, 64)):  # one tile, and several of the largest
                for option in ("plain", "all"):
                    name = f"{dtype_name}.c{channels}.j{semantics}.t{frames}.{option}"
                    saliency = meta_tensor(dtype, 1024, frames, 8)
                    aggregated = meta_tensor(dtype, 1024, 8, channels)
                    responses = meta_tensor(dtype, 1024, frames, 8, channels)
                    valid = meta_tensor(torch.bool, 1024, frames) if option == "all" else None
                    inputs = Arguments(responses, meta_tensor(dtype, 1024, semantics, channels), 0.01, valid)
                    yield f"forward.{name}", forward_launch(inputs, device, saliency)[0]
                    grad_saliency = saliency if option == "all" else None
                    launch, _ = backward_launch(inputs, device, aggregated, grad_saliency, responses, True)
                    yield f"backward.{name}", launch
