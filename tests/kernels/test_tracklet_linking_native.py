"""The native path: as exact as plain PyTorch, with right gradients."""

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain
from torch.autograd import gradcheck

from art_kernels.tracklet_linking import native, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "videos, frames, count, channels", [(2, 7, 3, 100), (3, 16, 2, 256), (1, 1, 5, 33), (2, 5, 1, 96)]
)
def test_agrees_with_float64(device, dtype, videos, frames, count, channels):
    def call(function):
        return lambda responses: function(responses)[1:]

    def draw():
        return [torch.randn(videos, frames, count, channels, device=device)]

    assert_as_exact_as_plain(call(native.link_by_index), call(reference.link_by_index), draw, dtype)
    (responses,) = draw()
    assert torch.equal(native.link_by_index(responses)[0], reference.link_by_index(responses)[0])


def test_gradients():
    responses = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda responses: native.link_by_index(responses)[1], (responses,))
