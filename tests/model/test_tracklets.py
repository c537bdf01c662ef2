"""Linking and aggregation."""

import torch
from torch.testing import assert_close

from art.model.tracklets import aggregate, link


def test_index_linking_keeps_the_responses():
    responses, maps = torch.randn(2, 3, 2, 4), torch.rand(2, 3, 2, 5)
    linked = link(responses, maps, "index")
    assert torch.equal(linked.responses, responses)
    assert torch.equal(linked.maps, maps)
    assert torch.equal(linked.order, torch.arange(2).expand(2, 3, 2))
    assert link(responses, None, "index").maps is None


def test_linking_moves_responses_and_maps_together(monkeypatch):
    order = torch.tensor([[[1, 0], [0, 1]]])
    monkeypatch.setattr("art.model.tracklets.link_tracklets", lambda *_, **__: type("Links", (), {"order": order}))
    responses, maps = torch.randn(1, 2, 2, 4), torch.rand(1, 2, 2, 5)
    linked, moved, told = link(responses, maps, "index")
    assert told is order
    assert torch.equal(linked[:, 0], responses[:, 0].flip(1))
    assert torch.equal(moved[:, 0], maps[:, 0].flip(1))
    assert torch.equal(linked[:, 1], responses[:, 1])


def test_the_order_says_which_query_each_response_came_from():
    # Two queries that swap their regions in frame 1 and keep them: the tracklets follow the regions.
    regions = torch.eye(2)
    responses = torch.stack([regions, regions.flip(0), regions.flip(0)])[None]
    for method in ("greedy", "optimal"):
        linked = link(responses, None, method)
        assert linked.order.tolist() == [[[0, 1], [1, 0], [1, 0]]]
        assert torch.equal(linked.responses, regions.expand(1, 3, 2, 2))


def test_aggregation_by_hand():
    # One clip, two frames, one tracklet, one semantic; cosines 1 and 0.
    responses = torch.tensor([[[[2.0, 0.0]], [[0.0, 3.0]]]])
    semantics = torch.tensor([[[5.0, 0.0]]])
    aggregated, saliency = aggregate(responses, semantics, temperature=0.5)
    weight = torch.tensor([2.0, 0.0]).softmax(0)
    assert_close(saliency[0, :, 0], weight)
    assert_close(aggregated[0, 0], torch.stack([2 * weight[0], 3 * weight[1]]))


def test_detached_saliency_gives_the_same_value_and_no_gradient_to_the_semantics():
    responses = torch.randn(2, 3, 2, 4, requires_grad=True)
    semantics = torch.randn(2, 2, 4, requires_grad=True)
    with_gradient = aggregate(responses, semantics, temperature=0.1)
    without = aggregate(responses, semantics, temperature=0.1, detach_saliency=True)
    assert_close(without.aggregated, with_gradient.aggregated)
    without.aggregated.sum().backward()
    assert semantics.grad is None
    assert_close(responses.grad, without.saliency[..., None].expand_as(responses))
