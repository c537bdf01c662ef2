"""`mtc_loss`: corners, masks, autocast, the compiler, and every error."""

import math

import pytest
import torch
from torch import Tensor

from art_kernels import MTCLoss, backends, mtc_loss

BACKENDS = ["triton", "native", "reference"]
SIZES = (2, 4, 3, 8)


def responses_like(device="cpu", sizes=SIZES, **options) -> Tensor:
    return torch.randn(sizes, device=device, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_total_is_the_plain_sum(device, backend):
    loss = mtc_loss(responses_like(device), backend=backend)
    assert isinstance(loss, MTCLoss)
    torch.testing.assert_close(loss.total, loss.spatial + loss.temporal + loss.tracklet)
    assert all(term.shape == () and term != 0 for term in (*loss, loss.total))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_terms_are_float32_or_wider(device, dtype, backend):
    responses = responses_like(device, dtype=dtype)
    reason = backends.refusal("mtc_loss", backend, responses)
    if reason is not None:
        pytest.skip(reason)
    loss = mtc_loss(responses, backend=backend)
    assert {term.dtype for term in loss} == {torch.float64 if dtype == torch.float64 else torch.float32}


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

    nothing = torch.zeros(SIZES, device=device, requires_grad=True)
    loss = mtc_loss(nothing, tracklet_form=tracklet_form, backend=backend)
    torch.testing.assert_close([term.item() for term in loss], [0.0, 0.6, 0.0])
    loss.total.backward()
    assert (nothing.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_cosines_do_not_depend_on_length(device, backend, scale):
    responses = responses_like(device, requires_grad=True)
    expected = mtc_loss(responses, backend=backend)
    scaled = (responses.detach() * scale).requires_grad_()
    loss = mtc_loss(scaled, backend=backend)
    torch.testing.assert_close(tuple(loss), tuple(expected))
    (expected_gradient,) = torch.autograd.grad(expected.total, [responses])
    (gradient,) = torch.autograd.grad(loss.total, [scaled])
    torch.testing.assert_close(gradient * scale, expected_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"tracklet_form": "flattened"}, {"temporal_form": "absolute"}], ids=str)
