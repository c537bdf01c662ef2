"""The native path: as exact as plain PyTorch, with right gradients."""

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain
from torch.autograd import gradcheck

from art_kernels.tracklet_linking import extension, native, reference, registration


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "videos, frames, count, channels", [(2, 7, 3, 100), (3, 16, 2, 256), (1, 1, 5, 33), (2, 5, 1, 96)]
)
def test_agrees_with_float64(device, dtype, videos, frames, count, channels):
    def fast(responses):
        return native.link_by_index(responses)[1:]

    def plain(responses):
        return reference.link_tracklets(responses, "index")[1:]

    def draw():
        return [torch.randn(videos, frames, count, channels, device=device)]

    assert_as_exact_as_plain(fast, plain, draw, dtype)
    (responses,) = draw()
    assert torch.equal(native.link_by_index(responses)[0], reference.link_tracklets(responses, "index")[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("videos, frames, count, channels", [(2, 7, 3, 100), (3, 16, 2, 256), (4, 3, 7, 33)])
def test_similarity_of_links_is_as_exact_as_plain(device, dtype, videos, frames, count, channels):
    """Each response stays most like itself, so that every dtype finds the same order."""
    reason = extension.refusal(torch.empty(0, device=device))
    if reason is not None:
        pytest.skip(reason)
    tracklets = torch.randn(videos, 1, count, channels, device=device)

    def fast(responses):
        similarity, order, _ = registration.link(responses, False, None)
        assert torch.equal(order, torch.arange(count, device=device).expand_as(order))
        return [similarity]

    def plain(responses):
        return reference.link_tracklets(responses, "optimal")[1:]

    def draw():
        return [tracklets + 0.2 * torch.randn(videos, frames, count, channels, device=device)]

    assert_as_exact_as_plain(fast, plain, draw, dtype)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("min_similarity", [None, 0.1])
def test_the_way_through_all_cosines_finds_the_same(device, greedy, min_similarity):
    """It serves more responses a frame than one pass holds on a GPU."""
    reason = extension.refusal(torch.empty(0, device=device))
    if reason is not None:
        pytest.skip(reason)
    responses = torch.randn(3, 6, 20, 33, dtype=torch.float64, device=device)
    responses[1, 2, 3] = 0
    responses[2, 3, 5] = torch.nan
    expected = native.link_by_similarity(responses, greedy=greedy, min_similarity=min_similarity)
    found = native.link_through_cosines(responses, greedy=greedy, min_similarity=min_similarity)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_gradients():
    responses = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda responses: native.link_by_index(responses)[1], (responses,))
