"""Accuracy rule of the kernels: at most twice the error of plain PyTorch in the same dtype, against float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
import torch.utils.deterministic
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from art_kernels._core.precision import at_least_float32

Function = Callable[..., Sequence[Tensor]]


def values_and_gradients(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the outputs of `function` on the inputs in `dtype`, and the gradients of a fixed weighted sum of them."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    outputs = list(function(*leaves))
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True)
    return [*(output.detach() for output in outputs), *gradients]


def assert_as_exact_as_plain(
    fast: Function,
    plain: Function,
    draw: Callable[[], Sequence[Tensor]],
    dtype: torch.dtype,
    *,
    summand: float = 0.0,
    draws: int = 12,
) -> None:
    """Assert that outputs and gradients of `fast` satisfy the accuracy rule.

    `plain` in float64 is the ground truth, and its error in `dtype` is the baseline. Over several random inputs, the
    error of `fast` must be at most twice the baseline plus one rounding, both in root mean square and for the worst
    element, whose variance decreases with more draws. `fast` runs with uninitialized memory filled with NaN.

    Args:
        fast: the function under test.
        plain: the reference.
        draw: returns random inputs; their gradients are compared too.
        dtype: dtype of the computation.
        summand: magnitude of the numbers whose mean an output is, if they cancel: their rounding is allowed.
        draws: number of random inputs.
    """
    cases = []
    for _ in range(draws):
        inputs = [tensor.to(dtype) for tensor in draw()]
        truths = values_and_gradients(plain, inputs, torch.float64)
        measures = values_and_gradients(plain, inputs, dtype)
        with poisoned_memory():
            results = values_and_gradients(fast, inputs, dtype)
        cases.append(list(zip(truths, measures, results, strict=True)))
    for index, drawn in enumerate(zip(*cases, strict=True)):
        truth, measure, result = (
            torch.cat([tensor.double().flatten() for tensor in kind]) for kind in zip(*drawn, strict=True)
        )
        assert truth.isfinite().all(), "the inputs must have finite outputs"
        assert result.isfinite().all(), f"result {index} has NaN or inf, but the ground truth is finite"
        assert all(result.shape == truth.shape for truth, _, result in drawn)
        for name, size in (("root-mean-square", _rms), ("maximum", _maximum)):
            error, plain_error = size(result - truth), size(measure - truth)
            rounding = torch.finfo(dtype).eps / 2 * max(size(truth), summand)
            message = f"result {index}: {name} error {error:.3g}, plain PyTorch {plain_error:.3g}"
            assert error <= 2 * plain_error + rounding, message


def pytorch_attention(
    queries: Tensor,
    regions: Tensor,
    key_position: Tensor | None = None,
    attn_bias: Tensor | None = None,
    *,
    region_mask: Tensor | None = None,
    layer_norm_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain `region_attention`: `scaled_dot_product_attention`, and the softmax of scores in at least float32.

    The mask and the bias are [F,N] or [F,M,N]; the mask may exclude all regions of a query.
    """
    values = regions
    if region_mask is not None and region_mask.dim() == 2:
        values = regions.masked_fill(~region_mask[:, :, None], 0)
    if layer_norm_eps is not None:
        values = F.layer_norm(values, values.shape[-1:], eps=layer_norm_eps)
    keys = values if key_position is None else values + key_position
    scores = at_least_float32(queries) @ at_least_float32(keys).mT * queries.shape[-1] ** -0.5
    bias, empty = None, torch.zeros_like(scores[..., :1], dtype=torch.bool)
    if region_mask is not None or attn_bias is not None:
        bias = torch.zeros_like(scores)
        if attn_bias is not None:
            bias = bias + (attn_bias if attn_bias.dim() == 3 else attn_bias[:, None])
        if region_mask is not None:
            bias = bias.masked_fill(~(region_mask if region_mask.dim() == 3 else region_mask[:, None]), -torch.inf)
        empty = bias.isneginf().all(-1, keepdim=True)
        bias = bias.masked_fill(empty, 0)  # no 0/0; the results are set to 0 instead
        scores = scores + bias
    mask = None if bias is None else bias[:, None].to(queries.dtype)
    output = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], mask)[:, 0]
    return output.masked_fill(empty, 0), scores.softmax(-1).to(queries.dtype).masked_fill(empty, 0)


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item() if tensor.numel() > 0 else 0.0


def _maximum(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() > 0 else 0.0


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill memory allocated by `torch.empty` and similar functions with NaN, to detect reads before writes."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


class LargeResults(TorchDispatchMode):
    """Record the operators that allocate at least `tensor.numel()` elements; views allocate nothing."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.size = tensor.numel()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        existing = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and _storage(leaf) not in existing]
        self.names += [str(func) for leaf in made if leaf.numel() >= self.size]
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
