"""`link_tracklets` and `gather_tracklets`: orders, starts and ends of tracklets, gradients, edge cases, and errors."""

import math

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain, poisoned_memory
from operator_checks import (
    assert_captured_in_cuda_graph,
    assert_compiles_once,
    assert_exports,
    other_layouts,
    requires_gpu,
)
from torch import Tensor

from art_kernels import TrackletLinks, gather_tracklets, link_tracklets
from art_kernels._core.autograd import OPERATORS
from art_kernels.tracklet_linking import cpp, reference

pytestmark = pytest.mark.usefixtures("native_module")

BACKENDS = ["cpp", "reference"]
METHODS = ["index", "greedy", "optimal"]


def wandering(videos=3, frames=6, count=5, channels=16, noise=0.1, device="cpu") -> tuple[Tensor, Tensor]:
    """Slowly moving tracklets [B,T,K,C] in a random order in each frame, and that order."""
    tracklets = torch.randn(videos, 1, count, channels) + noise * torch.randn(videos, frames, count, channels).cumsum(1)
    order = torch.rand(videos, frames, count).argsort(-1)
    order[:, 0] = torch.arange(count)
    responses = torch.empty_like(tracklets).scatter_(2, order[..., None].expand_as(tracklets), tracklets)
    return responses.to(device), order.to(device)


def turning(device="cpu") -> Tensor:
    """Two tracklets in four frames: slot 0 turns by 90° in frame 1, slot 1 in frames 1 and 3."""
    east, north = [1.0, 0.0], [0.0, 2.0]
    return torch.tensor([[[east, east], [north, north], [north, north], [north, east]]], device=device)


