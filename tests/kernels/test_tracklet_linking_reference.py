"""The definition of linking by index, against values worked out by hand."""

import torch

from art_kernels.tracklet_linking.reference import link_by_index


def test_order_and_similarity():
    responses = torch.tensor(
        [[[[2.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [0.0, -1.0]], [[0.0, 0.0], [0.0, -4.0]]]], dtype=torch.float64
    )
    order, similarity = link_by_index(responses)
    assert order.tolist() == [[[0, 1], [0, 1], [0, 1]]]
    expected = torch.tensor([[[0.5**0.5, -1.0], [0.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(similarity, expected)
