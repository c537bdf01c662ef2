"""The Triton backend: the forward and the backward pass as launches of kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from art_kernels._core.launch import float32_like
from art_kernels._core.launch import device_spec, device_unsupported_reason
from art_kernels.tracklet_nce import kernels
from art_kernels.tracklet_nce.calls import Inputs, Sides, backward_call, forward_calls, side_of
from art_kernels.tracklet_nce.passes import Gradients, Pairs, Statistics
from art_kernels.tracklet_nce.tiles import backward_tiles, forward_tiles

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)


def unsupported_reason(anchors: Tensor) -> str | None:
    """Why the kernels cannot serve `anchors`, or None where they can."""
    return device_unsupported_reason(anchors, INTERPRETED)


def opt_in(anchors: Tensor) -> bool:
    """Whether the kernels serve `anchors` only when asked for: in Triton's interpreter, which is there for tests."""
    return anchors.device.type != "cuda"


def forward(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    pairs: Pairs,
    temperature: Float[Tensor, ""],
    symmetric: bool,
) -> Statistics:
    """Statistics of the rows and, where symmetric, of the columns; the arguments are checked already.

    The temperature is float32 and above 0; it is read on its device.
    """
    rows = _statistics(Inputs(anchors, candidates, pairs, temperature, transposed=False))
    if not symmetric:
        return Statistics(rows, float32_like(rows, 3, 0))
    return Statistics(rows, _statistics(Inputs(anchors, candidates, pairs, temperature, transposed=True)))


def _statistics(inputs: Inputs) -> Tensor:
    statistics = float32_like(inputs.anchors, 3, inputs.rows.shape[0])
    if inputs.columns.shape[0] == 0:
        statistics[0] = float("-inf")
        statistics[1:] = 0.0
    elif inputs.rows.shape[0] > 0:
        tiles = forward_tiles(inputs.anchors.dtype, inputs.anchors.shape[1], device_spec(inputs.anchors.device))
        for call in forward_calls(inputs, tiles, statistics):
            call.run()
    return statistics


def backward(
    grad_rows: Float[Tensor, "3 m"],
    grad_columns: Float[Tensor, "3 n"],
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    pairs: Pairs,
    temperature: Float[Tensor, ""],
    statistics: Statistics,
    needs_anchors: bool,
    needs_candidates: bool,
) -> Gradients:
    """The gradients; each launch takes the logits anew. No atomics, so that two runs agree."""
    grad_anchors = torch.empty(anchors.shape, dtype=anchors.dtype, device=anchors.device) if needs_anchors else None
    grad_candidates = None
    if needs_candidates:
        grad_candidates = torch.empty(candidates.shape, dtype=candidates.dtype, device=candidates.device)
    if anchors.shape[0] * candidates.shape[0] == 0:
        for gradient in (grad_anchors, grad_candidates):
            if gradient is not None:
                gradient.zero_()
        return Gradients(grad_anchors, grad_candidates, torch.zeros_like(temperature))
    sides = Sides(side_of(statistics.rows, grad_rows), side_of(statistics.columns, grad_columns))
    # The temperature's comes with that of the anchors, or with that of the candidates where it is needed alone.
    with_candidates = needs_candidates and not needs_anchors
    grad_temperature = None
    if not with_candidates:
        inputs = Inputs(anchors, candidates, pairs, temperature, transposed=False)
        grad_anchors, grad_temperature = _gradient(inputs, sides, grad_anchors, True)
    if needs_candidates:
        inputs = Inputs(anchors, candidates, pairs, temperature, transposed=True)
        grad_candidates, grad_temperature_too = _gradient(inputs, sides, grad_candidates, with_candidates)
        grad_temperature = grad_temperature_too if with_candidates else grad_temperature
    assert grad_temperature is not None
    return Gradients(grad_anchors, grad_candidates, -grad_temperature / temperature)


def _gradient(
    inputs: Inputs, sides: Sides, grad_rows: Tensor | None, needs_temperature: bool
) -> tuple[Tensor | None, Tensor | None]:
    """That of the rows, and Σ_ij G_ij l_ij, where G_ij is the gradient of a logit."""
    tiles = backward_tiles(inputs.anchors.dtype, inputs.anchors.shape[1], device_spec(inputs.anchors.device))
    if grad_rows is None:
        tiles = tiles._replace(parts=1)
    call, partial, of_temperature = backward_call(inputs, tiles, sides, grad_rows, needs_temperature)
    call.run()
    if grad_rows is not None and partial is not None and partial is not grad_rows:
        grad_rows = partial.sum(0).to(grad_rows.dtype)
    return grad_rows, None if of_temperature is None else of_temperature.sum()
