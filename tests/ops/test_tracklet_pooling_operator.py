"""`pool_tracklets`: corners, masks, autocast, the compiler, and every error."""

import math

import pytest
import torch
from torch import Tensor

from art_kernels import backends, pool_tracklets

BACKENDS = ["native", "reference"]


@pytest.fixture(params=[*BACKENDS, "triton"])
def backend(request, device) -> str:
    """Every backend that serves float32 tensors on the device."""
    reason = backends.refusal("pool_tracklets", request.param, torch.empty(1, 1, 8, device=device))
    if reason is not None:
        pytest.skip(reason)
    return request.param


def inputs(device="cpu", videos=2, frames=4, count=3, semantics=2, channels=8, **options) -> tuple[Tensor, Tensor]:
    responses = torch.randn(videos, frames, count, channels, device=device, **options)
    return responses, torch.randn(videos, semantics, channels, device=device, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_saliency_sums_to_one_over_time(device, dtype, backend):
    aggregated, saliency = pool_tracklets(*inputs(device, dtype=dtype), backend=backend)
    assert aggregated.dtype == saliency.dtype == dtype
    assert aggregated.shape == (2, 3, 8) and saliency.shape == (2, 4, 3)
    torch.testing.assert_close(saliency.sum(1).double(), torch.ones(2, 3).double().to(device), rtol=0, atol=0.01)


def test_small_temperature_picks_the_best_frame(device, backend):
    responses, semantics = inputs(device, semantics=1)
    responses[:, 2] = semantics * 5
    aggregated, saliency = pool_tracklets(responses, semantics, temperature=1e-3, backend=backend)
    torch.testing.assert_close(saliency[:, 2], torch.ones(2, 3, device=device))
    torch.testing.assert_close(aggregated, responses[:, 2])


def test_one_frame_is_returned_as_it_is(device, backend):
    responses, semantics = inputs(device, frames=1)
    aggregated, saliency = pool_tracklets(responses, semantics, backend=backend)
    torch.testing.assert_close(aggregated, responses[:, 0])
    assert (saliency == 1).all()


@pytest.mark.parametrize("sizes", [{"videos": 0}, {"count": 0}], ids=str)
def test_empty_sizes(device, backend, sizes):
    responses, semantics = inputs(device, **sizes, requires_grad=True)
    aggregated, saliency = pool_tracklets(responses, semantics, backend=backend)
    assert aggregated.shape == (responses.shape[0], responses.shape[2], 8)
    assert saliency.shape == responses.shape[:3]
    (aggregated.sum() + saliency.sum()).backward()
    assert (semantics.grad == 0).all() and responses.grad.numel() == 0


def test_zero_vectors_have_cosine_zero(device, backend):
    responses, semantics = inputs(device)
    responses[0, 1], semantics[1] = 0, 0
    responses.requires_grad_(), semantics.requires_grad_()
    aggregated, saliency = pool_tracklets(responses, semantics, temperature=0.5, backend=backend)
    torch.testing.assert_close(saliency[1], torch.full((4, 3), 0.25, device=device))
    gradients = torch.autograd.grad(saliency.square().sum(), [responses, semantics], retain_graph=True)
    assert (gradients[0][0, 1] == 0).all() and (gradients[1][1] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    (gradient,) = torch.autograd.grad(aggregated.sum(), [responses])
    torch.testing.assert_close(gradient[0, 1], saliency[0, 1, :, None].expand(3, 8).detach())


def test_invalid_frames_may_hold_anything(device, backend):
    valid = torch.tensor([[True, True, True, False], [False] * 4], device=device)
    data, semantics = inputs(device)
    expected, expected_saliency = pool_tracklets(data[:1, :3], semantics[:1], backend=backend)
    for poison in (math.nan, math.inf):
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


def test_layout_does_not_change_the_result(device):
    responses, semantics = inputs(device)
    strided = responses.transpose(1, 2).contiguous().transpose(1, 2)
    results = pool_tracklets(strided, semantics.mT.contiguous().mT)
    torch.testing.assert_close(results, pool_tracklets(responses, semantics))


def test_two_runs_give_the_same_bits(device):
    data = inputs(device, frames=16, channels=40)
    results = []
    for _ in range(2):
        leaves = [tensor.clone().requires_grad_() for tensor in data]
        aggregated, saliency = pool_tracklets(*leaves)
        gradients = torch.autograd.grad(aggregated.square().sum() + saliency.square().sum(), leaves)
        results.append([aggregated, saliency, *gradients])
    torch.testing.assert_close(*results, rtol=0, atol=0)


class Pooling(torch.nn.Module):
    def forward(self, responses: Tensor, semantics: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return pool_tracklets(responses, semantics, valid=valid)


def test_compiles_into_one_graph_for_all_batch_sizes(device):
    compiled = torch.compile(pool_tracklets, fullgraph=True, backend="aot_eager")
    for videos in (2, 5):
        leaves = inputs(device, videos=videos, requires_grad=True)
        valid = torch.rand(videos, 4, device=device) > 0.3
        for tensor in (*leaves, valid):
            torch._dynamo.mark_dynamic(tensor, 0)
        results = []
        for function in (compiled, pool_tracklets):
            with torch.compiler.set_stance("default" if videos == 2 else "fail_on_recompile"):
                aggregated, saliency = function(*leaves, valid=valid)
            loss = aggregated.square().sum() + saliency.square().sum()
            results.append([aggregated, saliency, *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(*results)


def test_exports_with_a_free_batch_size():
    videos = torch.export.Dim("videos")
    example = (*inputs(), torch.rand(2, 4) > 0.3)
    program = torch.export.export(Pooling(), example, dynamic_shapes=({0: videos},) * 3)
    arguments = (*inputs(videos=5), torch.rand(5, 4) > 0.3)
    torch.testing.assert_close(program.module()(*arguments), Pooling()(*arguments))


def error_cases():
    responses, semantics = inputs()
    valid = torch.ones(2, 4, dtype=torch.bool)
    return {
        "responses type": ("x", semantics, {}, TypeError, r"responses is 'x' of type str, expected a torch.Tensor"),
        "responses rank": (responses[0], semantics, {}, ValueError, r"responses has shape \[4, 3, 8\]"),
        "responses dtype": (responses.bool(), semantics, {}, TypeError, r"responses has dtype torch.bool"),
        "no frame": (responses[:, :0], semantics, {}, ValueError, r"responses has .* with at least one frame"),
        "semantics type": (responses, None, {}, TypeError, r"semantics is None"),
        "semantics rank": (responses, semantics[0], {}, ValueError, r"semantics has shape \[2, 8\], .* \[B,J,C\]"),
        "semantics batch": (
            responses,
            semantics[:1],
            {},
            ValueError,
            r"semantics has shape \[1, 2, 8\], .* \[2, 2, 8\]",
        ),
        "semantics width": (responses, semantics[..., 1:], {}, ValueError, r"semantics has shape \[2, 2, 7\]"),
        "semantics dtype": (responses, semantics.half(), {}, TypeError, r"semantics has dtype .* that of responses"),
        "semantics device": (responses, semantics.to("meta"), {}, ValueError, r"semantics is on meta, expected cpu"),
        "no semantic": (responses, semantics[:, :0], {}, ValueError, r"semantics has .* with at least one semantic"),
        "temperature zero": (
            responses,
            semantics,
            {"temperature": 0},
            ValueError,
            r"temperature is 0, .* \(0.0, inf\)",
        ),
        "temperature nan": (responses, semantics, {"temperature": math.nan}, ValueError, r"temperature is nan"),
        "temperature type": (
            responses,
            semantics,
            {"temperature": None},
            TypeError,
            r"temperature is None, expected a num",
        ),
        "valid": (responses, semantics, {"valid": valid[:, 1:]}, ValueError, r"valid has shape \[2, 3\]"),
        "backend": (responses, semantics, {"backend": "cuda"}, ValueError, r"backend='cuda' is not a backend"),
    }


@pytest.mark.parametrize("case", error_cases())
def test_errors_name_the_argument(case):
    responses, semantics, options, error, message = error_cases()[case]
    with pytest.raises(error, match="pool_tracklets: .*" + message):
        pool_tracklets(responses, semantics, **options)
