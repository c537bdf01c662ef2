"""Forward, backward and both of an attention: as calls to be timed, and as values to be compared with the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.attention_providers import BASELINE, Inputs, build
from benchmarks.attention_shapes import AttentionShape

#: An error so many times that of `nn.MultiheadAttention` in the same dtype is a mistake, and no rounding.
WORST_ERROR_RATIO = 20.0


def pass_call(pass_name: str, module: nn.Module, inputs: Inputs) -> Callable[[], object]:
    """A call that runs one pass.

    "forward" is without a graph. "backward" is that of a graph made now and kept, and gives the gradients of queries,
    regions and all weights. "both" makes the graph, and its gradients, each time.
    """
    queries, regions, grad_output = inputs.queries, inputs.regions, inputs.grad_output
    leaves = [queries, regions, *module.parameters()]
    if pass_name == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return module(queries, regions)

        return forward
    if pass_name == "backward":
        output = module(queries, regions)
        return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)
    return lambda: torch.autograd.grad(module(queries, regions), leaves, grad_output)


def values_and_gradients(module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The output, and the gradients of queries, regions and each weight, for the gradient `inputs.grad_output`."""
    output = module(inputs.queries, inputs.regions)
    leaves = {"queries": inputs.queries, "regions": inputs.regions, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(output, list(leaves.values()), inputs.grad_output)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"output": output.detach(), **named}


def truth(shape: AttentionShape, inputs: Inputs) -> dict[str, Tensor]:
    """The values of `nn.MultiheadAttention` in float64, for the same numbers."""
    inputs = inputs.to(torch.float64)
    return values_and_gradients(build(BASELINE, shape, inputs), inputs)


def errors(values: Mapping[str, Tensor], true_values: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest error of any element, as a share of the largest true element of its tensor.

    Returns:
        by "output", "grad_queries", "grad_regions" and "grad_weights" (the worst weight); NaN where a value is.
    """
    found = {"output": 0.0, "grad_queries": 0.0, "grad_regions": 0.0, "grad_weights": 0.0}
    for name, true_value in true_values.items():
        kind = name if name in found else "grad_weights"
        error = ((values[name].double() - true_value).abs().max() / true_value.abs().max()).item()
        if math.isnan(error) or error > found[kind]:  # which is false of a NaN that is there already
            found[kind] = error
    return found


def require_exact(own: Mapping[str, float], baseline: Mapping[str, float]) -> None:
    """Check the errors of a provider against those of `nn.MultiheadAttention`.

    Raises:
        ArithmeticError: one is more than `WORST_ERROR_RATIO` times the other, or not a number.
    """
    for kind, error in own.items():
        if not error <= WORST_ERROR_RATIO * baseline[kind]:
            raise ArithmeticError(
                f"{kind} errs by {error:.2g} of its largest element, {BASELINE} by {baseline[kind]:.2g}; "
                f"expected at most {WORST_ERROR_RATIO:g} times that"
            )
