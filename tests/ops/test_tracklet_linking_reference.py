"""The definitions of assignment and linking, against values worked out by hand."""

import torch

from art_kernels.tracklet_linking.reference import greedy_assignment, link_tracklets, optimal_assignment, tracklet_ids


def test_assignments():
    cost = torch.tensor([[[1.0, 2.0, 9.0], [0.0, 4.0, 9.0], [7.0, 8.0, 3.0]], [[1.0, 1.0, 1.0]] * 3])
    assert optimal_assignment(cost).tolist() == [[1, 0, 2], [0, 1, 2]]
    assert optimal_assignment(cost, maximize=True).tolist() == [[2, 1, 0], [0, 1, 2]]
    assert greedy_assignment(cost[:, None]).tolist() == [[[1, 0, 2]], [[0, 1, 2]]]
    assert greedy_assignment(cost[:, None], maximize=True).tolist() == [[[2, 0, 1]], [[0, 1, 2]]]
    assert optimal_assignment(cost[0]).tolist() == [1, 0, 2]


def test_links_follow_what_is_alike():
    east, north = [1.0, 0.0], [0.0, 2.0]
    responses = torch.tensor([[[east, north], [north, east], [north, east]]])
    for method in ("greedy", "optimal"):
        order, similarity = link_tracklets(responses, method)
        assert order.tolist() == [[[0, 1], [1, 0], [1, 0]]]
        assert similarity.tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


def test_births_are_numbered_frame_by_frame_and_slot_by_slot():
    order = torch.zeros(1, 4, 3, dtype=torch.int64)
    similarity = torch.tensor([[[1.0, 0.1, 0.2], [0.1, 1.0, 1.0], [1.0, torch.nan, 0.5]]])
    assert tracklet_ids(order, similarity, 0.5).tolist() == [[[0, 1, 2], [0, 3, 4], [5, 3, 4], [5, 6, 4]]]
    assert tracklet_ids(order, similarity, None).tolist() == [[[0, 1, 2]] * 4]


def test_order_and_similarity_by_index():
    responses = torch.tensor(
        [[[[2.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [0.0, -1.0]], [[0.0, 0.0], [0.0, -4.0]]]], dtype=torch.float64
    )
    order, similarity = link_tracklets(responses, "index")
    assert order.tolist() == [[[0, 1], [0, 1], [0, 1]]]
    expected = torch.tensor([[[0.5**0.5, -1.0], [0.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(similarity, expected)
