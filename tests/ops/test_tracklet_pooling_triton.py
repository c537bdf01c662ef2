"""The Triton kernels: on a GPU, or on the CPU by Triton's interpreter, against the definition in float64."""

import math

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain

from art_kernels import backends, pool_tracklets
from art_kernels.devices import Device
from art_kernels.tracklet_pooling import reference, tiles

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
launch = pytest.importorskip("art_kernels.tracklet_pooling.launch")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]  # see launch.refusal
#: Videos, frames, tracklets, semantics, channels; temperature; whether frames are missing; draws in the interpreter.
#: At temperature 0.01 the few softmaxes with two frames of nearly the same score make the error of all. There are many,
#: of many semantics too, which cost the interpreter nothing: else one of them decides, and so the luck of its rounding.
CASES = [
    pytest.param(11, 15, 3, 31, 33, 0.01, True, 3, id="several-tracklets-a-program"),
    pytest.param(24, 15, 1, 31, 32, 0.01, True, 4, id="one-chunk"),
    pytest.param(24, 40, 1, 31, 20, 0.01, True, 2, id="tiles"),
    pytest.param(4, 16, 3, 2, 256, 0.1, False, 1, id="channels-in-chunks"),
    pytest.param(2, 67, 1, 19, 96, 1.0, False, 2, id="tiles-and-chunks"),
    pytest.param(2, 7, 1, 5, 1000, 0.1, True, 2, id="1000-channels"),
    pytest.param(4, 1, 3, 1, 33, 0.01, False, 1, id="one-frame"),
]


def tensors(videos=2, frames=7, count=2, semantics=5, channels=20):
    responses = torch.randn(videos, frames, count, channels, device=DEVICE)
    return [responses, torch.randn(videos, semantics, channels, device=DEVICE)]


def valid_of(videos, frames):
    valid = torch.rand(videos, frames, device=DEVICE) > 0.3
    valid[0] = False
    return valid


