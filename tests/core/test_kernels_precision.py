"""The autocast rules and the accumulation dtype."""

import pytest
import torch

from art_kernels import precision


def test_outside_of_autocast_nothing_is_cast(device):
    tensor = torch.zeros(2, device=device).half()
    assert precision.autocast_dtype(device) is None
    assert precision.autocast_as_matmul(tensor) is tensor
    assert precision.autocast_as_softmax(tensor) is tensor
    assert precision.autocast_dtype(torch.device("meta")) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(device, dtype):
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