@pytest.mark.parametrize("backend", BACKENDS)
def test_index_keeps_the_slots_and_dissimilar_links_end_tracklets(device, backend):
    links = link_tracklets(turning(device), method="index", backend=backend)
    assert isinstance(links, TrackletLinks)
    assert links.order.tolist() == links.tracklet_id.tolist() == [[[0, 1]] * 4]
    assert links.order.dtype == links.tracklet_id.dtype == torch.int64
    torch.testing.assert_close(links.similarity.tolist(), [[[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]])
    responses = torch.cat([turning(device), turning(device)[:, [1, 1, 1, 3]]])
    links = link_tracklets(responses, method="index", min_similarity=0.5, backend=backend)
    assert links.tracklet_id.tolist() == [[[0, 1], [2, 3], [2, 3], [2, 4]], [[0, 1], [0, 1], [0, 1], [0, 2]]]
    assert links.order.tolist() == [[[0, 1]] * 4] * 2
    kept = link_tracklets(responses, method="index", min_similarity=0, backend=backend)
    assert kept.tracklet_id.tolist() == [[[0, 1]] * 4] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["greedy", "optimal"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tracklets_are_recovered_from_shuffled_responses(device, backend, method, dtype):
    responses, order = wandering(device=device)
    with poisoned_memory():
        links = link_tracklets(responses.to(dtype), method=method, backend=backend)
    assert torch.equal(links.order, order)
    assert (links.similarity > 0.8).all() and links.similarity.dtype == dtype
    assert torch.equal(links.tracklet_id, torch.arange(5, device=device).expand(3, 6, 5))
    assert torch.equal(link_tracklets(responses, method="index").order, torch.arange(5, device=device).expand(3, 6, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_optimal_differs_from_greedy(device, backend):
    def at(*degrees):
        return [[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]

    # The best pair is at 5 degrees, which leaves 75 degrees for the other one.
    responses = torch.tensor([[at(0, 45), at(-30, 5)]], dtype=torch.float64, device=device)
    greedy = link_tracklets(responses, method="greedy", backend=backend)
    optimal = link_tracklets(responses, method="optimal", backend=backend)
    assert greedy.order.tolist() == [[[0, 1], [1, 0]]] and optimal.order.tolist() == [[[0, 1], [0, 1]]]
    for links, degrees in ((greedy, [5, 75]), (optimal, [30, 40])):
        expected = torch.tensor([[degrees]], dtype=torch.float64, device=device).deg2rad().cos()
        torch.testing.assert_close(links.similarity, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_nan_is_linked_last_and_ends_a_tracklet(device, backend, method):
    responses, order = wandering(videos=1, frames=4, count=3, device=device)
    index = order[0, 2, 1]
    responses[0, 2, index] = math.nan
    links = link_tracklets(responses, method=method, min_similarity=-1.0, backend=backend)
    slot = 1
    if method == "index":
        order, slot = torch.arange(3, device=device).expand(1, 4, 3), int(index)
    assert torch.equal(links.order[:, :3], order[:, :3])
    assert links.similarity.isnan().nonzero().tolist() == [[0, 1, slot], [0, 2, slot]]
    ids = [[0, 1, 2] for _ in range(4)]
    ids[2][slot], ids[3][slot] = 3, 4
    assert links.tracklet_id.tolist() == [ids]


def still(one_frame: Tensor, frames: int = 4) -> Tensor:
    """Two videos [2,T,K,C] of equal frames [K,C]."""
    return one_frame.expand(2, frames, *one_frame.shape)


#: Frames in which responses tie, exactly or up to rounding.
TIED = {
    "equal": lambda count: torch.randn(24).expand(count, 24),
    "zero": lambda count: torch.zeros(count, 24),
    "pairs of copies": lambda count: torch.randn(count, 24)[torch.arange(count) // 2],
    "copies far apart": lambda count: torch.randn(count, 24)[torch.arange(count) % max(1, count // 2)],
    "parallel": lambda count: torch.randn(24) * (0.1 + torch.rand(count, 1)),
    "opposite": lambda count: torch.randn(24) * (1 - 2 * (torch.arange(count) % 2))[:, None],
    "one axis": lambda count: torch.eye(24)[:1].expand(count, 24),
    "NaN": lambda count: torch.full((count, 24), math.nan),
}


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("method", ["greedy", "optimal"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ties_keep_the_slots(device, kind, method, dtype):
    for count in (2, 3, 4, 5, 8, 9, 17, 40):
        responses = still(TIED[kind](count)).to(device, dtype)
        expected = torch.arange(count, device=device).expand(2, 4, count)
        for backend in BACKENDS if count <= 5 else ["cpp"]:
            assert torch.equal(link_tracklets(responses, method=method, backend=backend).order, expected)
        _, order, _ = cpp.link_with_cosine_matrix(responses, method == "greedy", None)
        assert torch.equal(order, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["greedy", "optimal"])
@pytest.mark.parametrize("dtype, angle", [(torch.float64, 1e-5), (torch.float32, 0.01), (torch.bfloat16, 0.3)], ids=str)
def test_a_small_difference_is_no_tie(device, backend, method, dtype, angle):
    """Two responses at this angle swap, next to two equal ones, which keep their slots."""
    turned = [math.cos(angle), math.sin(angle), 0]
    frame = torch.tensor([[1, 0, 0], turned, [0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    responses = torch.stack([frame, frame[[1, 0, 2, 3]]])[None].to(device, dtype)
    links = link_tracklets(responses, method=method, backend=backend)
    assert links.order.tolist() == [[[0, 1, 2, 3], [1, 0, 2, 3]]]


def padded(value: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Responses [2,6,4,16] of which two frames and one other response hold `value`; and where they are finite."""
    responses, _ = wandering(videos=2, frames=6, count=4)
    finite = torch.ones(2, 6, 4, dtype=torch.bool)
    finite[0, 3] = finite[1, 5] = finite[1, 1, 2] = False
    responses = responses.masked_fill(~finite[..., None], value)
    responses[0, 3, :, 1:] = 0.5  # partly padding
    return responses.to(device, dtype), finite.to(device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_padding_has_no_gradient_and_adds_none(device, backend, method, value, dtype):
    responses, finite = padded(value, dtype, device)
    responses.requires_grad_()
    links = link_tracklets(responses, method=method, backend=backend)
    linked = finite.gather(2, links.order)
    defined = linked[:, :-1] & linked[:, 1:]
    assert torch.equal(links.similarity.isfinite(), defined)
    weights = torch.linspace(1, 2, defined.numel(), device=device).view(defined.shape)
    expected = torch.zeros_like(responses, dtype=torch.float64)
    for b, t, k in defined.nonzero().tolist():
        pair = responses[b, [t, t + 1], links.order[b, [t, t + 1], k]].detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(weights[b, t, k] * torch.cosine_similarity(*pair, dim=0), pair)
        expected[b, [t, t + 1], links.order[b, [t, t + 1], k]] += gradient
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    for loss in (
        (links.similarity[defined] * weights[defined]).sum(),
        torch.where(defined, links.similarity * weights, 0).sum(),
        (links.similarity * weights).sum(),  # NaN itself, yet its gradient is not
    ):
        (gradient,) = torch.autograd.grad(loss, responses, retain_graph=True)
        torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance)
        assert (gradient[~finite] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_second_derivatives_are_finite_next_to_padding(device, backend, method):
    responses, finite = padded(math.nan, torch.float64, device)
    responses.requires_grad_()
    similarity = link_tracklets(responses, method=method, backend=backend).similarity
    (gradient,) = torch.autograd.grad(similarity.nansum(), responses, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), responses)
    assert second.isfinite().all() and second[finite].abs().sum() > 0 and (second[~finite] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_cpp_agrees_with_the_reference(device, method):
    responses = torch.randn(4, 7, 6, 33, dtype=torch.float64, device=device, requires_grad=True)
    results = []
    for backend in BACKENDS:
        links = link_tracklets(responses, method=method, min_similarity=0.2, backend=backend)
        weights = torch.linspace(-1, 1, links.similarity.numel(), dtype=torch.float64, device=device)
        (gradient,) = torch.autograd.grad((links.similarity.flatten() * weights).sum(), responses)
        results.append((*links, gradient))
    torch.testing.assert_close(*results)
    assert not links.order.requires_grad and not links.tracklet_id.requires_grad


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 64, 65, 130])
def test_any_number_of_responses(device, count):
    responses, order = wandering(videos=2, frames=3, count=count, channels=64, noise=0.05, device=device)
    links = link_tracklets(responses, min_similarity=0.5)
    assert torch.equal(links.order, order)
    slots = links.similarity.ge(0.5).all()
    assert slots and torch.equal(links.tracklet_id, torch.arange(count, device=device).expand(2, 3, count))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_any_order(method):
    responses = torch.randn(1, 4, 3, 5, dtype=torch.float64, requires_grad=True)

    def similarity(responses):
        return link_tracklets(responses, method=method).similarity

    assert torch.autograd.gradcheck(similarity, (responses,))
    assert torch.autograd.gradgradcheck(similarity, (responses,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_similarity_has_the_dtype_of_the_responses(device, dtype, backend):
    responses = torch.randn(2, 5, 3, 8, device=device).to(dtype)
    links = link_tracklets(responses, method="index", backend=backend)
    expected = torch.cosine_similarity(responses[:, :-1].double(), responses[:, 1:].double(), dim=-1)
    assert links.similarity.dtype == dtype
    torch.testing.assert_close(links.similarity.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 4, 3, 8), (2, 1, 3, 8), (2, 4, 0, 8), (2, 4, 1, 8)], ids=str)
@pytest.mark.parametrize("min_similarity", [None, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_empty_and_single_sizes(device, backend, sizes, min_similarity, method):
    responses = torch.randn(sizes, device=device, requires_grad=True)
    links = link_tracklets(responses, method=method, min_similarity=min_similarity, backend=backend)
    videos, frames, count, _ = sizes
    assert links.order.shape == links.tracklet_id.shape == (videos, frames, count)
    assert links.similarity.shape == (videos, frames - 1, count)
    links.similarity.sum().backward()
    assert responses.grad.shape == sizes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_zero_vectors_have_similarity_and_gradient_zero(device, backend, method):
    responses = (3 * torch.eye(2, 4) + torch.rand(1, 3, 2, 4)).to(device)  # each is most similar to itself
    responses[0, 1, 0] = 0
    responses.requires_grad_()
    similarity = link_tracklets(responses, method=method, backend=backend).similarity
    assert (similarity[0, :, 0] == 0).all() and (similarity[0, :, 1] != 0).all()
    similarity.sum().backward()
    assert (responses.grad[0, :, 0] == 0).all() and (responses.grad[0, :, 1] != 0).all()


def test_autocast_computes_in_float32(device):
    responses = torch.randn(2, 5, 3, 8, device=device).bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        for backend in BACKENDS:
            similarity = link_tracklets(responses, backend=backend).similarity
            torch.testing.assert_close(similarity, link_tracklets(responses.float()).similarity)


@pytest.mark.parametrize("method", METHODS)
def test_layout_does_not_change_the_result(device, method):
    responses = torch.randn(2, 5, 3, 8, device=device)
    expected = tuple(link_tracklets(responses, method=method))
    for layout in (*other_layouts(responses), responses.transpose(0, 2).contiguous().transpose(0, 2)):
        torch.testing.assert_close(tuple(link_tracklets(layout, method=method)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiles_once_and_exports_for_all_batch_sizes(device, method):
    def link(responses):
        links = link_tracklets(responses, method=method, min_similarity=0.1)
        return links.order, links.similarity, links.tracklet_id

    def make_inputs(videos):
        return [torch.randn(videos, 6, 3, 8, device=device, requires_grad=True)]

    assert_compiles_once(link, make_inputs)
    assert_exports(link, make_inputs)


@pytest.mark.parametrize("greedy", [False, True])
def test_opcheck_and_vmap(device, greedy):
    link = OPERATORS["link_tracklets_cpp"].forward
    responses = torch.randn(2, 4, 3, 5, device=device, requires_grad=True)
    torch.library.opcheck(link, (responses, greedy, 0.2))
    torch.library.opcheck(link, (responses.detach().bfloat16(), greedy, None))
    mapped = torch.func.vmap(lambda video: tuple(link_tracklets(video[None], min_similarity=0.1)), in_dims=1)
    results = [result[:, 0] for result in mapped(responses.detach().transpose(0, 1))]
    torch.testing.assert_close(results, list(link_tracklets(responses.detach(), min_similarity=0.1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "videos, frames, count, channels", [(2, 7, 3, 100), (3, 16, 2, 256), (1, 1, 5, 33), (2, 5, 1, 96), (4, 3, 7, 33)]
)
@pytest.mark.parametrize("method", ["index", "optimal"])
def test_similarity_agrees_with_float64(device, dtype, videos, frames, count, channels, method):
    """Each response stays most similar to itself, so that every dtype finds the same order."""
    tracklets = torch.randn(videos, 1, count, channels, device=device)

    def similarity(backend):
        def run(responses):
            if backend == "reference":
                return reference.link_tracklets(responses, method)[1:]
            if method == "index":
                return cpp.link_by_index(responses)[1:]
            found, order, _ = OPERATORS["link_tracklets_cpp"].forward(responses, False, None)
            assert torch.equal(order, torch.arange(count, device=device).expand_as(order))
            return [found]

        return run

    def draw():
        return [tracklets + 0.2 * torch.randn(videos, frames, count, channels, device=device)]

    assert_as_exact_as_plain(similarity("cpp"), similarity("reference"), draw, dtype)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("min_similarity", [None, 0.1])
def test_cosine_matrix_path_returns_the_same_links(device, greedy, min_similarity):
    """It is used for more responses per frame than the fused CUDA kernel supports."""
    responses = torch.randn(3, 6, 20, 33, dtype=torch.float64, device=device)
    responses[1, 2, 3] = 0
    responses[2, 3, 5] = torch.nan
    expected = cpp.link_by_similarity(responses, greedy, min_similarity)
    found = cpp.link_with_cosine_matrix(responses, greedy, min_similarity)
    torch.testing.assert_close(found, expected, equal_nan=True)


@requires_gpu
@pytest.mark.parametrize("count", [2, 8, 48, 100])
def test_cuda_graph_and_synchronization(count):
    def link(responses):
        return tuple(link_tracklets(responses, min_similarity=0.1))

    responses, _ = wandering(count=count, channels=64, noise=0.05, device="cuda")
    assert_captured_in_cuda_graph(link, [responses])


RESPONSES, NINE = torch.randn(2, 4, 3, 8), torch.randn(1, 2, 9, 4)
SLOW = {"backend": "reference", "method": "greedy"}


@pytest.mark.parametrize(
    "responses, options, error, message",
    [
        (4, {}, TypeError, r"responses is 4 of type int, expected a torch.Tensor of shape \[B,T,K,C\]"),
        (RESPONSES[0], {}, ValueError, r"responses has shape \[4, 3, 8\]"),
        (RESPONSES.long(), {}, TypeError, r"responses has dtype torch.int64"),
        (RESPONSES[:, :0], {}, ValueError, r"responses has .* with at least one frame"),
        (RESPONSES, {"method": "sort"}, ValueError, r"method is 'sort', expected one of 'index', 'greedy', 'opt"),
        (torch.randn(1, 2, 257, 4), {}, ValueError, r"responses has 257 .* at most 256 with method='optimal'"),
        (
            torch.randn(1, 2, 9, 4),
            SLOW,
            ValueError,
            r"responses has 9 .* at most 8 with method='greedy' and backend='ref",
        ),
        (RESPONSES, {"min_similarity": "low"}, TypeError, r"min_similarity is 'low' of type str"),
        (RESPONSES, {"min_similarity": 2}, ValueError, r"min_similarity is 2, .* \[-1.0, 1.0\]"),
        (RESPONSES, {"backend": "triton"}, ValueError, r"backend='triton' does not support"),
    ],
)
def test_errors_name_the_argument(responses, options, error, message):
    with pytest.raises(error, match="link_tracklets: .*" + message):
        link_tracklets(responses, **options)


def test_missing_native_module_raises_except_by_index(monkeypatch):
    monkeypatch.setattr(cpp, "_csrc", None)
    monkeypatch.setattr(cpp, "_import_error", "the native module cannot be imported; build it with `pip install .`")
    responses, _ = wandering()
    with pytest.raises(ValueError, match=r"method='optimal' is not available on cpu: the native module .* `pip inst"):
        link_tracklets(responses)
    assert torch.equal(link_tracklets(responses, method="index").order, torch.arange(5).expand(3, 6, 5))
    assert link_tracklets(responses, backend="reference").order.shape == (3, 6, 5)


def test_reference_links_by_hand():
    east, north = [1.0, 0.0], [0.0, 2.0]
    responses = torch.tensor([[[east, north], [north, east], [north, east]]])
    for method in ("greedy", "optimal"):
        order, similarity = reference.link_tracklets(responses, method)
        assert order.tolist() == [[[0, 1], [1, 0], [1, 0]]]
        assert similarity.tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    responses = torch.tensor(
        [[[[2.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [0.0, -1.0]], [[0.0, 0.0], [0.0, -4.0]]]], dtype=torch.float64
    )
    order, similarity = reference.link_tracklets(responses, "index")
    assert order.tolist() == [[[0, 1], [0, 1], [0, 1]]]
    expected = torch.tensor([[[0.5**0.5, -1.0], [0.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(similarity, expected)


def test_reference_numbers_tracklets_by_frame_and_slot():
    order = torch.zeros(1, 4, 3, dtype=torch.int64)
    similarity = torch.tensor([[[1.0, 0.1, 0.2], [0.1, 1.0, 1.0], [1.0, torch.nan, 0.5]]])
    ids = reference.tracklet_ids(order, similarity, 0.5).tolist()
    assert ids == [[[0, 1, 2], [0, 3, 4], [5, 3, 4], [5, 6, 4]]]
    assert reference.tracklet_ids(order, similarity, None).tolist() == [[[0, 1, 2]] * 4]


def test_gather_follows_the_order_and_is_differentiable(device):
    responses, order = wandering(device=device)
    boxes = torch.arange(3 * 6 * 5, device=device).view(3, 6, 5)
    gathered = gather_tracklets(responses, order)
    for t in range(6):
        for k in range(5):
            assert torch.equal(gathered[:, t, k], responses[torch.arange(3), t, order[:, t, k]])
    assert torch.equal(gather_tracklets(boxes, order), boxes.gather(2, order))
    maps = torch.randn(3, 6, 5, 4, 7, dtype=torch.float64, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(gather_tracklets(maps, order)[:, :, 0].sum(), maps)
    expected = torch.nn.functional.one_hot(order[:, :, 0], 5)[..., None, None].expand(-1, -1, -1, 4, 7)
    assert torch.equal(gradient, expected.double())


ORDER = torch.zeros(1, 2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    "values, order, error, message",
    [
        (3, ORDER, TypeError, r"values is of type int"),
        (torch.zeros(2, 3), ORDER, ValueError, r"values has shape \[2, 3\], expected \[B,T,K,..."),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), TypeError, r"order has dtype torch.float32, expected torch.int64"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 4).long(), ValueError, r"order has shape \[1, 2, 4\]"),
        (torch.zeros(1, 2, 3), ORDER - 1, ValueError, r"order has an index outside 0\.\.2, the values of a frame"),
        (torch.zeros(1, 2, 3, 4), ORDER + 3, ValueError, r"order has an index outside 0\.\.2"),
    ],
)
def test_gather_errors_name_the_argument(values, order, error, message):
    with pytest.raises(error, match="gather_tracklets: .*" + message):
        gather_tracklets(values, order)