def test_nothing_to_compare_gives_zero(device, backend, options):
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
def test_invalid_frames_may_hold_anything(device, backend, tracklet_form):
    valid = torch.tensor([[True, True, True, False], [False] * 4], device=device)
    data = responses_like(device)
    clipped = data[:1, :3].clone().requires_grad_()
    expected = mtc_loss(clipped, tracklet_form=tracklet_form, backend=backend)
    (expected_gradient,) = torch.autograd.grad(expected.total, [clipped])
    for poison in (math.nan, math.inf):
        responses = data.masked_fill(~valid[:, :, None, None], poison).requires_grad_()
        loss = mtc_loss(responses, valid=valid, tracklet_form=tracklet_form, backend=backend)
        torch.testing.assert_close(tuple(loss), tuple(expected))
        (gradient,) = torch.autograd.grad(loss.total, [responses])
        assert (gradient[~valid] == 0).all()
        torch.testing.assert_close(gradient[:1, :3], expected_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_of_frames_needs_both(device, backend):
    responses = responses_like(device)
    valid = torch.tensor([[True, False, True, True], [True, False, True, False]], device=device)
    loss = mtc_loss(responses, valid=valid, backend=backend)
    torch.testing.assert_close(loss.temporal, mtc_loss(responses[:1, 2:]).temporal)
    assert mtc_loss(responses[1:], valid=valid[1:], backend=backend).temporal == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_aggregated_of_a_video_without_frames_takes_no_part(device, backend):
    valid = torch.tensor([[True] * 4, [False] * 4], device=device)
    responses, aggregated = responses_like(device), torch.randn(2, 3, 8, device=device)
    aggregated[1] = math.nan
    aggregated.requires_grad_()
    loss = mtc_loss(responses, aggregated, valid=valid, backend=backend)
    torch.testing.assert_close(tuple(loss), tuple(mtc_loss(responses[:1], aggregated[:1])))
    loss.total.backward()
    assert (aggregated.grad[1] == 0).all() and (aggregated.grad[0] != 0).any()


def test_aggregated_may_have_another_dtype(device):
    responses, aggregated = responses_like(device).bfloat16(), torch.randn(2, 3, 8, device=device)
    loss = mtc_loss(responses, aggregated)
    torch.testing.assert_close(tuple(loss), tuple(mtc_loss(responses.float(), aggregated)), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_float32(device, backend):
    responses, aggregated = responses_like(device), torch.randn(2, 3, 8, device=device)
    expected = mtc_loss(responses.bfloat16().float(), aggregated)
    with torch.autocast(device.type, torch.bfloat16):
        loss = mtc_loss(responses.bfloat16(), aggregated, backend=backend)
    torch.testing.assert_close(tuple(loss), tuple(expected))


def test_layout_does_not_change_the_result(device):
    responses = responses_like(device)
    frames_first = responses.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(tuple(mtc_loss(frames_first)), tuple(mtc_loss(responses)))
    wide = torch.cat([responses, responses], -1)[..., :8]
    torch.testing.assert_close(tuple(mtc_loss(wide)), tuple(mtc_loss(responses)))


def test_two_runs_give_the_same_bits(device):
    data = responses_like(device, (4, 16, 3, 40))
    results = []
    for _ in range(2):
        responses = data.clone().requires_grad_()
        loss = mtc_loss(responses)
        results.append([*loss, *torch.autograd.grad(loss.total, [responses])])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def loss_and_gradient(function, responses: Tensor, valid: Tensor) -> list[Tensor]:
    loss = function(responses, valid)
    return [loss, *torch.autograd.grad(loss, [responses])]


def total(responses: Tensor, valid: Tensor) -> Tensor:
    return mtc_loss(responses, valid=valid).total + mtc_loss(responses, tracklet_form="flattened").total


def test_compiles_into_one_graph_for_all_batch_sizes(device):
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for videos in (2, 5):
        responses = responses_like(device, (videos, 4, 3, 8), requires_grad=True)
        valid = torch.rand(videos, 4, device=device) > 0.3
        for tensor in (responses, valid):
            torch._dynamo.mark_dynamic(tensor, 0)
        with torch.compiler.set_stance("default" if videos == 2 else "fail_on_recompile"):
            found = loss_and_gradient(compiled, responses, valid)
        torch.testing.assert_close(found, loss_and_gradient(total, responses, valid))


class Total(torch.nn.Module):
    def forward(self, responses: Tensor, valid: Tensor) -> Tensor:
        return total(responses, valid)


def test_exports_with_a_free_batch_size():
    videos = torch.export.Dim("videos")
    example = (responses_like(), torch.rand(2, 4) > 0.3)
    program = torch.export.export(Total(), example, dynamic_shapes=({0: videos}, {0: videos}))
    arguments = (responses_like(sizes=(5, 4, 3, 8)), torch.rand(5, 4) > 0.3)
    torch.testing.assert_close(program.module()(*arguments), total(*arguments))


def error_cases():
    responses, aggregated, valid = responses_like(), torch.randn(2, 3, 8), torch.ones(2, 4, dtype=torch.bool)
    return {
        "responses type": (None, {}, TypeError, r"responses is None, expected a torch.Tensor of shape \[B,T,K,C\]"),
        "responses rank": (responses[0], {}, ValueError, r"responses has shape \[4, 3, 8\], expected the 4 dimensions"),
        "responses dtype": (responses.int(), {}, TypeError, r"responses has dtype torch.int32, expected float16"),
        "no frame": (responses[:, :0], {}, ValueError, r"responses has .* with at least one frame"),
        "no channel": (responses[..., :0], {}, ValueError, r"responses has .* with at least one channel"),
        "aggregated type": (responses, {"aggregated": 3}, TypeError, r"aggregated is 3 of type int"),
        "aggregated shape": (
            responses,
            {"aggregated": aggregated[:1]},
            ValueError,
            r"aggregated .* \[B,K,C\] = \[2, 3, 8\]",
        ),
        "aggregated dtype": (
            responses,
            {"aggregated": aggregated.int()},
            TypeError,
            r"aggregated has dtype torch.int32",
        ),
        "aggregated device": (responses, {"aggregated": aggregated.to("meta")}, ValueError, r"aggregated is on meta"),
        "margin type": (responses, {"margin": "0.6"}, TypeError, r"margin is '0.6' of type str, expected a number"),
        "margin range": (responses, {"margin": 1.5}, ValueError, r"margin is 1.5, expected .* in \[-1.0, 1.0\]"),
        "valid dtype": (
            responses,
            {"valid": valid.float()},
            TypeError,
            r"valid has dtype torch.float32, expected torch.bool",
        ),
        "valid shape": (
            responses,
            {"valid": valid.mT},
            ValueError,
            r"valid has shape \[4, 2\], expected \[B,T\] = \[2, 4\]",
        ),
        "valid device": (responses, {"valid": valid.to("meta")}, ValueError, r"valid is on meta, expected cpu"),
        "temporal form": (
            responses,
            {"temporal_form": "l1"},
            ValueError,
            r"temporal_form is 'l1', .* 'hinge', 'absolute'",
        ),
        "clamp": (responses, {"clamp_repulsion": 0}, TypeError, r"clamp_repulsion is 0 of type int"),
        "tracklet form": (responses, {"tracklet_form": 1}, ValueError, r"tracklet_form is 1, .* 'pooled', 'flattened'"),
        "conflict": (
            responses,
            {"aggregated": aggregated, "tracklet_form": "flattened"},
            ValueError,
            r"aggregated is given with tracklet_form='flattened'",
        ),
        "backend": (
            responses.double(),
            {"backend": "triton"},
            ValueError,
            r"backend='triton' cannot serve .* available here: 'native'",
        ),
    }


@pytest.mark.parametrize("case", error_cases())
def test_errors_name_the_argument(case):
    responses, options, error, message = error_cases()[case]
    with pytest.raises(error, match="mtc_loss: .*" + message):
        mtc_loss(responses, **options)
