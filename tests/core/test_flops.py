"""FLOP formulas: against the products that the torch backends compute, and against counts by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from art_kernels import RegionCrossAttention, link_tracklets, mtc_loss, pool_tracklets, region_attention, tracklet_nce
from art_kernels.flops import flop_formulas
from art_kernels.region_attention import torch as torch_attention
from art_kernels.region_attention.module import cheaper_route
from art_kernels.region_attention.reference import Arguments


def count(call):
    """Multiply-adds of a call."""
    with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
        call()
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("regions_need", [False, True])
def test_region_attention_against_the_torch_backend(position, regions_need):
    queries = torch.randn(2, 3, 8, requires_grad=True)
    regions = torch.randn(2, 7, 8, requires_grad=regions_need)
    key_position = torch.randn(7, 8, requires_grad=True) if position else None
    forward = count(lambda: region_attention(queries, regions, key_position=key_position))
    assert forward == 2 * (2 * 3 * 7 * 8)
    output = region_attention(queries, regions, key_position=key_position)
    backward = count(lambda: output.sum().backward())
    q, x, grad = queries.detach(), regions.detach(), torch.ones_like(output)
    p = None if key_position is None else key_position.detach()
    arguments = Arguments(q, x, p, None, 0.3, None, False)
    needs = (True, regions_need, position, False)
    assert backward == 2 * 3 * 7 * 8 * (3 + 2 * regions_need + position)
    assert backward == count(lambda: torch_attention.backward((grad, None), arguments, (), needs))


def test_cost_of_a_folded_layer_matches_cheaper_route():
    frames, queries, regions, width, heads = 2, 2, 50, 16, 4
    layer = RegionCrossAttention(width, heads)
    found = count(lambda: layer(torch.randn(frames, queries, width), torch.randn(frames, regions, width)))
    shared = 2 * queries * width * width  # W_Q and the output projection
    folded = 2 * queries * width * (width + heads * regions)
    assert cheaper_route(queries=queries, regions=regions, region_dim=width, embed_dim=width, num_heads=heads) == (
        "folded"
    )
    assert found == frames * (shared + folded)


def test_contrast_losses():
    batch, frames, tracklets, channels = 2, 5, 3, 8
    responses = torch.randn(batch, frames, tracklets, channels, requires_grad=True)
    whole = torch.randn(batch, tracklets, channels)
    cosines = frames * 9 + (frames - 1) * 3 + 9
    assert count(lambda: mtc_loss(responses, whole)) == batch * channels * cosines
    loss = mtc_loss(responses, whole).total
    weighted = frames * 9 + 2 * (frames - 1) * 3 + 9
    assert count(loss.backward) == batch * channels * weighted
    flat = count(lambda: mtc_loss(responses, tracklet_form="flattened"))
    assert flat == batch * channels * (2 * frames * 9 + (frames - 1) * 3)
    vectors = torch.randn(6, 8, requires_grad=True)
    ids = torch.arange(6) // 2
    assert count(lambda: tracklet_nce(vectors, vectors, (ids, ids), temperature=0.1, symmetric=True)) == 6 * 6 * 8
    value = tracklet_nce(vectors, vectors.detach(), (ids, ids), temperature=0.1)
    assert count(value.backward) == 2 * 6 * 6 * 8


def test_linking_and_pooling():
    responses, semantics = torch.randn(2, 5, 3, 8), torch.randn(2, 4, 8)
    assert count(lambda: link_tracklets(responses, method="optimal")) == 2 * 4 * 3 * 3 * 8
    # On a CPU this consists of PyTorch operators; the counter covers their matrix products.
    assert count(lambda: pool_tracklets(responses, semantics)) == 2 * 5 * 3 * 8 * 4


@pytest.mark.parametrize("groups", [1, 4])
def test_corrected_pytorch_formulas(groups):
    convolution = torch.nn.Conv2d(8, 12, 3, groups=groups)
    x = torch.randn(2, 8, 6, 7, requires_grad=True)
    products = 2 * 4 * 5 * 12 * (8 // groups) * 9
    assert count(lambda: convolution(x)) == products
    assert count(convolution(x).sum().backward) == 2 * products
    q = torch.randn(2, 3, 6, 8, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count(lambda: attend(q, q, q)) == 2 * (2 * 3 * 6 * 6 * 8)
    assert count(attend(q, q, q).sum().backward) == 5 * (2 * 3 * 6 * 6 * 8)
    matrix = torch.randn(5, 7)
    assert count(lambda: matrix @ torch.randn(7)) == 35
