"""`link_tracklets`: births and ends of tracklets, corners, the compiler, and every error."""

import math

import pytest
import torch
from torch import Tensor

from art_kernels import TrackletLinks, link_tracklets

BACKENDS = ["native", "reference"]


def turning(device="cpu") -> Tensor:
    """Two tracklets in four frames: slot 0 turns by 90° into frame 1; slot 1 into frames 1 and 3."""
    east, north = [1.0, 0.0], [0.0, 2.0]
    return torch.tensor([[[east, east], [north, north], [north, north], [north, east]]], device=device)


@pytest.mark.parametrize("backend", BACKENDS)
def test_index_keeps_the_slots(device, backend):
    links = link_tracklets(turning(device), backend=backend)
    assert isinstance(links, TrackletLinks)
    assert links.order.tolist() == links.tracklet_id.tolist() == [[[0, 1]] * 4]
    assert links.order.dtype == links.tracklet_id.dtype == torch.int64
    torch.testing.assert_close(links.similarity.tolist(), [[[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dissimilar_links_end_tracklets(device, backend):
    responses = torch.cat([turning(device), turning(device)[:, [1, 1, 1, 3]]])
    links = link_tracklets(responses, min_similarity=0.5, backend=backend)
    assert links.tracklet_id.tolist() == [[[0, 1], [2, 3], [2, 3], [2, 4]], [[0, 1], [0, 1], [0, 1], [0, 2]]]
    assert links.order.tolist() == [[[0, 1]] * 4] * 2
    assert link_tracklets(responses, min_similarity=0, backend=backend).tracklet_id.tolist() == [[[0, 1]] * 4] * 2


def test_undefined_similarity_ends_a_tracklet(device):
    responses = turning(device)
    responses[0, 2, 0, 0] = math.nan
    assert link_tracklets(responses, min_similarity=-1.0).tracklet_id.tolist() == [[[0, 1], [0, 1], [2, 1], [3, 1]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_similarity_has_the_dtype_of_the_responses(device, dtype, backend):
    responses = torch.randn(2, 5, 3, 8, device=device).to(dtype)
    links = link_tracklets(responses, backend=backend)
    expected = torch.cosine_similarity(responses[:, :-1].double(), responses[:, 1:].double(), dim=-1)
    assert links.similarity.dtype == dtype
    torch.testing.assert_close(links.similarity.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 4, 3, 8), (2, 1, 3, 8), (2, 4, 0, 8), (2, 4, 1, 8)], ids=str)
@pytest.mark.parametrize("min_similarity", [None, 0.5])
def test_empty_and_single_sizes(device, backend, sizes, min_similarity):
    responses = torch.randn(sizes, device=device, requires_grad=True)
    links = link_tracklets(responses, min_similarity=min_similarity, backend=backend)
    videos, frames, count, _ = sizes
    assert links.order.shape == links.tracklet_id.shape == (videos, frames, count)
    assert links.similarity.shape == (videos, frames - 1, count)
    links.similarity.sum().backward()
    assert responses.grad.shape == sizes


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_have_similarity_and_gradient_zero(device, backend):
    responses = torch.randn(1, 3, 2, 4, device=device)
    responses[0, 1, 0] = 0
    responses.requires_grad_()
    similarity = link_tracklets(responses, backend=backend).similarity
    assert (similarity[0, :, 0] == 0).all() and (similarity[0, :, 1] != 0).all()
    similarity.sum().backward()
    assert (responses.grad[0, :, 0] == 0).all() and (responses.grad[0, :, 1] != 0).all()


def test_autocast_computes_in_float32(device):
    responses = torch.randn(2, 5, 3, 8, device=device).bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        for backend in BACKENDS:
            similarity = link_tracklets(responses, backend=backend).similarity
            torch.testing.assert_close(similarity, link_tracklets(responses.float()).similarity)


def test_layout_does_not_change_the_result(device):
    responses = torch.randn(2, 5, 3, 8, device=device)
    strided = responses.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(tuple(link_tracklets(strided)), tuple(link_tracklets(responses)))


class Linking(torch.nn.Module):
    def forward(self, responses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        links = link_tracklets(responses, min_similarity=0.1)
        return links.order, links.similarity, links.tracklet_id


def test_compiles_into_one_graph_for_all_batch_sizes(device):
    compiled = torch.compile(link_tracklets, fullgraph=True, backend="aot_eager")
    for videos in (2, 5):
        responses = torch.randn(videos, 6, 3, 8, device=device)
        torch._dynamo.mark_dynamic(responses, 0)
        with torch.compiler.set_stance("default" if videos == 2 else "fail_on_recompile"):
            found = compiled(responses, min_similarity=0.1)
        assert isinstance(found, TrackletLinks)
        torch.testing.assert_close(tuple(found), Linking()(responses))


def test_exports_with_a_free_batch_size():
    example = (torch.randn(2, 6, 3, 8),)
    program = torch.export.export(Linking(), example, dynamic_shapes=({0: torch.export.Dim("videos")},))
    responses = torch.randn(5, 6, 3, 8)
    torch.testing.assert_close(program.module()(responses), Linking()(responses))


def error_cases():
    responses = torch.randn(2, 4, 3, 8)
    return {
        "type": (4, {}, TypeError, r"responses is 4 of type int, expected a torch.Tensor of shape \[B,T,K,C\]"),
        "rank": (responses[0], {}, ValueError, r"responses has shape \[4, 3, 8\]"),
        "dtype": (responses.long(), {}, TypeError, r"responses has dtype torch.int64"),
        "no frame": (responses[:, :0], {}, ValueError, r"responses has .* with at least one frame"),
        "greedy": (responses, {"method": "greedy"}, ValueError, r"method 'greedy' is not available .* one of 'index'"),
        "optimal": (
            responses,
            {"method": "optimal"},
            ValueError,
            r"method 'optimal' is not available .* one of 'index'",
        ),
        "method": (
            responses,
            {"method": "sort"},
            ValueError,
            r"method 'sort' is not a method, expected one of 'index'",
        ),
        "similarity type": (responses, {"min_similarity": "low"}, TypeError, r"min_similarity is 'low' of type str"),
        "similarity range": (responses, {"min_similarity": 2}, ValueError, r"min_similarity is 2, .* \[-1.0, 1.0\]"),
        "backend": (responses, {"backend": "triton"}, ValueError, r"backend='triton' cannot serve"),
    }


@pytest.mark.parametrize("case", error_cases())
def test_errors_name_the_argument(case):
    responses, options, error, message = error_cases()[case]
    with pytest.raises(error, match="link_tracklets: .*" + message):
        link_tracklets(responses, **options)
