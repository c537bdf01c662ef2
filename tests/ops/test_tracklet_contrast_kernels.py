"""The Triton kernels of `mtc_loss`, on a GPU or in Triton's interpreter; operators of all backends."""

import math

import pytest
import torch
from operator_checks import DEVICE, KERNEL_DTYPES, assert_captured_in_cuda_graph, other_layouts, requires_gpu
from test_tracklet_contrast import OPTIONS, assert_agrees, results
from torch.func import vmap
from torch.library import opcheck

from art_kernels import mtc_loss
from art_kernels._core.autograd import OPERATORS
from art_kernels._core.launch import device_spec
from art_kernels.tracklet_contrast.reference import Arguments

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
kernels = pytest.importorskip("art_kernels.tracklet_contrast.triton")

FUSED = ["torch", "triton"]


def draws(dtype):
    """Few in the interpreter, which is slow; fewest in 16 bits, where the error of plain PyTorch is large."""
    if DEVICE.type == "cuda":
        return 12
    return 4 if dtype == torch.float32 else 2


#: Each option with and without missing frames where that takes another way through the kernels; aggregated or not.
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "options, aggregated, ragged",
    [
        (OPTIONS[0], False, False),
        (OPTIONS[0], True, True),
        (OPTIONS[1], False, True),
        (OPTIONS[1], True, True),
        (OPTIONS[2], True, True),
        (OPTIONS[2], False, False),
        (OPTIONS[3], False, False),
        (OPTIONS[4], False, True),
    ],
    ids=str,
)
def test_triton_agrees_with_float64(dtype, options, aggregated, ragged):
    sizes = (2, 7, 3, 100)
    assert_agrees("triton", DEVICE, dtype, sizes, options, aggregated=aggregated, ragged=ragged, draws=draws(dtype))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", [(2, 10, 2, 72), (2, 1, 5, 33), (2, 5, 1, 96), (1, 3, 19, 40), (1, 2, 32, 130)], ids=str
)
@pytest.mark.parametrize("options", [OPTIONS[2], OPTIONS[3]], ids=str)
def test_triton_agrees_with_float64_at_other_sizes(dtype, sizes, options):
    assert_agrees("triton", DEVICE, dtype, sizes, options, aggregated=False, ragged=True, draws=draws(dtype))


@pytest.mark.parametrize("backend", FUSED)
def test_second_order_gradient_is_that_of_the_reference(device, backend):
    data = torch.randn(2, 4, 3, 8, device=device)
    results = []
    for name in (backend, "reference"):
        responses = data.clone().requires_grad_()
        (first,) = torch.autograd.grad(mtc_loss(responses, backend=name).total, responses, create_graph=True)
        results.append([first.detach(), *torch.autograd.grad(first.square().sum(), responses)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, -2.0, 5.0)], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=str)
def test_gradients_of_any_weighting_of_the_terms(weights, options):
    data = torch.randn(2, 5, 3, 40, device=DEVICE)
    results = []
    for backend in ("triton", "torch", "reference"):
        responses = data.clone().requires_grad_()
        loss = mtc_loss(responses, backend=backend, **options)
        weighted = sum(weight * term for weight, term in zip(weights, loss, strict=True))
        results.append(torch.autograd.grad(weighted, [responses]))
    for result in results[:2]:
        torch.testing.assert_close(result, results[2], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=str)
@pytest.mark.parametrize("backend", FUSED)
def test_layouts_are_read_in_place(backend, options):
    responses = torch.randn(2, 5, 3, 40, device=DEVICE)
    options = {"valid": (torch.rand(5, 2, device=DEVICE) > 0.3).mT, "backend": backend, **options}
    expected = results(responses, **options)
    exact = {"rtol": 0, "atol": 0} if backend == "triton" else {}
    wide = torch.cat([responses, responses], -1)[..., :40]
    for layout in (*other_layouts(responses), wide, responses.transpose(1, 2).contiguous().transpose(1, 2)):
        torch.testing.assert_close(results(layout, **options), expected, **exact)


