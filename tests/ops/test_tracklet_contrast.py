"""`mtc_loss` with every backend: values by hand, accuracy, edge cases, masks, autocast, compilation, and errors."""

import math

import pytest
import torch
from kernel_agreement import LargeResults, assert_as_exact_as_plain
from operator_checks import assert_compiles_once, assert_exports, assert_same_bits_twice, skip_unsupported
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from art_kernels import MTCLoss, mtc_loss
from art_kernels.tracklet_contrast import reference
from art_kernels.tracklet_contrast import torch as torch_backend

BACKENDS = ["triton", "torch", "reference"]
FUSED = ["triton", "torch"]
OPTIONS = [
    {},
    {"margin": -0.3, "temporal_form": "absolute"},
    {"clamp_repulsion": True},
    {"tracklet_form": "flattened"},
    {"tracklet_form": "flattened", "clamp_repulsion": True, "temporal_form": "absolute"},
]
SIZES = (2, 4, 3, 8)
# One video, two frames, two tracklets: the first stays at (1, 0), the second turns from (0, 1) to (1, 0). The lengths
# of the vectors are irrelevant.
BY_HAND = torch.tensor([[[[2.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [5.0, 0.0]]]], dtype=torch.float64)


def responses_like(device="cpu", sizes=SIZES, **options) -> Tensor:
    return torch.randn(sizes, device=device, **options)


def results(responses, **options):
    """Return the terms, and the gradient of their sum for the responses."""
    leaf = responses.detach().requires_grad_()
    loss = mtc_loss(leaf, **options)
    return [*loss, *torch.autograd.grad(loss.total, [leaf])]


def reference_values(responses=BY_HAND, **options):
    return [term.item() for term in reference.mtc_loss(responses, **options)]


def test_reference_terms():
    spatial, temporal, tracklet = reference_values()
    assert spatial == pytest.approx(0.5)  # 0 in the first frame, 1 in the second
    assert temporal == pytest.approx(0.3)  # cosines 1 and 0: (0 + 0.6) / 2
    assert tracklet == pytest.approx(2.5 / math.hypot(2.5, 1.5))  # (1.5, 0) and (2.5, 1.5)


def test_reference_options():
    assert reference_values(margin=0.2)[1] == pytest.approx(0.1)
    assert reference_values(temporal_form="absolute")[1] == pytest.approx((0.4 + 0.6) / 2)
    assert reference_values(tracklet_form="flattened")[2] == pytest.approx(5 / (math.sqrt(5) * math.sqrt(34)))
    aggregated = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert reference_values(aggregated=aggregated)[2] == pytest.approx(-math.sqrt(0.5))
    assert reference_values(aggregated=aggregated)[:2] == reference_values()[:2]
    responses = torch.tensor([[[[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]]], dtype=torch.float64)
    assert reference_values(responses) == pytest.approx([-1 / 3, 0.0, -1 / 3])  # pairs: -1, 1, -1
    assert reference_values(responses, clamp_repulsion=True) == pytest.approx([1 / 3, 0.0, 1 / 3])


def test_reference_ignores_invalid_frames_and_averages_over_the_batch():
    for valid, expected in (([True, False], [0, 0, 0]), ([False, True], [1, 0, 1]), ([False, False], [0, 0, 0])):
        assert reference_values(valid=torch.tensor([valid])) == pytest.approx(expected)
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64).expand(1, 2, 2, 2)
    valid = torch.tensor([[True, True], [True, False]])
    spatial, temporal, tracklet = reference_values(torch.cat([BY_HAND, one]), valid=valid)
    assert spatial == pytest.approx((0 + 1 + 1) / 3)  # three valid frames
    assert temporal == pytest.approx(0.3)  # the only pair of valid frames is in the first video
    assert tracklet == pytest.approx((2.5 / math.hypot(2.5, 1.5) + 1) / 2)  # two videos


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_terms_are_float32_or_wider_and_add_up_to_the_total(device, dtype, backend):
    responses = responses_like(device, dtype=dtype)
    skip_unsupported("mtc_loss", backend, responses)
    loss = mtc_loss(responses, backend=backend)
    assert isinstance(loss, MTCLoss)
    assert {term.dtype for term in loss} == {torch.float64 if dtype == torch.float64 else torch.float32}
    torch.testing.assert_close(loss.total, loss.spatial + loss.temporal + loss.tracklet)
    assert all(term.shape == () and term != 0 for term in (*loss, loss.total))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tracklet_form", ["pooled", "flattened"])
def test_zero_vectors_have_cosine_and_gradient_zero(device, backend, tracklet_form):
    data = responses_like(device)
    data[0, 1], data[1, :, 0] = 0, 0
    responses = data.requires_grad_()
    loss = mtc_loss(responses, tracklet_form=tracklet_form, backend=backend)
    (gradient,) = torch.autograd.grad(loss.spatial + loss.temporal, [responses])
    assert gradient.isfinite().all()
    assert (gradient[0, 1] == 0).all() and (gradient[1, :, 0] == 0).all()
    assert (gradient[0, 0] != 0).any() and (gradient[1, :, 1] != 0).any()

    zeros = torch.zeros(SIZES, device=device, requires_grad=True)
    loss = mtc_loss(zeros, tracklet_form=tracklet_form, backend=backend)
    torch.testing.assert_close([term.item() for term in loss], [0.0, 0.6, 0.0])
    loss.total.backward()
    assert (zeros.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_cosines_do_not_depend_on_length(device, backend, scale):
    responses = responses_like(device)
    *expected, expected_gradient = results(responses, backend=backend)
    *terms, gradient = results(responses * scale, backend=backend)
    torch.testing.assert_close(terms, expected)
    torch.testing.assert_close(gradient * scale, expected_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"tracklet_form": "flattened"}, {"temporal_form": "absolute"}], ids=str)
