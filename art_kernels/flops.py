"""How many operations the operators of this library take, for `torch.utils.flop_counter.FlopCounterMode`.

    with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter: ...

As PyTorch's formulas do, these count matrix products alone, a multiplication and an addition as two, and in a backward
pass also what it computes again. They hold for every backend: "native" and "triton" take the same products. The
"reference" backends, and `pool_tracklets` on a CPU, are plain PyTorch, which the counter sees anyway. A linear
assignment multiplies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

Shape = Sequence[int]
Formula = Callable[..., int]


def flop_formulas() -> dict[Any, Formula]:
    """By operator, its formula from shapes; a new dictionary, so nothing global is changed.

    Four operators of PyTorch are among them: its attention on a CPU, forward and backward, and a matrix times a vector,
    which it does not count, and the backward pass of a convolution in groups, which it counts as if every channel met
    every other.
    """
    ours: dict[str, Formula] = {
        "region_attention": _region_attention,
        "region_attention_backward": _region_attention_backward,
        "mtc_loss": _mtc_loss,
        "mtc_loss_backward": _mtc_loss_backward,
        "pool_tracklets": _pool_tracklets,
        "pool_tracklets_backward": _pool_tracklets_backward,
        "tracklet_nce": _tracklet_nce,
        "tracklet_nce_backward": _tracklet_nce_backward,
        "link_tracklets": _link_tracklets,
    }
    aten = torch.ops.aten
    formulas: dict[Any, Formula] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten.convolution_backward: _convolution_backward,
        aten.mv: _matrix_vector,
    }
    # Without Triton pool_tracklets is no operator, and nothing calls one.
    return formulas | {
        getattr(torch.ops.art_kernels, name): formula
        for name, formula in ours.items()
        if hasattr(torch.ops.art_kernels, name)
    }


def _region_attention(queries: Shape, regions: Shape, *_: object, **__: object) -> int:
    """Scores and pooling."""
    return 2 * 2 * prod(queries) * regions[1]


def _region_attention_backward(
    grad_output: Shape, grad_map: object, queries: Shape, regions: Shape, *others: Any, **_: object
) -> int:
    """Scores again, the gradients of the weights and of the queries; two for the regions, one for the position."""
    needs_regions, needs_position = others[7:9]
    return 2 * prod(queries) * regions[1] * (3 + 2 * bool(needs_regions) + bool(needs_position))


def _mtc_loss(responses: Shape, aggregated: object, valid: object, *options: Any, **_: object) -> int:
    """The cosines: within a frame, with the next one, and of whole tracklets."""
    batch, frames, count, channels = responses
    flattened = options[3]
    within = frames * count * count
    whole = count * count * (frames if flattened else 1)
    return 2 * batch * channels * (within + (frames - 1) * count + whole)


def _mtc_loss_backward(
    grad_terms: Shape, responses: Shape, aggregated: object, valid: object, *others: Any, **_: object
) -> int:
    """Each response weighted as its cosines are: by one matrix a frame, its neighbours, and whole tracklets."""
    batch, frames, count, channels = responses
    flattened = others[8]
    within, whole = frames * count * count, 0 if flattened else count * count
    return 2 * batch * channels * (within + 2 * (frames - 1) * count + whole)


def _pool_tracklets(responses: Shape, semantics: Shape, *_: object, **__: object) -> int:
    """Cosines with the semantics, and the weighted sum."""
    return 2 * prod(responses) * (semantics[1] + 1)


def _pool_tracklets_backward(
    grad_aggregated: Shape, grad_saliency: object, responses: Shape, semantics: Shape, *others: Any, **_: object
) -> int:
    """Cosines again, the gradient of the weights, and for each input that of cosines (and for responses, of sums)."""
    needs_responses, needs_semantics = others[2:4]
    products = semantics[1] + 1
    products += semantics[1] * (bool(needs_responses) + bool(needs_semantics)) + bool(needs_responses)
    return 2 * prod(responses) * products


def _tracklet_nce(anchors: Shape, candidates: Shape, *_: object, **__: object) -> int:
    """The logits, once for both directions."""
    return 2 * prod(anchors) * candidates[0]


def _tracklet_nce_backward(
    grad_rows: Shape, grad_columns: Shape, anchors: Shape, candidates: Shape, *others: Any, **_: object
) -> int:
    """The logits again, and a product for each gradient."""
    needs_anchors, needs_candidates = others[7:9]
    return _tracklet_nce(anchors, candidates) * (1 + bool(needs_anchors) + bool(needs_candidates))


def _link_tracklets(responses: Shape, *_: object, **__: object) -> int:
    """The cosines of adjacent frames."""
    batch, frames, count, channels = responses
    return 2 * batch * max(0, frames - 1) * count * count * channels


def _attention(queries: Shape, keys: Shape, values: Shape, *_: object, **__: object) -> int:
    """Scores and weighted values, of each head."""
    return 2 * prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def _attention_backward(
    grad_output: Shape, queries: Shape, keys: Shape, values: Shape, *_: object, **__: object
) -> int:
    """Scores again, and the gradients of weights, values, queries and keys."""
    return 2 * prod(queries[:-1]) * keys[-2] * (3 * queries[-1] + 2 * values[-1])


def _convolution_backward(
    grad_output: Shape, inputs: Shape, weight: Shape, *others: Any, out_shape: object = None, **_: object
) -> int:
    """As many products as forward, for the input and for the weight: each links what the forward pass links."""
    transposed, output_mask = others[4], others[7]
    positions = inputs[2:] if transposed else grad_output[2:]
    once = 2 * inputs[0] * prod(positions) * prod(weight)
    return once * (bool(output_mask[0]) + bool(output_mask[1]))


def _matrix_vector(matrix: Shape, vector: Shape, *_: object, **__: object) -> int:
    return 2 * prod(matrix)
