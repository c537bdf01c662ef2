"""The Triton kernels of `pool_tracklets`, on a GPU or in Triton's interpreter, and the operators they define."""

import math

import pytest
import torch
from operator_checks import DEVICE, KERNEL_DTYPES, assert_captured_in_cuda_graph, other_layouts, requires_gpu
from test_tracklet_pooling import assert_agrees
from torch.func import vmap
from torch.library import opcheck

from art_kernels import pool_tracklets
from art_kernels._core.autograd import OPERATORS
from art_kernels._core.launch import DeviceSpec
from art_kernels.tracklet_pooling import reference

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
configs = pytest.importorskip("art_kernels.tracklet_pooling.configs")
kernels = pytest.importorskip("art_kernels.tracklet_pooling.triton")


def tensors(videos=2, frames=7, count=2, semantics=5, channels=20):
    responses = torch.randn(videos, frames, count, channels, device=DEVICE)
    return [responses, torch.randn(videos, semantics, channels, device=DEVICE)]


def random_valid(videos, frames, device=DEVICE):
    valid = torch.rand(videos, frames, device=device) > 0.3
    valid[0] = False
    return valid


def results_and_gradients(values, backend="triton", **options):
    leaves = [value.detach().requires_grad_() for value in values]
    aggregated, saliency = pool_tracklets(*leaves, backend=backend, **options)
    loss = aggregated.square().sum() + saliency.square().sum()
    return [aggregated.detach(), saliency.detach(), *torch.autograd.grad(loss, leaves)]


