"""The native path: as exact as plain PyTorch, with right gradients."""

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain
from torch.autograd import gradcheck, gradgradcheck

from art_kernels.tracklet_pooling import native, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "videos, frames, count, semantics, channels",
    [(16, 7, 3, 3, 100), (3, 16, 2, 2, 256), (1, 1, 1, 5, 96), (16, 5, 3, 1, 33)],
)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_agrees_with_float64(device, dtype, videos, frames, count, semantics, channels, temperature, ragged):
    valid = torch.rand(videos, frames, device=device) > 0.3 if ragged else None

    def draw():
        responses = torch.randn(videos, frames, count, channels, device=device)
        return [responses, torch.randn(videos, semantics, channels, device=device)]

    def call(function):
        return lambda responses, semantics: function(responses, semantics, temperature, valid)

    assert_as_exact_as_plain(call(native.pool_tracklets), call(reference.pool_tracklets), draw, dtype)


@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_gradients_of_first_and_second_order(ragged):
    responses = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    semantics = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, False, True], [False] * 3]) if ragged else None

    def call(responses, semantics):
        return native.pool_tracklets(responses, semantics, 0.5, valid)

    assert gradcheck(call, (responses, semantics))
    assert gradgradcheck(call, (responses, semantics))
