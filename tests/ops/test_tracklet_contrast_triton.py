"""The Triton kernels of `mtc_loss`: on a GPU, or on the CPU by Triton's interpreter, against the definition."""

import math

import pytest
import torch
from contrast_cases import OPTIONS, agreement

from art_kernels import backends, mtc_loss

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
launch = pytest.importorskip("art_kernels.tracklet_contrast.launch")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]  # see device_refusal
SIZES = [(2, 10, 2, 72), (2, 1, 5, 33), (2, 5, 1, 96), (1, 3, 19, 40), (1, 2, 32, 130)]


def draws(dtype):
    """Fewer in the interpreter, which is slow; fewest in 16 bits, where plain PyTorch errs so much that two tell."""
    if DEVICE.type == "cuda":
        return 12
    return 4 if dtype == torch.float32 else 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("aggregated, ragged", [(False, False), (True, True), (False, True)], ids=str)
def test_agrees_with_float64(dtype, options, aggregated, ragged):
    if aggregated and "tracklet_form" in options:
        pytest.skip("flattened tracklets have no aggregated ones")
    agreement(
        "triton", DEVICE, dtype, (2, 7, 3, 100), options, aggregated=aggregated, ragged=ragged, draws=draws(dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("options", [OPTIONS[2], OPTIONS[3]], ids=str)
def test_agrees_with_float64_at_other_sizes(dtype, sizes, options):
    agreement("triton", DEVICE, dtype, sizes, options, aggregated=False, ragged=True, draws=draws(dtype))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, -2.0, 5.0)], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=str)
def test_any_weighting_gives_the_gradients_of_the_definition(weights, options):
    data = torch.randn(2, 5, 3, 40, device=DEVICE)
    results = []
    for backend in ("triton", "native", "reference"):
        responses = data.clone().requires_grad_()
        loss = mtc_loss(responses, backend=backend, **options)
        weighted = sum(weight * term for weight, term in zip(weights, loss, strict=True))
        results.append(torch.autograd.grad(weighted, [responses]))
    for result in results[:2]:
        torch.testing.assert_close(result, results[2], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=str)
def test_layouts_are_read_in_place(options):
    responses = torch.randn(2, 5, 3, 40, device=DEVICE)
    valid = torch.rand(2, 5, device=DEVICE) > 0.3
    frames_first = responses.transpose(0, 1).contiguous().transpose(0, 1)
    tracklets_first = responses.transpose(1, 2).contiguous().transpose(1, 2)
    channels_first = responses.mT.contiguous().mT
    unaligned = torch.randn(1 + responses.numel(), device=DEVICE)[1:].view_as(responses).copy_(responses)
    results = []
    for layout in (responses, frames_first, tracklets_first, channels_first, unaligned):
        leaf = layout.requires_grad_()
        loss = mtc_loss(leaf, valid=valid.mT.contiguous().mT, backend="triton", **options)
        results.append([*loss, *torch.autograd.grad(loss.total, [leaf])])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_parts_of_flattened_tracklets_are_taken_where_videos_are_few():
    from art_kernels.devices import device_of
    from art_kernels.tracklet_contrast.calls import Rows, flattened_call
    from art_kernels.tracklet_contrast.passes import Options

    responses = torch.randn(1, 5, 3, 40, device=DEVICE)
    rows = Rows(responses, None, device_of(DEVICE))
    call, partial = flattened_call(rows, Options(0.6, False, False, True), torch.empty_like(responses))
    assert call.grid[0] == len(partial) > 1, "or the tests of it test nothing"


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4]], ids=str)
def test_invalid_frames_are_not_read(poison, options):
    data = torch.randn(3, 5, 3, 40, device=DEVICE)
    valid = torch.rand(3, 5, device=DEVICE) > 0.3
    valid[0] = False
    results = []
    for value in (0.0, poison):
        leaf = data.masked_fill(~valid[:, :, None, None], value).requires_grad_()
        loss = mtc_loss(leaf, valid=valid, backend="triton", **options)
        results.append([*loss, *torch.autograd.grad(loss.total, [leaf])])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert (results[0][3][~valid] == 0).all()


def test_small_gradients_do_not_vanish_in_sixteen_bits():
    data = 100 * torch.randn(1, 4, 3, 40, device=DEVICE)
    results = []
    for dtype in (torch.float16, torch.float32):
        leaf = data.half().to(dtype).requires_grad_()
        loss = 1e4 * mtc_loss(leaf, backend="triton").total  # as a scaler of the loss does
        results.append(torch.autograd.grad(loss, [leaf])[0].float())
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3 * results[1].abs().max().item())


def test_refusals():
    def why(count, dtype=torch.float32):
        return backends.refusal("mtc_loss", "triton", torch.empty(1, 2, count, 8, dtype=dtype, device=DEVICE))

    assert why(32) is None
    assert why(33) == "the kernels compare at most 32 tracklets, and these are 33"
    assert why(2, torch.float64) == "the kernels compute in float32"
    chosen = backends.choose("mtc_loss", torch.empty(1, 2, 3, 8, device=DEVICE))
    assert chosen == ("native" if DEVICE.type == "cpu" else "triton"), "never the interpreter unasked"


def test_without_a_gpu_the_kernels_ask_for_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r"mtc_loss: backend='triton' cannot serve .* TRITON_INTERPRET=1"):
        mtc_loss(torch.randn(1, 2, 3, 8), backend="triton")
