"""Factory for `torch.library` operators: fake implementation, backward, double backward and vmap from one description.

To autograd, the compiler, export and vmap, each forward and backward pass is one opaque operator, because a pass
allocates and chooses block sizes from concrete shapes, which must not become part of a graph with dynamic shapes.

An operation describes itself by an :class:`OperatorSpec`. :func:`register_backend` then turns the module of a backend
into the operators ``art_kernels::<operation>_<backend>`` and ``art_kernels::<operation>_<backend>_backward`` and adds
them to the registry of backends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_kernels._core import backends

#: Builds the vmap rule of an operator from (spec, operator, names of its arguments).
VmapFactory = Callable[["OperatorSpec", Any, Sequence[str]], Callable[..., Any]]


@dataclass(frozen=True)
class OperatorSpec:
    """An operation, as all of its backends implement it.

    Attributes:
        name: name of the operation.
        arguments: NamedTuple class of all arguments, in order. The annotations determine the schema: any annotation
            with "Tensor", float, int, bool or str, optionally followed by "| None".
        outputs: names of the outputs, all tensors.
        vmap: :func:`merge_batch`, :func:`loop_over_samples` or :func:`refuse_vmap`, the latter with its reason bound.
        differentiable: names of the arguments that receive gradients.
        grad_outputs: names of the outputs whose gradients are propagated.
        reference: computes the grad_outputs, in that order, from the arguments in plain PyTorch; used for gradients of
            higher order. It returns None for an output that was not requested. Without a reference, the backward
            function must itself consist of differentiable PyTorch operators, and no backward operator is defined.
        prepared: returns False if the forward pass was called without preparing for `backward`; gradients then come
            from the reference.
    """

    name: str
    arguments: type[Any]
    outputs: tuple[str, ...]
    vmap: VmapFactory
    differentiable: tuple[str, ...] = ()
    grad_outputs: tuple[str, ...] = ()
    reference: Callable[..., Sequence[Tensor | None]] | None = None
    prepared: Callable[[Any], bool] = lambda arguments: True

    def fields(self) -> tuple[str, ...]:
        """Return the names of the arguments."""
        return tuple(self.arguments._fields)

    def schema(self) -> str:
        """Return the arguments in the schema language of `torch.library`."""
        return ", ".join(f"{_schema_type(self.arguments.__annotations__[name])} {name}" for name in self.fields())


class Operator(NamedTuple):
    """A defined operator.

    Attributes:
        spec: its description.
        forward: the forward operator, called with the fields of ``spec.arguments``.
        backward: the backward operator, or None. Its arguments are the gradients of ``spec.grad_outputs``, those of
            the forward operator, the saved outputs, and which of ``spec.differentiable`` require gradients.
    """

    spec: OperatorSpec
    forward: Any
    backward: Any


#: Every operator with its gradient, by name, such as "region_attention_triton".
OPERATORS: dict[str, Operator] = {}


def register_backend(spec: OperatorSpec, backend: str, module: str) -> None:
    """Import a backend's module, define its operators, and register it; a failed import is registered as the reason.

    The module defines:

    - ``forward(*values)``: the outputs, from the fields of ``spec.arguments`` in order. (Not a single object, because
      this is the implementation of the operator itself: there is no wrapper between PyTorch and the kernel.)
    - ``fake(arguments)``: empty outputs with the shapes and dtypes of ``forward``.
    - ``backward(grads, arguments, saved, needs)``: one gradient, or None, per name in ``spec.differentiable``. `grads`
      has one tensor, or None, per name in ``spec.grad_outputs``; `saved` has the outputs named in ``SAVED_OUTPUTS``;
      `needs` has one bool per name in ``spec.differentiable``.
    - ``SAVED_OUTPUTS``, optional: names of outputs that ``backward`` reads.
    - ``unsupported_reason(tensor)`` and ``opt_in(tensor)``, optional: see :mod:`art_kernels._core.backends`.
    """
    implementation = backends.import_backend(spec.name, backend, module)
    if implementation is None:
        return
    operator = define_operator(
        spec,
        backend,
        implementation.forward,
        implementation.fake,
        implementation.backward,
        getattr(implementation, "SAVED_OUTPUTS", ()),
    )
    optional = {
        name: getattr(implementation, name)
        for name in ("unsupported_reason", "opt_in")
        if hasattr(implementation, name)
    }
    backends.register(spec.name, backend, operator.forward, **optional)


def define_operator(
    spec: OperatorSpec,
    backend: str,
    forward: Callable[..., Any],
    fake: Callable[[Any], Any],
    backward: Callable[..., Sequence[Tensor | None]] | None = None,
    saved: Sequence[str] = (),
) -> Operator:
    """Define ``art_kernels::<operation>_<backend>`` and, given a reference, its backward operator.

    Args:
        spec: the operation.
        backend: suffix of the operator's name.
        forward: see :func:`register_backend`; returns a single tensor if there is one output.
        fake: see :func:`register_backend`.
        backward: see :func:`register_backend`; None for an operator without gradients.
        saved: names of the outputs that `backward` reads.
    """
    name = f"{spec.name}_{backend}"
    returns = ", ".join(f"Tensor {output}" for output in spec.outputs)
    schema = f"({spec.schema()}) -> " + (f"({returns})" if len(spec.outputs) > 1 else "Tensor")
    forward_op = torch.library.custom_op(f"art_kernels::{name}", forward, mutates_args=(), schema=schema)
    forward_op.register_fake(lambda *values: fake(spec.arguments(*values)))
    torch.library.register_vmap(forward_op, spec.vmap(spec, forward_op, spec.fields()))
    backward_op = None
    if backward is not None:
        if spec.reference is not None:
            backward_op = _define_backward(spec, name, backward, saved)
        _register_autograd(spec, forward_op, backward_op, backward, saved)
    OPERATORS[name] = Operator(spec, forward_op, backward_op)
    return OPERATORS[name]


def _define_backward(
    spec: OperatorSpec, name: str, backward: Callable[..., Sequence[Tensor | None]], saved: Sequence[str]
) -> Any:
    """Define the backward operator, which returns an empty tensor for a gradient that was not requested."""
    grads = [f"grad_{output}" for output in spec.grad_outputs]
    schema = ", ".join(
        [*(f"Tensor? {grad}" for grad in grads), spec.schema(), *(f"Tensor {output}" for output in saved)]
    )
    returns = ", ".join(f"Tensor {argument}" for argument in spec.differentiable)
    returns = f"({returns})" if len(spec.differentiable) > 1 else "Tensor"
    first, last = len(grads), len(grads) + len(spec.fields())

    def run(*values: Any) -> Any:
        arguments = spec.arguments(*values[first:last])
        gradients = backward(values[:first], arguments, values[last:-1], values[-1])
        like = _differentiable(spec, arguments)
        return _unpack([
            gradient if needed and gradient is not None else _empty(one, like)
            for one, gradient, needed in zip(like, gradients, values[-1], strict=True)
        ])  # fmt: skip

    def fake(*values: Any) -> Any:
        like = _differentiable(spec, spec.arguments(*values[first:last]))
        return _unpack([
            one.new_empty(one.shape) if needed and one is not None else _empty(one, like)
            for one, needed in zip(like, values[-1], strict=True)
        ])  # fmt: skip

    operator: Any = torch.library.custom_op(
        f"art_kernels::{name}_backward", run, mutates_args=(), schema=f"({schema}, bool[] needs) -> {returns}"
    )
    operator.register_fake(fake)
    torch.library.register_vmap(operator, spec.vmap(spec, operator, (*grads, *spec.fields(), *saved, "needs")))
    return operator


def _register_autograd(
    spec: OperatorSpec,
    forward_op: Any,
    backward_op: Any,
    backward: Callable[..., Sequence[Tensor | None]],
    saved: Sequence[str],
) -> None:
    fields = spec.fields()
    is_tensor = [_schema_type(spec.arguments.__annotations__[name]).startswith("Tensor") for name in fields]
    differentiable = [fields.index(name) for name in spec.differentiable]
    grad_outputs = [spec.outputs.index(name) for name in spec.grad_outputs]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        tensors = [value for value, tensor in zip(inputs, is_tensor, strict=True) if tensor]
        results = [result for name, result in zip(spec.outputs, outputs, strict=True) if name in saved]
        ctx.save_for_backward(*tensors, *results)
        ctx.options = [value for value, tensor in zip(inputs, is_tensor, strict=True) if not tensor]
        ctx.set_materialize_grads(False)

    def run_backward(ctx: Any, *grads_of_outputs: Tensor | None) -> tuple[Any, ...]:
        input_grads: list[Any] = [None] * len(fields)
        grads = tuple(grads_of_outputs[index] for index in grad_outputs)
        if any(grad is not None for grad in grads):
            tensors, options = iter(ctx.saved_tensors), iter(ctx.options)
            arguments = spec.arguments(*(next(tensors if tensor else options) for tensor in is_tensor))
            results = tuple(tensors)
            needs = [ctx.needs_input_grad[index] for index in differentiable]
            if spec.reference is None:
                gradients = backward(grads, arguments, results, needs)
            elif torch.is_grad_enabled() or not spec.prepared(arguments):
                gradients = _reference_gradients(spec, grads, arguments, needs)
            else:
                gradients = backward_op(*grads, *arguments, *results, needs)
            if isinstance(gradients, Tensor):
                gradients = (gradients,)
            for index, needed, gradient in zip(differentiable, needs, gradients, strict=True):
                input_grads[index] = gradient if needed else None
        return tuple(input_grads)

    forward_op.register_autograd(run_backward, setup_context=setup_context)


def _reference_gradients(
    spec: OperatorSpec, grads: Sequence[Tensor | None], arguments: Any, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Differentiate the reference; the gradients are differentiable if grad mode is enabled."""
    assert spec.reference is not None
    create_graph = torch.is_grad_enabled()
    inputs = [value for value, needed in zip(_differentiable(spec, arguments), needs, strict=True) if needed]
    with torch.enable_grad():
        computed = zip(spec.reference(*arguments), grads, strict=True)
        outputs, weights = zip(*((y, grad) for y, grad in computed if y is not None and grad is not None), strict=True)
        found = torch.autograd.grad(
            outputs, inputs, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    gradients = iter(found)
    return [next(gradients) if needed else None for needed in needs]


def merge_batch(
    spec: OperatorSpec, operator: Any, names: Sequence[str], shared: Sequence[str] = ()
) -> Callable[..., Any]:
    """A vmap rule that merges the mapped dimension into the first dimension of every tensor.

    Tensor arguments named in `shared` have no batch dimension; mapping over them, or over their gradients, raises.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *values: Any) -> tuple[Any, Any]:
        merged = []
        for name, value, dim in zip(names, values, in_dims, strict=True):
            if name in shared and dim is not None:
                raise ValueError(
                    f"{spec.name}: {name} is mapped over by vmap, expected one for all samples; "
                    f"remove it from in_dims, or call {spec.name} for each sample"
                )
            batched = isinstance(value, Tensor) and name not in shared
            merged.append(merge_batch_dim(info, value, dim) if batched else value)
        if names[-1] == "needs":
            for name, needed in zip(spec.differentiable, values[-1], strict=True):
                if name in shared and needed:
                    raise ValueError(
                        f"{spec.name}: vmap over the gradient of {name}, which all samples share, is not supported; "
                        f"call {spec.name} for each sample, or detach {name}"
                    )
        results = operator(*merged)
        single = isinstance(results, Tensor)
        unmerged = [
            # A tensor of one dimension is the placeholder for an output that was not requested.
            result.unflatten(0, (info.batch_size, -1)) if result.dim() > 1 else result.expand(info.batch_size, 0)
            for result in ([results] if single else results)
        ]
        return (unmerged[0], 0) if single else (tuple(unmerged), (0,) * len(unmerged))

    return rule


def merge_batch_dim(info: Any, tensor: Tensor, dim: int | None) -> Tensor:
    """Merge the mapped dimension into the first one; `info` and `dim` as passed by `torch.library.register_vmap`."""
    tensor = tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def loop_over_samples(spec: OperatorSpec, operator: Any, names: Sequence[str]) -> Callable[..., Any]:
    """A vmap rule that calls the operator once per sample and stacks the results."""

    def rule(info: Any, in_dims: Sequence[int | None], *values: Any) -> tuple[Any, Any]:
        def call(sample: int) -> Any:
            return operator(*(
                value.select(dim, sample) if isinstance(value, Tensor) and dim is not None else value
                for value, dim in zip(values, in_dims, strict=True)
            ))  # fmt: skip

        samples = [call(sample) for sample in range(info.batch_size)]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples), 0
        results = tuple(map(torch.stack, zip(*samples, strict=True)))
        return results, (0,) * len(results)

    return rule


def refuse_vmap(spec: OperatorSpec, operator: Any, names: Sequence[str], reason: str) -> Callable[..., Any]:
    """A vmap rule that raises ValueError; bind `reason` with `functools.partial`."""

    def rule(info: Any, in_dims: Sequence[int | None], *values: Any) -> tuple[Any, Any]:
        raise ValueError(f"{spec.name}: vmap is not supported, {reason}")

    return rule


def _differentiable(spec: OperatorSpec, arguments: Any) -> list[Any]:
    return [getattr(arguments, name) for name in spec.differentiable]


def _empty(one: Tensor | None, like: Sequence[Tensor | None]) -> Tensor:
    """Return the placeholder for a gradient that was not requested, in the dtype of its argument."""
    present = one if one is not None else next(tensor for tensor in like if tensor is not None)
    return present.new_empty(0)


def _unpack(results: list[Tensor]) -> Any:
    return tuple(results) if len(results) > 1 else results[0]


def _schema_type(annotation: Any) -> str:
    """Return the schema type of an annotation, such as "Tensor?" for ``Float[Tensor, "n c"] | None``."""
    text = str(getattr(annotation, "__forward_arg__", annotation))
    base = "Tensor" if "Tensor" in text else text.split(" |")[0]
    return f"{base}?" if text.endswith("| None") else base
