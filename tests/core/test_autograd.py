"""The operator factory, with a small operation: schema, gradients of any order, vmap and errors."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
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
    with pytest.raises(ValueError, match="vmap over the gradient of bias, which all samples share"):
        vmap(lambda x: operator.backward(x, None, x, bias, 0.7, False, x, [True, True]))(many)


@pytest.mark.parametrize("refused", [False, True])
def test_vmap_by_loop_and_refused(refused):
    reason = functools.partial(autograd.refuse_vmap, reason="use a loop")
    rule = reason if refused else autograd.loop_over_samples
    spec = OperatorSpec(**{**SPEC.__dict__, "name": f"test_rule_{refused}", "vmap": rule})
    operator = define_operator(spec, "torch", forward, fake, backward, saved=("y",))
    autograd.OPERATORS.pop(f"test_rule_{refused}_torch")
    many = torch.randn(5, 3, 4)
    mapped = vmap(lambda x: operator.forward(x, None, 0.7, True), in_dims=1)
    if refused:
        with pytest.raises(ValueError, match="test_rule_True: vmap is not supported, use a loop"):
            mapped(many.movedim(0, 1))
    else:
        torch.testing.assert_close(mapped(many.movedim(0, 1)), reference(many, None, 0.7, True))
