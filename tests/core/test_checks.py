"""The argument checks: valid arguments and error messages."""

import math

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
