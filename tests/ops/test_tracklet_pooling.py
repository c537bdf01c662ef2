"""`pool_tracklets` with every backend: values by hand, accuracy, edge cases, autocast, compilation, and errors."""

import math

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain
from operator_checks import assert_compiles_once, assert_exports, assert_same_bits_twice, skip_unsupported
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from art_kernels import pool_tracklets
from art_kernels.tracklet_pooling import reference

BACKENDS = ["torch", "reference"]
FUSED = ["torch", "triton"]


@pytest.fixture(params=[*BACKENDS, "triton"])
def backend(request, device) -> str:
    """Every backend that supports float32 tensors on the device."""
    skip_unsupported("pool_tracklets", request.param, torch.empty(1, 1, 8, device=device))
    return request.param


def inputs(device="cpu", videos=2, frames=4, count=3, semantics=2, channels=8, **options) -> list[Tensor]:
    responses = torch.randn(videos, frames, count, channels, device=device, **options)
    return [responses, torch.randn(videos, semantics, channels, device=device, **options)]


# One video, two frames, one tracklet; with temperature 1 / log 3, a cosine of 1 gets three times the weight of 0.
@pytest.mark.parametrize(
    "semantics, valid, saliency, aggregated",
    [
        ([[3.0, 0.0]], None, [0.75, 0.25], [0.75, 0.5]),
        ([[3.0, 0.0], [0.0, 0.1], [0.0, 1.0]], None, [1.25 / 3, 1.75 / 3], [1.25 / 3, 3.5 / 3]),  # the mean over J
        ([[0.0, 0.0]], None, [0.5, 0.5], [0.5, 1.0]),
        ([[3.0, 0.0]], [False, True], [0.0, 1.0], [0.0, 2.0]),
        ([[3.0, 0.0]], [False, False], [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_reference_values(semantics, valid, saliency, aggregated):
    responses = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]], dtype=torch.float64)
    valid = None if valid is None else torch.tensor([valid])
    found = reference.pool_tracklets(responses, torch.tensor([semantics], dtype=torch.float64), 1 / math.log(3), valid)
    torch.testing.assert_close(found[0][0, 0], torch.tensor(aggregated, dtype=torch.float64))
    torch.testing.assert_close(found[1][0, :, 0], torch.tensor(saliency, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_saliency_sums_to_one_over_time(device, dtype, backend):
    aggregated, saliency = pool_tracklets(*inputs(device, dtype=dtype), backend=backend)
    assert aggregated.dtype == saliency.dtype == dtype
    assert aggregated.shape == (2, 3, 8) and saliency.shape == (2, 4, 3)
    torch.testing.assert_close(saliency.sum(1).double(), torch.ones(2, 3).double().to(device), rtol=0, atol=0.01)


def test_small_temperature_or_a_single_frame_returns_one_frame(device, backend):
    responses, semantics = inputs(device, semantics=1)
    responses[:, 2] = semantics * 5
    aggregated, saliency = pool_tracklets(responses, semantics, temperature=1e-3, backend=backend)
    torch.testing.assert_close(saliency[:, 2], torch.ones(2, 3, device=device))
    torch.testing.assert_close(aggregated, responses[:, 2])
    aggregated, saliency = pool_tracklets(responses[:, 1:2], semantics, backend=backend)
    torch.testing.assert_close(aggregated, responses[:, 1])
    assert (saliency == 1).all()


@pytest.mark.parametrize("sizes", [{"videos": 0}, {"count": 0}], ids=str)
def test_empty_sizes(device, backend, sizes):
    responses, semantics = inputs(device, **sizes, requires_grad=True)
    aggregated, saliency = pool_tracklets(responses, semantics, backend=backend)
    assert aggregated.shape == (responses.shape[0], responses.shape[2], 8)
    assert saliency.shape == responses.shape[:3]
    (aggregated.sum() + saliency.sum()).backward()
    assert (semantics.grad == 0).all() and responses.grad.numel() == 0


@pytest.mark.slow
@pytest.mark.parametrize("frames", [4, 40])
def test_zero_vectors_have_cosine_and_gradient_zero(device, backend, frames):
    responses, semantics = inputs(device, frames=frames)
    responses[0, 1], semantics[1] = 0, 0
    semantics[0, 0] = 1e-20  # its squared norm is below the smallest normal number, so it counts as zero
    leaves = [responses.requires_grad_(), semantics.requires_grad_()]
    aggregated, saliency = pool_tracklets(*leaves, temperature=0.5, backend=backend)
    torch.testing.assert_close(saliency[1], torch.full((frames, 3), 1 / frames, device=device))
    grad_responses, grad_semantics = torch.autograd.grad(saliency.square().sum(), leaves, retain_graph=True)
    assert (grad_responses[0, 1] == 0).all() and (grad_semantics[1] == 0).all() and (grad_semantics[0, 0] == 0).all()
    assert grad_responses.isfinite().all() and grad_semantics.isfinite().all() and (grad_semantics[0, 1] != 0).any()
    (gradient,) = torch.autograd.grad(aggregated.sum(), [responses])
    torch.testing.assert_close(gradient[0, 1], saliency[0, 1, :, None].expand(3, 8).detach())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_invalid_frames_are_ignored(device, backend, poison):
    valid = torch.tensor([[True, True, True, False], [False] * 4], device=device)
    data, semantics = inputs(device)
    expected, expected_saliency = pool_tracklets(data[:1, :3], semantics[:1], backend=backend)
    responses = data.masked_fill(~valid[:, :, None, None], poison).requires_grad_()
    aggregated, saliency = pool_tracklets(responses, semantics, valid=valid, backend=backend)
    torch.testing.assert_close(aggregated[:1], expected)
    torch.testing.assert_close(saliency[:1, :3], expected_saliency)
    assert (aggregated[1] == 0).all() and (saliency[~valid] == 0).all()
    (gradient,) = torch.autograd.grad(aggregated.square().sum() + saliency.square().sum(), [responses])
    assert gradient.isfinite().all() and (gradient[~valid] == 0).all() and (gradient[valid] != 0).any()


def test_autocast_computes_in_float32(device):
    responses, semantics = inputs(device)
    expected = pool_tracklets(responses.bfloat16().float(), semantics)
    for backend in BACKENDS:
        with torch.autocast(device.type, torch.bfloat16):
            results = pool_tracklets(responses.bfloat16(), semantics, backend=backend)
        torch.testing.assert_close(results, expected)


def assert_agrees(backend, device, dtype, sizes, temperature, valid, draws=12):
    """Check outputs and gradients of a backend by the tolerance rule."""

    def fast(responses, semantics):
        return pool_tracklets(responses, semantics, temperature=temperature, valid=valid, backend=backend)

    def plain(responses, semantics):
        return reference.pool_tracklets(responses, semantics, temperature, valid)

    assert_as_exact_as_plain(fast, plain, lambda: inputs(device, *sizes), dtype, draws=draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "sizes", [(16, 7, 3, 3, 100), (3, 16, 2, 2, 256), (1, 1, 1, 5, 96), (16, 5, 3, 1, 33)], ids=str
)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_torch_agrees_with_float64(device, dtype, sizes, temperature, ragged):
    valid = torch.rand(sizes[:2], device=device) > 0.3 if ragged else None
    assert_agrees("torch", device, dtype, sizes, temperature, valid)


@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_first_and_second_order_gradients(ragged):
    leaves = inputs("cpu", 2, 3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, False, True], [False] * 3]) if ragged else None

    def call(responses, semantics):
        return pool_tracklets(responses, semantics, temperature=0.5, valid=valid, backend="torch")

    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.slow
def test_two_runs_return_the_same_bits(device, backend):
    tensors = inputs(device, frames=16, channels=40, requires_grad=True)
    assert_same_bits_twice(lambda *tensors: pool_tracklets(*tensors, backend=backend), tensors)


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
def test_compiles_once_and_exports_for_all_batch_sizes(device, backend):
    def pool(responses, semantics, valid):
        return pool_tracklets(responses, semantics, valid=valid, backend=backend)

    def make_inputs(videos):
        valid = torch.rand(videos, 4, device=device) > 0.3
        return [*inputs(device, videos=videos, count=1, requires_grad=True), valid]

    assert_compiles_once(pool, make_inputs)
    assert_exports(pool, make_inputs)


RESPONSES, SEMANTICS = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 8)
VALID = torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"responses": "x"}, TypeError, r"responses is 'x' of type str, expected a torch.Tensor"),
        ({"responses": RESPONSES[0]}, ValueError, r"responses has shape \[4, 3, 8\]"),
        ({"responses": RESPONSES.bool()}, TypeError, r"responses has dtype torch.bool"),
        ({"responses": RESPONSES[:, :0]}, ValueError, r"responses has .* with at least one frame"),
        ({"semantics": None}, TypeError, r"semantics is None"),
        ({"semantics": SEMANTICS[0]}, ValueError, r"semantics has shape \[2, 8\], .* \[B,J,C\]"),
        ({"semantics": SEMANTICS[:1]}, ValueError, r"semantics has shape \[1, 2, 8\], .* \[2, 2, 8\]"),
        ({"semantics": SEMANTICS[..., 1:]}, ValueError, r"semantics has shape \[2, 2, 7\]"),
        ({"semantics": SEMANTICS.half()}, TypeError, r"semantics has dtype .* the dtype of responses"),
        ({"semantics": SEMANTICS.to("meta")}, ValueError, r"semantics is on meta, expected cpu"),
        ({"semantics": SEMANTICS[:, :0]}, ValueError, r"semantics has .* with at least one semantic"),
        ({"temperature": 0}, ValueError, r"temperature is 0, .* \(0.0, inf\)"),
        ({"temperature": math.nan}, ValueError, r"temperature is nan"),
        ({"temperature": None}, TypeError, r"temperature is None, expected a num"),
        ({"valid": VALID[:, 1:]}, ValueError, r"valid has shape \[2, 3\]"),
        ({"backend": "cuda"}, ValueError, r"backend='cuda' is not a backend"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match="pool_tracklets: .*" + message):
        pool_tracklets(**{"responses": RESPONSES, "semantics": SEMANTICS} | change)
