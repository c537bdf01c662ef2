"""The Triton backend: the forward and the backward pass as launches of kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from art_kernels import tuning
from art_kernels._core.launch import float32_like
from art_kernels._core.launch import device_spec, device_unsupported_reason
from art_kernels.region_attention import kernels
from art_kernels.region_attention.calls import Inputs, backward_call, delta_call, forward_calls
from art_kernels.region_attention.passes import Forward, Gradients
from art_kernels.region_attention.tiles import MAX_CHANNELS, Tiles, candidates

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)


def unsupported_reason(regions: Tensor) -> str | None:
    """Why the kernels cannot serve `regions`, or None where they can."""
    channels = regions.shape[-1]
    if channels > MAX_CHANNELS:
        return f"the kernels keep a region of at most {MAX_CHANNELS} channels, and these have {channels}"
    return device_unsupported_reason(regions, INTERPRETED)


def opt_in(regions: Tensor) -> bool:
    """Whether the kernels serve `regions` only when asked for: in Triton's interpreter, which is there for tests, and
    in float32, whose exact products take no tensor core and, with many channels, are taken by several programs each."""
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
    inputs = Inputs(queries, regions, key_position, region_mask, scale, layer_norm_eps)
    output = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    softmax = float32_like(queries, frames, rows, 2)
    scores = float32_like(queries, frames, rows, count) if return_map else None
    if output.numel() * count == 0:
        output.zero_()
        softmax.zero_()
    else:

        def run(tiles: Tiles) -> None:
            for call in forward_calls(inputs, tiles, output, softmax, scores):
                call.run()

        tiles = inputs.forward_tiles(device_spec(regions.device))
        run(tuning.best(
            "region_attention.forward", regions.device, _shape(inputs, map=return_map), tiles, candidates(tiles), run,
            fingerprint=tuning.fingerprint(kernels.forward_kernel, kernels.combine_kernel),
        ))  # fmt: skip
    if scores is None:
        return Forward(output, softmax, queries.new_empty(0))
    weights = scores.softmax(-1).to(queries.dtype)
    return Forward(output, softmax, weights.masked_fill_(softmax[..., 1:] == 0, 0.0))  # nothing to attend: 0, not 0/0


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
    inputs = Inputs(queries, regions, key_position, region_mask, scale, layer_norm_eps)
    grad_queries = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    grad_regions = torch.empty(regions.shape, dtype=regions.dtype, device=regions.device) if needs_regions else None
    grad_scores = queries.new_empty(frames, rows, count) if needs_position else None
    if queries.numel() * count == 0:
        zero = regions.new_zeros(regions.shape[1:]) if needs_position else None
        return Gradients(grad_queries.zero_(), None if grad_regions is None else grad_regions.zero_(), zero)
    grad_output = grad_output.contiguous()
    grad_map = None if grad_map is None else grad_map.contiguous()
    delta = float32_like(queries, frames, rows)
    tiles, one_block = inputs.backward_tiles(device_spec(regions.device))

    def run(tiles: Tiles) -> Tensor:
        call, partial = backward_call(
            inputs, tiles, one_block, saved.softmax, delta, grad_output, grad_map, grad_queries, grad_regions,
            grad_scores,
        )  # fmt: skip
        call.run()
        return partial

    shape = _shape(inputs, map=grad_map is not None, regions=needs_regions, scores=needs_position)
    tiles = tuning.best(
        "region_attention.backward", regions.device, shape, tiles, candidates(tiles), run,
        fingerprint=tuning.fingerprint(kernels.backward_kernel, kernels.backward_many_rows_kernel),
    )  # fmt: skip
    delta.copy_(_delta(inputs, tiles, saved, grad_output, grad_map))
    partial = run(tiles)
    if partial is not grad_queries:
        grad_queries = partial.sum(0).to(queries.dtype)
    grad_position = None
    if grad_scores is not None:
        grad_position = grad_scores.flatten(0, 1).mT @ queries.flatten(0, 1)
    return Gradients(grad_queries, grad_regions, grad_position)


def _delta(inputs: Inputs, tiles: Tiles, saved: Forward, grad_output: Tensor, grad_map: Tensor | None) -> Tensor:
    """Σ_n weight · its gradient [F,M], which the gradient of each score needs."""
    if grad_output.dtype == torch.float32:
        call, delta = delta_call(inputs, tiles, saved.softmax, grad_output, grad_map)
        call.run()
        return delta.sum(0)
    # What the products round is far below the rounding of a 16-bit result: the regions are not read for it.
    delta = (grad_output.float() * saved.output.float()).sum(-1)
    if grad_map is not None:
        delta += (grad_map.float() * saved.map.float()).sum(-1)
    return delta


def _shape(inputs: Inputs, **options: bool) -> dict[str, int | str | bool]:
    """What block sizes are tuned for. The number of frames, which may change from call to call, to a power of two."""
    frames, rows, channels = inputs.queries.shape
    return {
        "dtype": str(inputs.regions.dtype),
        "frames": triton.next_power_of_2(frames),
        "rows": rows,
        "regions": inputs.regions.shape[1],
        "channels": channels,
        "position": inputs.key_position is not None,
        "mask": inputs.region_mask is not None,
        "normalize": inputs.layer_norm_eps is not None,
        **{f"with_{name}": value for name, value in options.items()},
    }