def results_and_gradients(values, **options):
    leaves = [value.detach().requires_grad_() for value in values]
    aggregated, saliency = pool_tracklets(*leaves, backend="triton", **options)
    loss = aggregated.square().sum() + saliency.square().sum()
    return [aggregated.detach(), saliency.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("videos, frames, count, semantics, channels, temperature, ragged, draws", CASES)
def test_agrees_with_float64(dtype, videos, frames, count, semantics, channels, temperature, ragged, draws):
    if DEVICE.type == "cuda":
        draws = 12
    elif dtype == torch.float16:  # plain PyTorch errs so much more that few draws tell, and the interpreter is slow
        videos, draws = max(2, videos // 4), 1
    valid = valid_of(videos, frames) if ragged else None

    def fast(responses, semantics):
        return pool_tracklets(responses, semantics, temperature=temperature, valid=valid, backend="triton")

    def plain(responses, semantics):
        return reference.pool_tracklets(responses, semantics, temperature, valid)

    def draw():
        return tensors(videos, frames, count, semantics, channels)

    assert_as_exact_as_plain(fast, plain, draw, dtype, draws=draws)


def test_the_cases_above_take_every_way_through_the_kernels():
    def ways(frames, semantics, channels):
        for kernel in ("forward", "backward"):
            found = tiles.tiles_for(
                kernel, torch.float32, frames, semantics, channels, Device("interpreter", 99 * 1024)
            )
            yield frames <= found.block_t, found.chunks(channels) > 1

    taken = {way for case in CASES for way in ways(case.values[1], *case.values[3:5])}
    assert taken == {(True, False), (True, True), (False, False), (False, True)}
    if DEVICE.type == "cpu":
        assert [tiles.tracklets_a_program(11, 3, DEVICE), tiles.tracklets_a_program(8, 3, DEVICE)] == [2, 1]


@pytest.mark.parametrize("used", ["aggregated", "saliency"])
@pytest.mark.parametrize("needed", ["responses", "semantics"])
def test_gradient_of_a_part(used, needed):
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


def test_layouts_are_read_in_place():
    responses, semantics = tensors(frames=40)
    valid = valid_of(2, 40)
    tracklets_first = responses.transpose(1, 2).contiguous().transpose(1, 2)  # [B, K, T, C] in memory
    channels_first = responses.mT.contiguous().mT
    every_other = torch.stack([responses, responses], 2).flatten(1, 2)[:, ::2]
    unaligned = torch.randn(1 + responses.numel(), device=DEVICE)[1:].view_as(responses).copy_(responses)
    results = [
        results_and_gradients([layout, semantics.mT.contiguous().mT], valid=valid.mT.contiguous().mT)
        for layout in (responses, tracklets_first, channels_first, every_other, unaligned)
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)
    shared = semantics[:1].expand(2, -1, -1)
    torch.testing.assert_close(
        results_and_gradients([responses, shared]), results_and_gradients([responses, shared.contiguous()])
    )


def test_two_runs_give_the_same_bits():
    values = tensors(frames=40)
    torch.testing.assert_close(results_and_gradients(values), results_and_gradients(values), rtol=0, atol=0)


@pytest.mark.parametrize("frames", [4, 40])
def test_zero_vectors(frames):
    responses, semantics = tensors(frames=frames)
    responses[0, 1], semantics[1] = 0, 0
    semantics[0, 0] = 1e-20  # its squared norm is below the least normal number: it counts as zero
    leaves = [responses.requires_grad_(), semantics.requires_grad_()]
    aggregated, saliency = pool_tracklets(*leaves, temperature=0.5, backend="triton")
    torch.testing.assert_close(saliency[1], torch.full((frames, 2), 1 / frames, device=DEVICE))
    of_responses, of_semantics = torch.autograd.grad(saliency.square().sum(), leaves, retain_graph=True)
    assert (of_responses[0, 1] == 0).all() and (of_semantics[1] == 0).all() and (of_semantics[0, 0] == 0).all()
    assert of_responses.isfinite().all() and of_semantics.isfinite().all() and (of_semantics[0, 1:] != 0).any()
    (gradient,) = torch.autograd.grad(aggregated.sum(), [responses])
    torch.testing.assert_close(gradient[0, 1], saliency[0, 1, :, None].expand(2, 20).detach())


@pytest.mark.parametrize("frames, poison", [(7, math.inf), (40, math.nan)])
def test_invalid_frames_are_not_read(frames, poison):
    responses, semantics = tensors(frames=frames)
    valid = valid_of(2, frames)
    invalid = ~valid[:, :, None, None]
    results = []
    for value in (0.0, poison):
        leaves = [responses.masked_fill(invalid, value).requires_grad_(), semantics.detach().requires_grad_()]
        pooled = pool_tracklets(*leaves, valid=valid, backend="triton")
        incoming = [torch.ones_like(pooled[0]), torch.ones_like(pooled[1]).masked_fill(invalid[..., 0], value)]
        results.append([*pooled, *torch.autograd.grad(pooled, leaves, incoming)])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    aggregated, saliency, of_responses, of_semantics = results[0]
    assert (aggregated[0] == 0).all() and (of_semantics[0] == 0).all(), "the first video has no frame"
    assert (saliency[~valid] == 0).all() and (of_responses[~valid] == 0).all()


def test_what_a_valid_frame_holds_shows():
    responses, semantics = tensors()
    responses[0, 2, 1, 4] = math.nan
    aggregated, saliency = pool_tracklets(responses, semantics, backend="triton")
    assert saliency[0, :, 1].isnan().all() and aggregated[0, 1].isnan().all()
    assert saliency[0, :, 0].isfinite().all() and aggregated[1].isfinite().all()


@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_half_precision_gradients_of_any_size(size):
    """The factors of the products in the backward pass, ~ gradient / (temperature · norm), leave float16's range."""
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
        assert error < 2 * torch.finfo(torch.float16).eps, f"errs by {error:.3g} of the gradient"


def test_as_many_semantics_as_there_may_be():
    values = tensors(videos=1, frames=18, count=1, semantics=tiles.MAX_SEMANTICS)
    expected = reference.pool_tracklets(*values)
    torch.testing.assert_close(results_and_gradients(values)[:2], list(expected), rtol=1e-4, atol=1e-5)


def test_gradient_of_the_gradient_is_that_of_the_definition():
    results = []
    values = tensors(frames=4, channels=8)
    for backend in ("triton", "reference"):
        leaves = [value.clone().requires_grad_() for value in values]
        aggregated, saliency = pool_tracklets(*leaves, temperature=0.5, backend=backend)
        loss = aggregated.square().sum() + saliency.square().sum()
        (first,) = torch.autograd.grad(loss, leaves[1], create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_refusals():
    def why(dtype, semantics=3):
        return backends.refusal("pool_tracklets", "triton", torch.empty(1, semantics, 8, dtype=dtype, device=DEVICE))

    assert why(torch.float32) is None
    assert why(torch.float64) == "the kernels compute in float32"
    assert "at most 64 semantics a video, and these are 65" in why(torch.float32, 65)
    chosen = backends.choose("pool_tracklets", torch.empty(1, 3, 8, device=DEVICE))
    assert chosen == ("native" if DEVICE.type == "cpu" else "triton"), "never the interpreter unasked"
    if DEVICE.type == "cpu":
        assert "bfloat16" in why(torch.bfloat16)


def test_too_many_semantics_are_named_or_go_the_native_way():
    responses, semantics = tensors(semantics=65)
    with pytest.raises(ValueError, match=r"pool_tracklets: backend='triton' cannot serve .* these are 65; available"):
        pool_tracklets(responses, semantics, backend="triton")
    torch.testing.assert_close(
        pool_tracklets(responses, semantics), pool_tracklets(responses, semantics, backend="native")
    )


def test_without_a_gpu_the_kernels_ask_for_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r"pool_tracklets: backend='triton' cannot serve .* TRITON_INTERPRET=1"):
        pool_tracklets(torch.randn(1, 2, 1, 8), torch.randn(1, 2, 8), backend="triton")
