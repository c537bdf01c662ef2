"""Factory for `torch.library` operators: fake implementation, gradients of any order and vmap from one description.

To autograd, the compiler, export and vmap, each forward and backward pass is one opaque operator, because a pass
allocates and chooses block sizes from concrete shapes, which must not become part of a graph with dynamic shapes.

An operation describes itself by an :class:`OperatorSpec`. :func:`register_backend` then turns the module of a backend
into the operators ``art_kernels::<operation>_<backend>`` and ``art_kernels::<operation>_<backend>_backward`` and adds
them to the registry of backends.

Operators of `torch.library` raise under `torch.func.grad`, and lose the tangents of forward-mode differentiation. Where
one of these is active, the registry calls :func:`_transformable` instead: it runs the same operators inside an
`autograd.Function` that supports `torch.func`, or in forward mode, and for gradients of gradients, the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

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
        vmap: :func:`merge_batch` or :func:`loop_over_samples`.
        differentiable: names of the arguments that receive gradients.
        grad_outputs: names of the outputs whose gradients are propagated.
        reference: computes the grad_outputs, in that order, from the arguments in plain PyTorch; used for gradients of
            higher order and in forward mode. It returns None for an output that was not requested. Without a reference,
            the backward function must itself consist of differentiable PyTorch operators, no backward operator is
            defined, and the operator supports neither forward mode nor `torch.func.grad`.
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
        transformable: same as `forward`, for `torch.func` transforms and forward-mode differentiation; or None.
    """

    spec: OperatorSpec
    forward: Any
    backward: Any
    transformable: Callable[..., Any] | None = None


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
    backends.register(spec.name, backend, operator.forward, **optional, transformable=operator.transformable)


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
    backward_op = transformable = None
    if backward is not None:
        if spec.reference is not None:
            backward_op = _define_backward(spec, name, backward, saved)
            transformable = _transformable(spec, name, forward_op, backward_op, saved)
        _register_autograd(spec, forward_op, backward_op, backward, saved)
    OPERATORS[name] = Operator(spec, forward_op, backward_op, transformable)
    return OPERATORS[name]


def _define_backward(
    spec: OperatorSpec, name: str, backward: Callable[..., Sequence[Tensor | None]], saved: Sequence[str]
) -> Any:
    """Define the backward operator, which returns an empty tensor for a gradient that was not requested."""
    names = _backward_names(spec, saved)
    grads = names[: len(spec.grad_outputs)]
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
    torch.library.register_vmap(operator, spec.vmap(spec, operator, names))
    return operator


