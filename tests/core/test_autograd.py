"""The operator factory, with a small operation: schema, gradients of any order, vmap and errors."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.library import opcheck

from art_kernels._core import autograd
from art_kernels._core.autograd import OperatorSpec, define_operator


class Arguments(NamedTuple):
    x: Tensor
    bias: Tensor | None
    factor: float
    squares: bool


def reference(x, bias, factor, squares):
    y = x.square() * factor
    if bias is not None:
        y = y + bias
    return y, y.square() if squares else None


def forward(*fields):
    y, squares = reference(*fields)
    return y, y.new_empty(0) if squares is None else squares


def fake(arguments):
    x = arguments.x
    return x.new_empty(x.shape), x.new_empty(x.shape if arguments.squares else (0,))


def backward(grads, arguments, saved, needs):
    grad_y, grad_squares = grads
    (y,) = saved
    total = torch.zeros_like(y) if grad_y is None else grad_y.clone()
    if arguments.squares and grad_squares is not None:
        total += 2 * y * grad_squares
    bias = total.sum(0) if needs[1] else None
    return 2 * arguments.factor * arguments.x * total, bias


SPEC = OperatorSpec(
    name="test_square",
    arguments=Arguments,
    outputs=("y", "squares"),
    vmap=functools.partial(autograd.merge_batch, shared=("bias",)),
    differentiable=("x", "bias"),
    grad_outputs=("y", "squares"),
    reference=reference,
)


@pytest.fixture(scope="module")
def operator():
    yield define_operator(SPEC, "torch", forward, fake, backward, saved=("y",))
    autograd.OPERATORS.pop("test_square_torch")


def inputs(bias=True):
    tensors = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    x, b = tensors
    return x, b[0].detach().requires_grad_() if bias else None


def test_schema(operator):
    assert str(operator.forward._opoverload._schema) == (
        "art_kernels::test_square_torch(Tensor x, Tensor? bias, float factor, bool squares)"
        " -> (Tensor y, Tensor squares)"
    )
    assert str(operator.backward._opoverload._schema) == (
        "art_kernels::test_square_torch_backward(Tensor? grad_y, Tensor? grad_squares, Tensor x, Tensor? bias, "
        "float factor, bool squares, Tensor y, bool[] needs) -> (Tensor x, Tensor bias)"
    )
    assert autograd.OPERATORS["test_square_torch"] is operator


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("squares", [True, False])
def test_opcheck_and_gradients_of_any_order(operator, bias, squares):
    x, b = inputs(bias)
    assert set(opcheck(operator.forward, (x, b, 0.7, squares)).values()) == {"SUCCESS"}

    def call(x, b):
        y, squared = operator.forward(x, b, 0.7, squares)
        return (y, squared) if squares else y

    assert gradcheck(call, (x, b))
    assert gradgradcheck(call, (x, b))


def test_gradients_that_are_not_needed_are_not_returned(operator):
    x, b = inputs()
    y, _ = operator.forward(x, b.detach(), 0.7, False)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 1.4 * x)
    empty = operator.backward(torch.ones_like(y), None, x, b, 0.7, False, y, [False, True])
    assert [tensor.shape for tensor in empty] == [(0,), (4,)]


def test_unprepared_forward_uses_the_reference(operator):
    spec = OperatorSpec(**{**SPEC.__dict__, "name": "test_unprepared", "prepared": lambda arguments: False})

    def fail(*arguments):
        raise AssertionError("called without preparation")

    unprepared = define_operator(spec, "torch", forward, fake, fail)
    autograd.OPERATORS.pop("test_unprepared_torch")
    x, b = inputs()
    results = []
    for one in (operator, unprepared):
        y, squared = one.forward(x, b, 0.7, True)
        results.append(torch.autograd.grad(y.sum() + squared.sum(), (x, b)))
    torch.testing.assert_close(*results)


def test_backward_of_differentiable_operators_needs_no_reference():
    class Single(NamedTuple):
        x: Tensor

    spec = OperatorSpec("test_double", Single, ("y",), autograd.merge_batch, ("x",), ("y",))
    double = define_operator(
        spec, "cpp", lambda x: 2 * x, lambda a: torch.empty_like(a.x), lambda grads, *_: (2 * grads[0],)
    )
    autograd.OPERATORS.pop("test_double_cpp")
    assert double.backward is None
    x, _ = inputs()
    assert gradcheck(double.forward, (x,)) and gradgradcheck(double.forward, (x,))
    torch.testing.assert_close(vmap(double.forward, in_dims=1)(x[None]), 2 * x[:, None])


def test_vmap(operator):
    many = torch.randn(5, 3, 4)
    bias = torch.randn(4)
    y, squared = vmap(lambda x: operator.forward(x, bias, 0.7, True))(many)
    torch.testing.assert_close((y, squared), reference(many, bias, 0.7, True))
    _, empty = vmap(lambda x: operator.forward(x, bias, 0.7, False))(many)
    assert empty.shape == (5, 0)
    with pytest.raises(ValueError, match="test_square: bias is mapped over by vmap, expected one for all samples"):
        vmap(lambda b: operator.forward(many[0], b, 0.7, True))(torch.randn(5, 4))
    gradients = vmap(lambda x, g: operator.backward(g, None, x, bias, 0.7, False, x, [True, False])[0])(many, many)
    torch.testing.assert_close(gradients, 1.4 * many * many)
    of_x, of_bias = vmap(lambda x, g: operator.backward(g, None, x, bias, 0.7, False, x, [True, True]))(many, many)
    torch.testing.assert_close((of_x, of_bias), (1.4 * many * many, many.sum(1)))


def test_vmap_by_loop():
    spec = OperatorSpec(**{**SPEC.__dict__, "name": "test_rule", "vmap": autograd.loop_over_samples})
    operator = define_operator(spec, "torch", forward, fake, backward, saved=("y",))
    autograd.OPERATORS.pop("test_rule_torch")
    many = torch.randn(5, 3, 4)
    mapped = vmap(lambda x: operator.forward(x, None, 0.7, True), in_dims=1)
    torch.testing.assert_close(mapped(many.movedim(0, 1)), reference(many, None, 0.7, True))


ONE = torch.ones((), dtype=torch.float64)
#: Transforms, and the functions of the operator that they call in this order.
TRANSFORMS = {
    "grad": (grad, ["forward", "backward"]),
    "jacrev": (jacrev, ["forward", "backward"]),
    "vmap of grad": (lambda f: lambda x: vmap(grad(f))(torch.stack([x, 2 * x])), ["forward", "backward"]),
    "grad of vmap": (lambda f: grad(lambda x: vmap(f)(torch.stack([x, 2 * x])).sum()), ["forward", "backward"]),
    "vjp": (lambda f: lambda x: vjp(f, x)[1](ONE), ["forward", "backward"]),
    "grad of grad": (
        lambda f: grad(lambda x: grad(f)(x).square().sum()), ["forward", "backward", "reference", "backward"],
    ),
    "jvp": (lambda f: lambda x: jvp(f, (x,), (x,)), ["reference"]),
    "vmap of jvp": (
        lambda f: lambda x: vmap(lambda v: jvp(f, (x,), (v,))[1])(torch.stack([x, 2 * x])), ["reference"],
    ),
    "jvp of vjp": (lambda f: lambda x: jvp(vjp(f, x)[1], (ONE,), (ONE,)), ["forward", "reference"]),
    "hessian": (hessian, ["reference"]),
    "jacfwd of jacfwd": (lambda f: jacfwd(jacfwd(f)), ["reference"]),
    "jacrev of jacfwd": (lambda f: jacrev(jacfwd(f)), ["reference"]),
    "jacrev of jacrev": (lambda f: jacrev(jacrev(f)), ["forward", "backward", "reference", "backward"]),
}  # fmt: skip


@pytest.mark.parametrize("transform, expected", TRANSFORMS.values(), ids=TRANSFORMS)
def test_torch_func(transform, expected):
    """Reverse mode runs the operators; its own derivatives, and forward mode, are those of the reference."""
    calls = []

    def recorded(function):
        return lambda *arguments: (calls.append(function.__name__), function(*arguments))[1]

    spec = OperatorSpec(**{**SPEC.__dict__, "name": "test_calls", "reference": recorded(reference)})
    operator = define_operator(spec, "torch", recorded(forward), fake, recorded(backward), saved=("y",))
    autograd.OPERATORS.pop("test_calls_torch")
    x, b = (tensor.detach() for tensor in inputs())

    def loss_of(function):
        return lambda x: sum(output.square().sum() for output in function(x, b, 0.7, True))

    torch.testing.assert_close(transform(loss_of(operator.transformable))(x), transform(loss_of(reference))(x))
    assert calls == expected


def test_dual_numbers_keep_their_tangents(operator):
    x, b = inputs()
    direction = torch.randn_like(x)
    y, _ = operator.forward(x, b, 0.7, False)
    with forward_ad.dual_level():
        outputs = operator.transformable(forward_ad.make_dual(x.detach(), direction), b, 0.7, True)
        tangents = [forward_ad.unpack_dual(output).tangent for output in outputs]
        dual_grad = forward_ad.make_dual(torch.ones_like(y), direction)
        of_gradient = forward_ad.unpack_dual(torch.autograd.grad(y, x, dual_grad)[0]).tangent
    expected = torch.func.jvp(lambda x: reference(x, b, 0.7, True), (x.detach(),), (direction,))[1]
    torch.testing.assert_close(tangents, list(expected))
    torch.testing.assert_close(of_gradient, 1.4 * x.detach() * direction)
