"""Operation counts of the operators of this package, for `torch.utils.flop_counter.FlopCounterMode`.

    with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter: ...

Like PyTorch's formulas, these count matrix products only, a multiplication and an addition as two operations, and in a
backward pass also the products that are recomputed. They hold for the "torch", "triton" and "cpp" backends, which
compute the same products. The "reference" backends, and the "torch" backend of `pool_tracklets`, consist of PyTorch
operators, which the counter covers. A linear assignment contains no products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from art_kernels._core.autograd import OPERATORS, Operator

Shape = Sequence[int]
Formula = Callable[..., int]


def flop_formulas() -> dict[Any, Formula]:
    """Return a new dictionary from operators to formulas of their argument shapes.

    Includes four PyTorch operators: attention on a CPU, forward and backward, and matrix-vector products, which PyTorch
    does not count; and the backward pass of grouped convolutions, which PyTorch counts as if they were dense.
    """
    aten = torch.ops.aten
    formulas: dict[Any, Formula] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten.convolution_backward: _convolution_backward,
        aten.mv: _matrix_vector,
    }
    for name, operator in OPERATORS.items():
        if operator.spec.name in _FORWARD:
            formulas[getattr(torch.ops.art_kernels, name)] = _forward_formula(operator)
        if operator.backward is not None and operator.spec.name in _BACKWARD:
            formulas[getattr(torch.ops.art_kernels, f"{name}_backward")] = _backward_formula(operator)
    return formulas


def _forward_formula(operator: Operator) -> Formula:
    """Adapt a formula of named arguments to the positional shapes that the counter passes."""
    spec, formula = operator.spec, _FORWARD[operator.spec.name]
    return lambda *shapes, **_: formula(spec.arguments(*shapes))


def _backward_formula(operator: Operator) -> Formula:
    """Adapt a formula of a backward pass; the last positional value is the list of gradients needed."""
    spec, formula = operator.spec, _BACKWARD[operator.spec.name]
    first = len(spec.grad_outputs)
    last = first + len(spec.fields())
    return lambda *values, **_: formula(
        spec.arguments(*values[first:last]), dict(zip(spec.differentiable, values[-1], strict=True))
    )


def _region_attention(a: Any) -> int:
    """Scores and pooling."""
    return 2 * 2 * prod(a.queries) * a.regions[1]


def _region_attention_backward(a: Any, needs: dict[str, bool]) -> int:
    """Recomputed scores, gradients of weights and queries, two products for the regions, one for the position."""
    return 2 * prod(a.queries) * a.regions[1] * (3 + 2 * needs["regions"] + needs["key_position"])


def _mtc_loss(a: Any) -> int:
    """Cosines within a frame, with the next frame, and of whole tracklets."""
    batch, frames, count, channels = a.responses
    spatial, tracklet = frames * count * count, count * count * (frames if a.flattened else 1)
    return 2 * batch * channels * (spatial + (frames - 1) * count + tracklet)


def _mtc_loss_backward(a: Any, needs: dict[str, bool]) -> int:
    """Each response weighted like its cosines: with one matrix per frame, its neighbors, and whole tracklets."""
    batch, frames, count, channels = a.responses
    spatial, tracklet = frames * count * count, 0 if a.flattened else count * count
    return 2 * batch * channels * (spatial + 2 * (frames - 1) * count + tracklet)


def _pool_tracklets(a: Any) -> int:
    """Cosines with the semantics, and the weighted sum."""
    return 2 * prod(a.responses) * (a.semantics[1] + 1)


def _pool_tracklets_backward(a: Any, needs: dict[str, bool]) -> int:
    """Recomputed cosines, the gradient of the weights, and for each input those of its cosines and sums."""
    count = a.semantics[1]
    products = count + 1 + count * (needs["responses"] + needs["semantics"]) + needs["responses"]
    return 2 * prod(a.responses) * products


def _tracklet_nce(a: Any) -> int:
    """The logits, once for both directions."""
    return 2 * prod(a.anchors) * a.candidates[0]


def _tracklet_nce_backward(a: Any, needs: dict[str, bool]) -> int:
    """Recomputed logits, and one product per gradient."""
    return _tracklet_nce(a) * (1 + needs["anchors"] + needs["candidates"])


def _link_tracklets(a: Any) -> int:
    """Cosines of adjacent frames."""
    batch, frames, count, channels = a.responses
    return 2 * batch * max(0, frames - 1) * count * count * channels


_FORWARD: dict[str, Formula] = {
    "region_attention": _region_attention,
    "mtc_loss": _mtc_loss,
    "pool_tracklets": _pool_tracklets,
    "tracklet_nce": _tracklet_nce,
    "link_tracklets": _link_tracklets,
}
_BACKWARD: dict[str, Formula] = {
    "region_attention": _region_attention_backward,
    "mtc_loss": _mtc_loss_backward,
    "pool_tracklets": _pool_tracklets_backward,
    "tracklet_nce": _tracklet_nce_backward,
}


def _attention(queries: Shape, keys: Shape, values: Shape, *_: object, **__: object) -> int:
    """Scores and weighted values of each head."""
    return 2 * prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def _attention_backward(
    grad_output: Shape, queries: Shape, keys: Shape, values: Shape, *_: object, **__: object
) -> int:
    """Recomputed scores, and the gradients of weights, values, queries and keys."""
    return 2 * prod(queries[:-1]) * keys[-2] * (3 * queries[-1] + 2 * values[-1])


def _convolution_backward(
    grad_output: Shape, inputs: Shape, weight: Shape, *others: Any, out_shape: object = None, **_: object
) -> int:
    """The products of the forward pass, once for the input and once for the weight."""
    transposed, output_mask = others[4], others[7]
    positions = inputs[2:] if transposed else grad_output[2:]
    once = 2 * inputs[0] * prod(positions) * prod(weight)
    return once * (bool(output_mask[0]) + bool(output_mask[1]))


def _matrix_vector(matrix: Shape, vector: Shape, *_: object, **__: object) -> int:
    return 2 * prod(matrix)
