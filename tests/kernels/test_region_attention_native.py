"""The native path: as exact as plain PyTorch, right gradients of every order, no copies of the regions."""

import pytest
import torch
from kernel_agreement import LargeResults, assert_as_exact_as_plain
from torch.autograd import gradcheck, gradgradcheck

from art_kernels.region_attention import native, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("frames, rows, count, channels", [(8, 1, 49, 96), (4, 3, 197, 100), (2, 16, 49, 1000)])
@pytest.mark.parametrize("position", [False, True], ids=["", "position"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5], ids=["", "normed"])
def test_agrees_with_float64(device, dtype, frames, rows, count, channels, position, masked, layer_norm_eps):
    mask = torch.rand(frames, count, device=device) > 0.3 if masked else None
    if mask is not None:
        mask[0] = False

    def draw():
        shapes = [(frames, rows, channels), (frames, count, channels), *([(count, channels)] if position else [])]
        queries, *others = (torch.randn(shape, device=device) for shape in shapes)
        return [2 * queries, *others]

    def call(function):
        def run(queries, regions, key_position=None):
            return function(queries, regions, channels**-0.5, key_position, mask, layer_norm_eps)

        return run

    assert_as_exact_as_plain(call(native.region_attention), call(reference.region_attention), draw, dtype)


@pytest.mark.parametrize("mean", [1.0, 10.0, 100.0])
def test_layer_norm_stays_exact_far_from_zero(device, mean):
    def draw():
        return [3 * torch.randn(4, 16, 256, device=device), torch.randn(4, 50, 256, device=device) + mean]

    def call(function):
        return lambda queries, regions: function(queries, regions, 256**-0.5, None, None, 1e-5)

    assert_as_exact_as_plain(call(native.region_attention), call(reference.region_attention), draw, torch.float32)


@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", [False, True])
def test_gradients_of_first_and_second_order(layer_norm_eps, masked, position):
    queries, regions = (torch.randn(2, size, 4, dtype=torch.float64, requires_grad=True) for size in (3, 5))
    key_position = torch.randn(5, 4, dtype=torch.float64, requires_grad=True) if position else None
    mask = None
    if masked:
        mask = torch.tensor([[True, False, True, True, False], [False] * 5])

    def call(queries, regions, key_position):
        return native.region_attention(queries, regions, 0.7, key_position, mask, layer_norm_eps)

    assert gradcheck(call, (queries, regions, key_position))
    assert gradgradcheck(call, (queries, regions, key_position))


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["output", "map", "both"])
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)], ids=["queries", "regions", "position", "two"])
def test_gradient_of_a_part(used, needed):
    shapes = [(2, 3, 8), (2, 5, 8), (5, 8)]
    tensors = [torch.randn(shape, requires_grad=index in needed) for index, shape in enumerate(shapes)]
    leaves = [tensors[index] for index in needed]
    results = []
    for function in (native.region_attention, reference.region_attention):
        outputs = function(tensors[0], tensors[1], 0.3, tensors[2])
        results.append(torch.autograd.grad(sum(outputs[index].square().sum() for index in used), leaves))
    torch.testing.assert_close(*results)


def test_forward_makes_nothing_of_the_size_of_the_regions(device):
    queries, position = torch.randn(4, 2, 32, device=device), torch.randn(50, 32, device=device)
    for regions in (torch.randn(4, 50, 32, device=device), torch.randn(50, 4, 32, device=device).transpose(0, 1)):
        with torch.no_grad(), LargeResults(regions) as large:
            native.region_attention(queries, regions, 1.0, position)
        assert large.names == []
        with torch.no_grad(), LargeResults(regions) as large:
            reference.region_attention(queries, regions, 1.0, position)
        assert large.names == ["aten.add.Tensor"], (
            "the definition does form regions + position; the record must show it"
        )


def test_backward_writes_the_gradient_of_the_regions_once(device):
    queries = torch.randn(4, 2, 32, device=device, requires_grad=True)
    regions = torch.randn(4, 50, 32, device=device, requires_grad=True)
    output, _ = native.region_attention(queries, regions, 1.0)
    loss = output.sum()
    with LargeResults(regions) as large:
        torch.autograd.grad(loss, [queries, regions])
    assert large.names == ["aten.bmm.default"]


def test_float16_scores_may_exceed_its_range_before_the_scale(device):
    queries, regions = torch.full((1, 1, 512), 16.0), torch.full((1, 3, 512), 16.0)  # q · x = 131072
    output, _ = native.region_attention(queries.half().to(device), regions.half().to(device), 512**-1.0)
    assert (output == 16).all()