def test_empty_means_are_zero(device, backend, options):
    one_tracklet = mtc_loss(responses_like(device, (2, 4, 1, 8)), backend=backend, **options)
    assert one_tracklet.spatial == 0 and one_tracklet.tracklet == 0 and one_tracklet.temporal > 0
    one_frame = mtc_loss(responses_like(device, (2, 1, 3, 8)), backend=backend, **options)
    assert one_frame.temporal == 0 and one_frame.spatial != 0 and one_frame.tracklet != 0
    for sizes in ((0, 4, 3, 8), (2, 4, 0, 8), (0, 1, 1, 1)):
        for valid in (None, torch.ones(sizes[:2], dtype=torch.bool, device=device)):
            responses = responses_like(device, sizes, requires_grad=True)
            loss = mtc_loss(responses, valid=valid, backend=backend, **options)
            assert tuple(loss) == (0, 0, 0)
            loss.total.backward()
            assert responses.grad.shape == sizes and (responses.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tracklet_form", ["pooled", "flattened"])
def test_invalid_frames_are_ignored(device, backend, tracklet_form):
    valid = torch.tensor([[True, True, True, False], [False] * 4], device=device)
    data, options = responses_like(device), {"tracklet_form": tracklet_form, "backend": backend}
    *expected, expected_gradient = results(data[:1, :3], **options)
    for poison in (math.nan, math.inf):
        *terms, gradient = results(data.masked_fill(~valid[:, :, None, None], poison), valid=valid, **options)
        torch.testing.assert_close(terms, expected)
        assert (gradient[~valid] == 0).all()
        torch.testing.assert_close(gradient[:1, :3], expected_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_temporal_term_requires_both_frames(device, backend):
    responses = responses_like(device)
    valid = torch.tensor([[True, False, True, True], [True, False, True, False]], device=device)
    loss = mtc_loss(responses, valid=valid, backend=backend)
    torch.testing.assert_close(loss.temporal, mtc_loss(responses[:1, 2:]).temporal)
    assert mtc_loss(responses[1:], valid=valid[1:], backend=backend).temporal == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_aggregated_of_a_video_without_valid_frames_is_ignored(device, backend):
    valid = torch.tensor([[True] * 4, [False] * 4], device=device)
    responses, aggregated = responses_like(device), torch.randn(2, 3, 8, device=device)
    aggregated[1] = math.nan
    aggregated.requires_grad_()
    loss = mtc_loss(responses, aggregated, valid=valid, backend=backend)
    torch.testing.assert_close(tuple(loss), tuple(mtc_loss(responses[:1], aggregated[:1])))
    loss.total.backward()
    assert (aggregated.grad[1] == 0).all() and (aggregated.grad[0] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_float32(device, backend):
    responses, aggregated = responses_like(device).bfloat16(), torch.randn(2, 3, 8, device=device)
    expected = mtc_loss(responses.float(), aggregated)
    # Without autocast, aggregated may have another dtype.
    torch.testing.assert_close(tuple(mtc_loss(responses, aggregated)), tuple(expected), rtol=0, atol=0)
    with torch.autocast(device.type, torch.bfloat16):
        loss = mtc_loss(responses, aggregated, backend=backend)
    torch.testing.assert_close(tuple(loss), tuple(expected))


def assert_agrees(backend, device, dtype, sizes, options, *, aggregated, ragged, draws=12):
    """Check terms and gradients of a backend by the tolerance rule."""
    videos, frames, count, channels = sizes
    options = {"margin": 0.6, **options}
    valid = torch.rand(videos, frames, device=device) > 0.3 if ragged else None

    def draw():
        # With a shared direction, the cosines are on both sides of the margin.
        responses = torch.randn(videos, frames, count, channels, device=device) + torch.randn(channels, device=device)
        return [responses, *([torch.randn(videos, count, channels, device=device) + 0.5] if aggregated else [])]

    def fast(responses, aggregated=None):
        return tuple(mtc_loss(responses, aggregated, valid=valid, backend=backend, **options))

    def plain(responses, aggregated=None):
        return reference.mtc_loss(responses, aggregated, valid=valid, **options)

    assert_as_exact_as_plain(fast, plain, draw, dtype, summand=1.0, draws=draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(2, 7, 3, 100), (3, 16, 2, 256), (1, 1, 5, 33), (2, 5, 1, 96)], ids=str)
@pytest.mark.parametrize(
    "options, aggregated, ragged",
    [
        (options, aggregated, ragged)
        for options in OPTIONS
        for aggregated, ragged in ((False, False), (True, True), (False, True))
        if not (aggregated and "tracklet_form" in options)
    ],
    ids=str,
)
def test_torch_agrees_with_float64(device, dtype, sizes, options, aggregated, ragged):
    draws = 12 if device.type == "cuda" else 6
    assert_agrees("torch", device, dtype, sizes, options, aggregated=aggregated, ragged=ragged, draws=draws)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_torch_result_does_not_depend_on_blocks(monkeypatch, options):
    responses = torch.randn(5, 4, 3, 8, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(5, 4) > 0.3
    expected = results(responses, valid=valid, backend="torch", **options)
    monkeypatch.setitem(torch_backend.BLOCK_BYTES, "cpu", 2 * 4 * 3 * 8 * 8)
    assert len(list(torch_backend._blocks(responses))) == 3
    torch.testing.assert_close(results(responses, valid=valid, backend="torch", **options), expected)


@pytest.mark.parametrize("gradients", [False, True])
def test_torch_forward_allocates_nothing_as_large_as_the_responses(device, gradients):
    responses = torch.randn(2, 16, 2, 64, device=device)
    with torch.no_grad(), LargeResults(responses) as large:
        torch_backend.forward(responses, None, None, 0.6, False, False, False, gradients)
    assert large.names == []


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_first_and_second_order_gradients(options, ragged):
    responses = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, True, False], [False, False, False]]) if ragged else None

    def call(responses, aggregated=None):
        return tuple(mtc_loss(responses, aggregated, valid=valid, backend="torch", **options))

    assert gradcheck(call, (responses,))
    assert gradgradcheck(call, (responses,))
    if "tracklet_form" not in options:
        aggregated = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
        assert gradcheck(call, (responses, aggregated))
        assert gradgradcheck(call, (responses, aggregated))


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
def test_two_runs_return_the_same_bits(device, backend):
    responses = responses_like(device, (4, 16, 3, 40), requires_grad=True)
    assert_same_bits_twice(lambda responses: tuple(mtc_loss(responses, backend=backend)), [responses])


