"""Autocast rules, the accumulation dtype, and cosines of zero vectors."""

import pytest
import torch
from torch.autograd import gradcheck

from art_kernels._core import precision
from art_kernels._core.precision import cosine_norms, unit_vectors


def test_no_cast_without_autocast(device):
    tensor = torch.zeros(2, device=device).half()
    assert precision.autocast_dtype(device) is None
    assert precision.autocast_as_matmul(tensor) is tensor
    assert precision.autocast_as_softmax(tensor) is tensor
    assert precision.autocast_dtype(torch.device("meta")) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_casts_under_autocast(device, dtype):
    single, double = torch.zeros(2, device=device), torch.zeros(2, device=device).double()
    with torch.autocast(device.type, dtype):
        assert precision.autocast_dtype(device) == dtype
        assert precision.autocast_as_matmul(single).dtype == dtype
        assert precision.autocast_as_softmax(single.to(dtype)).dtype == torch.float32
        assert precision.autocast_as_matmul(double) is double
        assert precision.autocast_as_softmax(double) is double
        with precision.without_autocast(device):
            assert (single[None] @ single).dtype == torch.float32
        assert (single[None] @ single).dtype == dtype


def test_accumulation_dtype():
    found = [precision.accumulation_dtype(dtype) for dtype in precision.FLOATING]
    assert found == [torch.float32, torch.float32, torch.float32, torch.float64]
    tensor = torch.zeros(1)
    assert precision.at_least_float32(tensor) is tensor


def test_unit_vectors(device):
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]], device=device, requires_grad=True)
    units = unit_vectors(vectors)
    torch.testing.assert_close(units.tolist(), [[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]])
    (gradient,) = torch.autograd.grad(units[:, 0].sum(), [vectors])
    torch.testing.assert_close(gradient.tolist(), [[0.128, -0.096], [0.0, 0.0], [0.5, 0.0]])


@pytest.mark.parametrize("length", [1e-15, 1e15])
def test_direction_does_not_depend_on_length(device, length):
    vectors = torch.tensor([[0.6, 0.8]], device=device) * length
    torch.testing.assert_close(unit_vectors(vectors).tolist(), [[0.6, 0.8]])


def test_norms_of_zero_vectors_are_infinite():
    norms = cosine_norms(torch.tensor([4.0, 0.0, 1e-40, 1e-36]))
    torch.testing.assert_close(norms.tolist(), [2.0, torch.inf, torch.inf, 1e-18])


def test_gradient_of_unit_vectors():
    vectors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(unit_vectors, (vectors,))