#: Videos, frames, tracklets, semantics, channels; temperature; whether frames are missing; draws in the interpreter.
#: At temperature 0.01, the few softmaxes in which two frames have nearly the same score dominate the error. The cases
#: have many softmaxes and semantics, which cost the interpreter little, so that the result is not a matter of chance.
CASES = [
    pytest.param(11, 15, 3, 31, 33, 0.01, True, 3, id="several-tracklets-per-program", marks=pytest.mark.slow),
    pytest.param(24, 15, 1, 31, 32, 0.01, True, 4, id="one-chunk", marks=pytest.mark.slow),
    pytest.param(24, 40, 1, 31, 20, 0.01, True, 2, id="tiles", marks=pytest.mark.slow),
    pytest.param(4, 16, 3, 2, 256, 0.1, False, 1, id="chunks"),
    pytest.param(2, 67, 1, 19, 96, 1.0, False, 2, id="tiles-and-chunks"),
    pytest.param(2, 7, 1, 5, 1000, 0.1, True, 2, id="1000-channels"),
    pytest.param(4, 1, 3, 1, 33, 0.01, False, 1, id="one-frame"),
]


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("videos, frames, count, semantics, channels, temperature, ragged, draws", CASES)
def test_triton_agrees_with_float64(dtype, videos, frames, count, semantics, channels, temperature, ragged, draws):
    if DEVICE.type == "cuda":
        draws = 12
    elif dtype == torch.float16:  # the error of plain PyTorch is so large that few draws suffice
        videos, draws = max(2, videos // 4), 1
    valid = random_valid(videos, frames) if ragged else None
    sizes = (videos, frames, count, semantics, channels)
    assert_agrees("triton", DEVICE, dtype, sizes, temperature, valid, draws)


def test_cases_cover_every_branch_of_the_kernels():
    device = DeviceSpec("interpreter", 99 * 1024)

    def branches(frames, semantics, channels):
        for kernel in ("forward", "backward"):
            config = configs.find_config(kernel, torch.float32, frames, semantics, channels, device)
            yield frames <= config.block_m, config.chunks(channels) > 1

    covered = {branch for case in CASES for branch in branches(case.values[1], *case.values[3:5])}
    assert covered == {(True, False), (True, True), (False, False), (False, True)}
    if DEVICE.type == "cpu":
        assert [configs.tracklets_per_program(videos, 3, DEVICE) for videos in (11, 8)] == [2, 1]


def test_second_order_gradient_is_that_of_the_reference():
    results = []
    values = tensors(frames=4, channels=8)
    for backend in ("triton", "reference"):
        leaves = [value.clone().requires_grad_() for value in values]
        aggregated, saliency = pool_tracklets(*leaves, temperature=0.5, backend=backend)
        loss = aggregated.square().sum() + saliency.square().sum()
        (first,) = torch.autograd.grad(loss, leaves[1], create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("used", ["aggregated", "saliency"])
@pytest.mark.parametrize("needed", ["responses", "semantics"])
def test_gradient_of_one_output_with_respect_to_one_input(used, needed):
    values = tensors()
    results = []
    for backend in ("triton", "reference"):
        leaves = [
            value.clone().requires_grad_(name == needed)
            for name, value in zip(("responses", "semantics"), values, strict=True)
        ]
        aggregated, saliency = pool_tracklets(*leaves, temperature=0.1, backend=backend)
        loss = (aggregated if used == "aggregated" else saliency).square().sum()
        results.append(torch.autograd.grad(loss, leaves[needed == "semantics"]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_layouts_are_read_in_place(backend):
    responses, semantics = tensors(frames=40)
    valid = random_valid(2, 40)
    expected = results_and_gradients([responses, semantics], backend, valid=valid)
    strided, transposed_valid = semantics.mT.contiguous().mT, valid.mT.contiguous().mT
    exact = {"rtol": 0, "atol": 0} if backend == "triton" else {}
    # The other layout has the order [B, K, T, C] in memory.
    for layout in (*other_layouts(responses), responses.transpose(1, 2).contiguous().transpose(1, 2)):
        found = results_and_gradients([layout, strided], backend, valid=transposed_valid)
        torch.testing.assert_close(found, expected, **exact)
    shared = semantics[:1].expand(2, -1, -1)
    torch.testing.assert_close(
        results_and_gradients([responses, shared], backend),
        results_and_gradients([responses, shared.contiguous()], backend),
    )


@pytest.mark.parametrize("frames, poison", [(7, math.inf), (40, math.nan)])
def test_invalid_frames_are_not_read(frames, poison):
    responses, semantics = tensors(frames=frames)
    valid = random_valid(2, frames)
    invalid = ~valid[:, :, None, None]
    results = []
    for value in (0.0, poison):
        leaves = [responses.masked_fill(invalid, value).requires_grad_(), semantics.detach().requires_grad_()]
        pooled = pool_tracklets(*leaves, valid=valid, backend="triton")
        grads = [torch.ones_like(pooled[0]), torch.ones_like(pooled[1]).masked_fill(invalid[..., 0], value)]
        results.append([*pooled, *torch.autograd.grad(pooled, leaves, grads)])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    aggregated, saliency, grad_responses, grad_semantics = results[0]
    assert (aggregated[0] == 0).all() and (grad_semantics[0] == 0).all(), "the first video has no valid frame"
    assert (saliency[~valid] == 0).all() and (grad_responses[~valid] == 0).all()


def test_nan_in_a_valid_frame_propagates():
    responses, semantics = tensors()
    responses[0, 2, 1, 4] = math.nan
    aggregated, saliency = pool_tracklets(responses, semantics, backend="triton")
    assert saliency[0, :, 1].isnan().all() and aggregated[0, 1].isnan().all()
    assert saliency[0, :, 0].isfinite().all() and aggregated[1].isfinite().all()


@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_half_precision_gradients_of_any_size(size):
    """The factors of the products in the backward pass, ~ gradient / (temperature · norm), exceed float16's range."""
    values = [size * tensor.double() for tensor in tensors()]
    found = []
    for dtype in (torch.float16, torch.float64):
        leaves = [value.half().to(dtype).requires_grad_() for value in values]
        backend = "triton" if dtype == torch.float16 else "reference"
        aggregated, _ = pool_tracklets(*leaves, temperature=0.05, backend=backend)
        weight = torch.linspace(-1, 1, 20, device=DEVICE).half().to(dtype).expand_as(aggregated)
        found.append(torch.autograd.grad(aggregated, leaves, weight))
    for result, truth in zip(*found, strict=True):
        assert truth.abs().max() < 65504 and result.isfinite().all()
        error = (result.double() - truth).norm() / truth.norm()
        assert error < 2 * torch.finfo(torch.float16).eps, f"relative error {error:.3g}"


def test_maximum_number_of_semantics():
    values = tensors(videos=1, frames=18, count=1, semantics=configs.MAX_SEMANTICS)
    expected = reference.pool_tracklets(*values)
    torch.testing.assert_close(results_and_gradients(values)[:2], list(expected), rtol=1e-4, atol=1e-5)
    values = tensors(semantics=configs.MAX_SEMANTICS + 1)
    with pytest.raises(ValueError, match=r"pool_tracklets: backend='triton' does not support .* has 65; available"):
        pool_tracklets(*values, backend="triton")
    torch.testing.assert_close(pool_tracklets(*values), pool_tracklets(*values, backend="torch"))


def operator_inputs(videos=2):
    return [tensor.requires_grad_() for tensor in tensors(videos, 4, 1, 3, 8)]


@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_opcheck(ragged):
    operator = OPERATORS["pool_tracklets_triton"]
    leaves = operator_inputs()
    valid = torch.rand(2, 4, device=DEVICE) > 0.3 if ragged else None
    assert set(opcheck(operator.forward, (*leaves, 0.5, valid)).values()) == {"SUCCESS"}
    aggregated, saliency = (tensor.detach() for tensor in operator.forward(*leaves, 0.5, valid))
    detached = (*(leaf.detach() for leaf in leaves), 0.5, valid)
    for grad_saliency, needs in ((None, [True, True]), (saliency, [True, False]), (saliency, [False, True])):
        arguments = (aggregated, grad_saliency, *detached, needs)
        assert set(opcheck(operator.backward, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_merges_the_videos(dim):
    responses, semantics = (tensor.detach() for tensor in operator_inputs())
    many = torch.randn(4, *responses.shape, device=DEVICE)
    valid = torch.rand(4, 2, 4, device=DEVICE) > 0.3

    def call(responses, valid):
        return pool_tracklets(responses, semantics, valid=valid, backend="triton")

    mapped = vmap(call, in_dims=(dim, 0))(many.movedim(0, dim), valid)
    for one, results in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close(results, call(many[one], valid[one]), rtol=1e-5, atol=1e-6)


def test_vmap_of_the_gradient():
    leaves = operator_inputs()
    outputs = pool_tracklets(*leaves, temperature=0.5, backend="triton")
    grads = [torch.randn(4, *output.shape, device=DEVICE) for output in outputs]

    def gradients(*grads):
        return torch.autograd.grad(outputs, leaves, grads, retain_graph=True)

    mapped = vmap(gradients)(*grads)
    for one, results in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close(results, gradients(*(tensor[one] for tensor in grads)), rtol=1e-5, atol=1e-6)


@requires_gpu
def test_cuda_graph_and_synchronization():
    valid = random_valid(2, 4)

    def call(responses, semantics):
        return pool_tracklets(responses, semantics, valid=valid, backend="triton")

    assert_captured_in_cuda_graph(call, operator_inputs())
