"""The native path: as exact as plain PyTorch, with right gradients, in blocks."""

import pytest
import torch
from contrast_cases import OPTIONS, agreement
from kernel_agreement import LargeResults
from torch.autograd import gradcheck, gradgradcheck

from art_kernels import mtc_loss
from art_kernels.tracklet_contrast import native
from art_kernels.tracklet_contrast.passes import Options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(2, 7, 3, 100), (3, 16, 2, 256), (1, 1, 5, 33), (2, 5, 1, 96)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("aggregated", [False, True], ids=["", "aggregated"])
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_agrees_with_float64(device, dtype, sizes, options, aggregated, ragged):
    agreement("native", device, dtype, sizes, options, aggregated=aggregated, ragged=ragged)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_blocks_change_nothing(monkeypatch, options):
    responses = torch.randn(5, 4, 3, 8, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(5, 4) > 0.3

    def run():
        loss = mtc_loss(responses, valid=valid, backend="native", **options)
        return [*loss, *torch.autograd.grad(loss.total, [responses])]

    expected = run()
    monkeypatch.setitem(native.BLOCK_BYTES, "cpu", 2 * 4 * 3 * 8 * 8)
    assert len(list(native._blocks(responses))) == 3
    torch.testing.assert_close(run(), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_gradients_of_first_and_second_order(options, ragged):
    responses = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, True, False], [False, False, False]]) if ragged else None

    def call(responses, aggregated=None):
        return tuple(mtc_loss(responses, aggregated, valid=valid, backend="native", **options))

    assert gradcheck(call, (responses,))
    assert gradgradcheck(call, (responses,))
    if "tracklet_form" not in options:
        aggregated = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
        assert gradcheck(call, (responses, aggregated))
        assert gradgradcheck(call, (responses, aggregated))


@pytest.mark.parametrize("gradients", [False, True])
def test_forward_makes_nothing_as_large_as_the_responses(device, gradients):
    responses = torch.randn(2, 16, 2, 64, device=device)
    with torch.no_grad(), LargeResults(responses) as large:
        native.forward(responses, None, None, Options(0.6, False, False, False), gradients)
    assert large.names == []
