"""The argument checks: valid arguments and error messages."""

import math

import numpy as np
import pytest
import torch

from art_kernels._core import checks


def test_valid_arguments():
    tensor = torch.zeros(2, 0, 4)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        checks.check_floating("op", "x", tensor.to(dtype), "[F,N,C]")
    checks.check_sizes("op", "x", tensor, "[F,N,C]", (2, 0, 4))
    checks.check_mask("op", "m", torch.zeros(2, 3, dtype=torch.bool), "[F,N]", (2, 3), torch.device("cpu"))
    checks.check_ids("op", "i", torch.zeros(3, dtype=torch.int64), "[N]", (3,), torch.device("cpu"))
    checks.check_same_device("op", "x", tensor, "y", tensor)
    checks.check_same_dtype("op", "x", tensor, "y", tensor)
    checks.check_number("op", "a", 1, low=0.0, high=1.0)
    checks.check_number("op", "a", 0.0, low=0.0, high=1.0)
    checks.check_number("op", "a", -1e30)
    checks.check_count("op", "n", 1)
    checks.check_flag("op", "f", False)
    checks.check_choice("op", "c", "b", ("a", "b"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1, -0.1, 0])
def test_numbers_out_of_range(value):
    with pytest.raises(ValueError, match=r"op: a is .*, expected a finite number in \(0.0, 1.0\]; choose a value"):
        checks.check_number("op", "a", value, low=0.0, high=1.0, low_is_open=True)


@pytest.mark.parametrize("value", [True, "1", None, [1], torch.tensor(1.0)])
def test_not_a_number_type(value):
    with pytest.raises(TypeError, match=r"op: a is .*expected a number \(int or float\)"):
        checks.check_number("op", "a", value)


def test_messages_explain_the_fix():
    with pytest.raises(TypeError, match=r"convert it with x.float\(\)"):
        checks.check_floating("op", "x", torch.zeros(2, 2, dtype=torch.int8), "[N,C]")
    with pytest.raises(ValueError, match="reshape it, or add the missing dimensions with unsqueeze"):
        checks.check_floating("op", "x", torch.zeros(2), "[N,C]")
    with pytest.raises(ValueError, match="dimension 1 must match the other arguments"):
        checks.check_sizes("op", "x", torch.zeros(2, 3), "[N,C]", (2, 4))
    with pytest.raises(TypeError, match="compare first, for example mask > 0"):
        checks.check_mask("op", "m", torch.zeros(2, 3), "[F,N]", (2, 3), torch.device("cpu"))
    with pytest.raises(TypeError, match=r"op: i is None, expected an int64 torch.Tensor of shape \[N\]"):
        checks.check_ids("op", "i", None, "[N]", (3,), torch.device("cpu"))
    with pytest.raises(TypeError, match=r"op: i has dtype torch.int32, expected torch.int64; convert it with i.long"):
        checks.check_ids("op", "i", torch.zeros(3, dtype=torch.int32), "[N]", (3,), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"op: i has shape \[2\], expected \[N\] = \[3\]"):
        checks.check_ids("op", "i", torch.zeros(2, dtype=torch.int64), "[N]", (3,), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"op: i is on meta, expected cpu; move it with i.to\('cpu'\)"):
        checks.check_ids("op", "i", torch.zeros(3, dtype=torch.int64, device="meta"), "[N]", (3,), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"move it with x.to\('meta'\)"):
        checks.check_same_device("op", "x", torch.zeros(1), "y", torch.zeros(1, device="meta"))
    with pytest.raises(TypeError, match=r"convert one of them, or run under torch.autocast"):
        checks.check_same_dtype("op", "x", torch.zeros(1), "y", torch.zeros(1).half())
    with pytest.raises(TypeError, match=r"op: n is 2.0 of type float, expected an int"):
        checks.check_count("op", "n", 2.0)
    with pytest.raises(TypeError, match="op: f is None, expected True or False"):
        checks.check_flag("op", "f", None)
    with pytest.raises(ValueError, match="op: c is 'z', expected one of 'a', 'b'"):
        checks.check_choice("op", "c", "z", ("a", "b"))


LARGE = {
    "nested list": [[0.5] * 300] * 300,
    "range": list(range(100_000)),
    "dict": dict.fromkeys(range(1000), "x" * 1000),
    "bytes": b"x" * 100_000,
    "string": "fast\n" * 10_000,
    "array": np.full((200, 200), 0.5),
    "list of arrays": [np.full((200, 200), 0.5)] * 3,
    "tensor": torch.rand(200, 200),
    "list of tensors": [torch.rand(200, 200)] * 3,
    "integer": 10**10_000,
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize(
    "check",
    [
        lambda value: checks.check_floating("op", "x", None if isinstance(value, torch.Tensor) else value, "[N,C]"),
        lambda value: checks.check_number("op", "x", value, low=0.0, high=1.0),
        lambda value: checks.check_count("op", "x", -value if isinstance(value, int) else value),
        lambda value: checks.check_flag("op", "x", value),
        lambda value: checks.check_choice("op", "x", value, ("a", "b")),
    ],
    ids=["floating", "number", "count", "flag", "choice"],
)
def test_messages_are_one_short_line_whatever_was_passed(check, value):
    with pytest.raises((TypeError, ValueError), match="op: x is ") as caught:
        check(value)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_descriptions():
    assert checks.describe([[1.0] * 9] * 9).startswith("[[1.0, 1.0, 1.0, 1.0, ...], [1.0, ")
    assert checks.describe([[1.0] * 9] * 9).endswith("... of type list")
    assert checks.describe(torch.zeros(2, 3)) == "of type Tensor with shape [2, 3]"
    assert checks.describe(np.zeros((2, 3))) == "of type ndarray with shape [2, 3]"
    assert checks.describe(torch.tensor(0.5)) == "tensor(0.5000) of type Tensor"
    assert checks.describe(10**10_000) == "a number of 33220 bits of type int"
    assert checks.describe(None) == "None"
    assert checks.shorten("hinge") == "'hinge'"


def test_an_integer_beyond_the_range_of_float_is_no_finite_number():
    with pytest.raises(ValueError, match=r"op: a is 1000.*000, expected a finite number in \(-inf, inf\)"):
        checks.check_number("op", "a", 10**400)
