"""The native path: as exact as plain PyTorch, with right gradients."""

import pytest
import torch
from kernel_agreement import LargeResults, assert_as_exact_as_plain
from torch.autograd import gradcheck, gradgradcheck

from art_kernels.tracklet_contrast import native, reference

OPTIONS = [
    {},
    {"margin": -0.3, "temporal_form": "absolute"},
    {"clamp_repulsion": True},
    {"tracklet_form": "flattened"},
    {"tracklet_form": "flattened", "clamp_repulsion": True, "temporal_form": "absolute"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "videos, frames, count, channels", [(2, 7, 3, 100), (3, 16, 2, 256), (1, 1, 5, 33), (2, 5, 1, 96)]
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("aggregated", [False, True], ids=["", "aggregated"])
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_agrees_with_float64(device, dtype, videos, frames, count, channels, options, aggregated, ragged):
    if aggregated and "tracklet_form" in options:
        options = {**options, "tracklet_form": "pooled"}
    valid = torch.rand(videos, frames, device=device) > 0.3 if ragged else None

    def draw():
        # One direction shared by all responses brings the cosines to both sides of the margin.
        responses = torch.randn(videos, frames, count, channels, device=device) + torch.randn(channels, device=device)
        return [responses, *([torch.randn(videos, count, channels, device=device) + 0.5] if aggregated else [])]

    def call(function):
        def run(responses, aggregated=None):
            return function(responses, aggregated, **{"margin": 0.6, **options}, valid=valid)

        return run

    assert_as_exact_as_plain(call(native.mtc_loss), call(reference.mtc_loss), draw, dtype, summand=1.0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_gradients_of_first_and_second_order(options, ragged):
    responses = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, True, False], [False, False, False]]) if ragged else None

    def call(responses, aggregated=None):
        return native.mtc_loss(responses, aggregated, valid=valid, **options)

    assert gradcheck(call, (responses,))
    assert gradgradcheck(call, (responses,))
    if "tracklet_form" not in options:
        assert gradcheck(call, (responses, torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)))


def test_forward_makes_no_normalised_copy(device):
    responses = torch.randn(2, 16, 2, 64, device=device)
    with torch.no_grad(), LargeResults(responses) as large:
        native.mtc_loss(responses)
    assert large.names == []