def test_flattened_tracklets_are_split_if_there_are_few_videos():
    responses = torch.randn(1, 5, 3, 40, device=DEVICE)
    rows = kernels.Rows(responses, None, device_spec(DEVICE))
    options = Arguments(responses, None, None, 0.6, False, False, True, True)
    launch, partial = kernels.flattened_launch(rows, options, torch.empty_like(responses))
    assert launch.grid[0] == len(partial) > 1, "the other tests would not cover splits"


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4]], ids=str)
def test_invalid_frames_are_not_read(poison, options):
    data = torch.randn(3, 5, 3, 40, device=DEVICE)
    valid = torch.rand(3, 5, device=DEVICE) > 0.3
    valid[0] = False
    clean, poisoned = (
        results(data.masked_fill(~valid[:, :, None, None], value), valid=valid, backend="triton", **options)
        for value in (0.0, poison)
    )
    torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)
    assert (clean[3][~valid] == 0).all()


def test_small_gradients_do_not_underflow_in_16_bits():
    data = 100 * torch.randn(1, 4, 3, 40, device=DEVICE)
    results = []
    for dtype in (torch.float16, torch.float32):
        leaf = data.half().to(dtype).requires_grad_()
        loss = 1e4 * mtc_loss(leaf, backend="triton").total  # like a gradient scaler
        results.append(torch.autograd.grad(loss, [leaf])[0].float())
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3 * results[1].abs().max().item())


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("aggregated, flattened", [(False, False), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_opcheck(device, backend, aggregated, flattened, ragged):
    operator = OPERATORS[f"mtc_loss_{backend}"]
    responses = torch.randn(2, 4, 3, 8, device=device, requires_grad=True)
    pooled = torch.randn(2, 3, 8, device=device, requires_grad=True) if aggregated else None
    valid = torch.rand(2, 4, device=device) > 0.3 if ragged else None
    arguments = Arguments(responses, pooled, valid, 0.6, False, True, flattened, gradients=False)
    found = opcheck(operator.forward, arguments, test_utils=("test_schema", "test_faketensor"))
    assert set(found.values()) == {"SUCCESS"}
    arguments = arguments._replace(gradients=True)
    assert set(opcheck(operator.forward, arguments).values()) == {"SUCCESS"}
    saved = [tensor.detach() for tensor in operator.forward(*arguments)[1:]]
    arguments = [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments]
    for needs in ([True, aggregated], [False, False]):
        values = (torch.randn(3, device=device), *arguments, *saved, needs)
        assert set(opcheck(operator.backward, values).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", FUSED)
def test_vmap_computes_one_loss_per_sample(device, backend):
    responses = torch.randn(5, 2, 4, 3, 8, device=device)
    valid = torch.rand(2, 4, device=device) > 0.3

    def call(responses):
        return tuple(mtc_loss(responses, valid=valid, backend=backend))

    mapped = vmap(call)(responses)
    for one, terms in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close(terms, call(responses[one]))


@pytest.mark.parametrize("backend", FUSED)
def test_nothing_is_saved_without_gradients(device, backend):
    responses = torch.randn(2, 4, 3, 8, device=device)
    operator = OPERATORS[f"mtc_loss_{backend}"].forward
    _, scale, *saved = operator(responses, None, None, 0.6, False, False, False, False)
    assert scale.shape == (3,) and all(tensor.numel() == 0 for tensor in saved)


@requires_gpu
@pytest.mark.parametrize("backend", FUSED)
def test_cuda_graph_and_synchronization(backend):
    responses = torch.randn(2, 4, 3, 8, device="cuda", requires_grad=True)
    valid = torch.rand(2, 4, device="cuda") > 0.3

    def call(responses):
        unmasked, masked = (mtc_loss(responses, valid=mask, backend=backend) for mask in (None, valid))
        return *unmasked, *masked

    assert_captured_in_cuda_graph(call, [responses])
