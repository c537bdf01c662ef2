"""The tolerance rule of the kernels: error at most twice that of plain PyTorch in the same dtype, against float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.utils.deterministic
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Function = Callable[..., Sequence[Tensor]]


def values_and_gradients(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs of `function` on the inputs in `dtype`, and the gradients of a fixed weighting of them."""
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
    """Check `fast` against `plain`, in outputs and gradients, by the tolerance rule.

    `plain` in float64 is the truth, and in `dtype` the measure. Over several draws of the inputs the error of `fast`
    must be at most twice that of `plain`, in root mean square and for the worst element (which is a matter of luck, the
    less so the more draws). One rounding is allowed beside.

    The memory that `fast` is given is poisoned, forward and backward.

    Args:
        fast: what is tested.
        plain: the definition.
        draw: makes inputs; their gradients are compared too.
        dtype: of the computation.
        draws: how many inputs are drawn.
        summand: size of the numbers that an output is the mean of, where they cancel: their rounding is allowed for.
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
        assert truth.isfinite().all(), "draw inputs with a finite answer"
        assert result.isfinite().all(), f"result {index} has NaN or inf where the truth has none"
        assert all(result.shape == truth.shape for truth, _, result in drawn)
        for name, size in (("on average", _mean), ("at worst", _largest)):
            error, plain_error = size(result - truth), size(measure - truth)
            rounding = torch.finfo(dtype).eps / 2 * max(size(truth), summand)
            message = f"result {index} errs by {error:.3g} {name}, plain PyTorch by {plain_error:.3g}"
            assert error <= 2 * plain_error + rounding, message


def _mean(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item() if tensor.numel() > 0 else 0.0


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() > 0 else 0.0


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """What `torch.empty` and its kin allocate is full of NaN: whatever is not written before it is read shows."""
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
    """Records the operators that allocate at least as many elements as `tensor` has; views allocate nothing."""

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