def _backward_names(spec: OperatorSpec, saved: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the arguments of the backward operator."""
    return (*(f"grad_{output}" for output in spec.grad_outputs), *spec.fields(), *saved, "needs")


def _register_autograd(
    spec: OperatorSpec,
    forward_op: Any,
    backward_op: Any,
    backward: Callable[..., Sequence[Tensor | None]],
    saved: Sequence[str],
) -> None:
    def gradients(grads: Sequence[Tensor | None], arguments: Any, results: Sequence[Tensor], needs: list[bool]) -> Any:
        if spec.reference is None:
            return backward(grads, arguments, results, needs)
        # The gradients may have tangents, which the operator would lose.
        if torch.is_grad_enabled() or forward_ad._current_level >= 0 or not spec.prepared(arguments):
            return _reference_gradients(spec, grads, arguments, needs)
        return backward_op(*grads, *arguments, *results, needs)

    setup_context, run_backward = _autograd_methods(spec, saved, gradients)
    forward_op.register_autograd(run_backward, setup_context=setup_context)


def _autograd_methods(
    spec: OperatorSpec, saved: Sequence[str], gradients: Callable[..., Any]
) -> tuple[Callable[..., None], Callable[..., tuple[Any, ...]]]:
    """Return the functions `setup_context` and `backward` of an operator; the latter calls `gradients`.

    The arguments of `gradients` are those of a backend's `backward`; it returns the gradients, which may be any tensor
    if not needed, as a tuple or, of one argument, as a tensor.
    """
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
            needs = [ctx.needs_input_grad[index] for index in differentiable]
            found = gradients(grads, arguments, tuple(tensors), needs)
            found = (found,) if isinstance(found, Tensor) else found
            for index, needed, gradient in zip(differentiable, needs, found, strict=True):
                input_grads[index] = gradient if needed else None
        return tuple(input_grads)

    return setup_context, run_backward


def _transformable(
    spec: OperatorSpec, name: str, forward_op: Any, backward_op: Any, saved: Sequence[str]
) -> Callable[..., Any]:
    """Return a function like the forward operator that supports `torch.func` and forward-mode differentiation."""
    assert spec.reference is not None
    reference = spec.reference
    backward_function = _backward_function(spec, name, backward_op, saved)

    def gradients(grads: Sequence[Tensor | None], arguments: Any, results: Sequence[Tensor], needs: list[bool]) -> Any:
        # The function returned by `torch.func.vjp` may be called after the level of the saved tensors has ended.
        arguments = spec.arguments(*unwrap_dead_wrappers(arguments))
        if forward_ad._current_level >= 0 or not spec.prepared(arguments):
            return _functional_gradients(spec, grads, arguments, needs)
        return backward_function(*grads, *arguments, *results, needs)

    function = _define_function(name, forward_op, *_autograd_methods(spec, saved, gradients), spec, spec.fields())

    def run(*values: Any) -> Any:
        # In forward mode, the reference computes the outputs together with their tangents. The compiler cannot trace an
        # `autograd.Function` inside a transform.
        use_reference = forward_ad._current_level >= 0 or torch.compiler.is_compiling()
        return reference(*values) if use_reference else function(*values)

    return run


def _backward_function(spec: OperatorSpec, name: str, backward_op: Any, saved: Sequence[str]) -> Callable[..., Any]:
    """Return a function like the backward operator, whose own gradients are those of the reference."""
    first, last = len(spec.grad_outputs), len(spec.grad_outputs) + len(spec.fields())

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.options = [value for value in inputs if not isinstance(value, Tensor)]

    def run_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tensors, options = iter(unwrap_dead_wrappers(ctx.saved_tensors)), iter(ctx.options)
        values = [next(tensors if tensor else options) for tensor in ctx.is_tensor]
        needs, indices = values[-1], [index for index in range(last) if ctx.needs_input_grad[index]]

        def gradients(*inputs: Tensor) -> list[Tensor]:
            for index, tensor in zip(indices, inputs, strict=True):
                values[index] = tensor
            found = _functional_gradients(spec, values[:first], spec.arguments(*values[first:last]), needs)
            return [gradient for gradient in found if gradient is not None]

        pullback = torch.func.vjp(gradients, *(values[index] for index in indices))[1]
        found = pullback([grad for grad, needed in zip(grads, needs, strict=True) if needed])
        input_grads: list[Any] = [None] * len(values)
        for index, gradient in zip(indices, found, strict=True):
            input_grads[index] = gradient
        return tuple(input_grads)

    return _define_function(
        f"{name}_backward", backward_op, setup_context, run_backward, spec, _backward_names(spec, saved)
    )


def _define_function(
    name: str, operator: Any, setup_context: Any, backward: Any, spec: OperatorSpec, names: Sequence[str]
) -> Callable[..., Any]:
    """Define an `autograd.Function` that calls an operator and supports `torch.func`; returns its `apply`."""
    function: Any = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(lambda *values: operator(*values)),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
        },
    )
    # The rule calls the function, not the operator, because vmap may be inside of `torch.func.grad`.
    function.vmap = staticmethod(spec.vmap(spec, function.apply, names))
    return function.apply


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


def _functional_gradients(
    spec: OperatorSpec, grads: Sequence[Tensor | None], arguments: Any, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Same as :func:`_reference_gradients`, for use under `torch.func` transforms and in forward mode."""
    assert spec.reference is not None
    reference = spec.reference
    names = [name for name, needed in zip(spec.differentiable, needs, strict=True) if needed]

    def outputs(*inputs: Tensor) -> list[Tensor]:
        computed = reference(*arguments._replace(**dict(zip(names, inputs, strict=True))))
        return [y for y, grad in zip(computed, grads, strict=True) if y is not None and grad is not None]

    pullback = torch.func.vjp(outputs, *(getattr(arguments, name) for name in names))[1]
    found = iter(pullback([grad for grad in grads if grad is not None]))
    return [next(found) if needed else None for needed in needs]


def merge_batch(
    spec: OperatorSpec, operator: Any, names: Sequence[str], shared: Sequence[str] = ()
) -> Callable[..., Any]:
    """A vmap rule that merges the mapped dimension into the first dimension of every tensor.

    Tensor arguments named in `shared` have no batch dimension; mapping over them raises. Their gradients, which are
    sums over the batch, are computed in a loop over the samples.
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
        if names[-1] == "needs" and any(
            needed and name in shared for name, needed in zip(spec.differentiable, values[-1], strict=True)
        ):
            return loop_over_samples(spec, operator, names)(info, in_dims, *values)
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