def ragged_inputs(device):
    def make(videos):
        valid = torch.rand(videos, 4, device=device) > 0.3
        sizes = ((videos, 4, 3, 8), (videos, 3, 8))
        return [*(torch.randn(size, device=device, requires_grad=True) for size in sizes), valid]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
def test_compiles_once_and_exports_for_all_batch_sizes(device, backend):
    def losses(responses, aggregated, valid):
        pooled = mtc_loss(responses, aggregated, valid=valid, backend=backend)
        return *pooled, mtc_loss(responses, tracklet_form="flattened", backend=backend).total

    assert_compiles_once(losses, ragged_inputs(device))
    assert_exports(losses, ragged_inputs(device))


RESPONSES, AGGREGATED, VALID = torch.randn(SIZES), torch.randn(2, 3, 8), torch.ones(2, 4, dtype=torch.bool)
FLATTENED = {"aggregated": AGGREGATED, "tracklet_form": "flattened"}
DOUBLE = {"responses": RESPONSES.double(), "backend": "triton"}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"responses": None}, TypeError, r"responses is None, expected a torch.Tensor of shape \[B,T,K,C\]"),
        ({"responses": RESPONSES[0]}, ValueError, r"responses has shape \[4, 3, 8\], expected the 4 dimensions"),
        ({"responses": RESPONSES.int()}, TypeError, r"responses has dtype torch.int32, expected float16"),
        ({"responses": RESPONSES[:, :0]}, ValueError, r"responses has .* with at least one frame"),
        ({"responses": RESPONSES[..., :0]}, ValueError, r"responses has .* with at least one channel"),
        ({"aggregated": 3}, TypeError, r"aggregated is 3 of type int"),
        ({"aggregated": AGGREGATED[:1]}, ValueError, r"aggregated .* \[B,K,C\] = \[2, 3, 8\]"),
        ({"aggregated": AGGREGATED.int()}, TypeError, r"aggregated has dtype torch.int32"),
        ({"aggregated": AGGREGATED.to("meta")}, ValueError, r"aggregated is on meta"),
        ({"margin": "0.6"}, TypeError, r"margin is '0.6' of type str, expected a number"),
        ({"margin": 1.5}, ValueError, r"margin is 1.5, expected .* in \[-1.0, 1.0\]"),
        ({"valid": VALID.float()}, TypeError, r"valid has dtype torch.float32, expected torch.bool"),
        ({"valid": VALID.mT}, ValueError, r"valid has shape \[4, 2\], expected \[B,T\] = \[2, 4\]"),
        ({"valid": VALID.to("meta")}, ValueError, r"valid is on meta, expected cpu"),
        ({"temporal_form": "l1"}, ValueError, r"temporal_form is 'l1', .* 'hinge', 'absolute'"),
        ({"clamp_repulsion": 0}, TypeError, r"clamp_repulsion is 0 of type int"),
        ({"tracklet_form": 1}, ValueError, r"tracklet_form is 1 of type int, .* 'pooled', 'flattened'"),
        (FLATTENED, ValueError, r"aggregated was passed with tracklet_form='flattened'"),
        (DOUBLE, ValueError, r"backend='triton' does not support .* available backends: 'torch'"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match="mtc_loss: .*" + message):
        mtc_loss(**{"responses": RESPONSES} | change)
