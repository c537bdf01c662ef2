"""The definition, against values worked out by hand and against PyTorch's own attention."""

import math

import torch

from art_kernels.region_attention.reference import region_attention

QUERY = torch.tensor([[[1.0]]], dtype=torch.float64)  # F = M = C = 1
REGIONS = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)  # N = 2: scores 0 and log 3, weights 1/4 and 3/4


def test_weights_and_output():
    output, weights = region_attention(QUERY, REGIONS, 1.0)
    torch.testing.assert_close(weights, torch.tensor([[[0.25, 0.75]]], dtype=torch.float64))
    torch.testing.assert_close(output.item(), 0.75 * math.log(3))


def test_scale_multiplies_the_scores():
    _, weights = region_attention(QUERY, REGIONS, 2.0)
    torch.testing.assert_close(weights, torch.tensor([[[0.1, 0.9]]], dtype=torch.float64))


def test_position_joins_the_keys_and_not_the_values():
    position = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    output, weights = region_attention(QUERY, REGIONS, 1.0, position)
    torch.testing.assert_close(weights, torch.tensor([[[0.5, 0.5]]], dtype=torch.float64))
    torch.testing.assert_close(output.item(), 0.5 * math.log(3))


def test_mask_leaves_out_regions_and_empty_frames():
    regions = REGIONS.expand(2, 2, 1)
    mask = torch.tensor([[False, True], [False, False]])
    output, weights = region_attention(QUERY.expand(2, 1, 1), regions, 1.0, None, mask)
    assert weights.tolist() == [[[0.0, 1.0]], [[0.0, 0.0]]]
    torch.testing.assert_close(output.flatten().tolist(), [math.log(3), 0.0])


def test_layer_norm_comes_before_position_and_attention():
    queries = torch.tensor([[[math.log(3) / 2, 0.0]]], dtype=torch.float64)
    regions = torch.tensor([[[5.0, 3.0], [1.0, 9.0]]], dtype=torch.float64)  # normalised: (1, -1) and (-1, 1)
    output, weights = region_attention(queries, regions, 1.0, None, None, 1e-12)
    torch.testing.assert_close(weights, torch.tensor([[[0.75, 0.25]]], dtype=torch.float64))
    torch.testing.assert_close(output, torch.tensor([[[0.5, -0.5]]], dtype=torch.float64))


def test_is_scaled_dot_product_attention():
    queries, regions = (torch.randn(3, size, 6, dtype=torch.float64) for size in (2, 5))
    position, mask = torch.randn(5, 6, dtype=torch.float64), torch.rand(3, 5) > 0.3
    output, _ = region_attention(queries, regions, 0.3, position, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, regions + position, regions, attn_mask=mask[:, None, :], scale=0.3
    )
    torch.testing.assert_close(output, expected)
