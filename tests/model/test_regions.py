"""Spatial semantic enhancement and region activation."""

import torch
from torch.testing import assert_close

from art.model.regions import RegionActivation, SpatialSemanticEnhancement, sine_position


def test_sine_position_is_distinct_for_every_region():
    for grid in ((7, 5), (1, 3), (24, 24)):
        code = sine_position(grid, 16)
        assert code.shape == (grid[0] * grid[1], 16)
        assert torch.cdist(code, code).fill_diagonal_(9).min() > 0.02
    code = sine_position((3, 2), 8)
    assert torch.equal(code[0, :4], code[1, :4])  # one row
    assert torch.equal(code[0, 4:], code[2, 4:])  # one column
    # Every angle is zero in the center of the frame.
    assert_close(sine_position((1, 1), 8)[0], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))


def test_enhancement_attends_within_a_frame():
    torch.manual_seed(0)
    enhancement = SpatialSemanticEnhancement(8, 2, 16, 1, 0.0).eval()
    tokens, semantics = torch.randn(1, 2, 5, 8), torch.randn(1, 3, 8)
    x, s = enhancement(tokens, semantics)
    assert x.shape == tokens.shape
    assert s.shape == (1, 2, 3, 8)
    changed = tokens.clone()
    changed[:, 1] = torch.randn(5, 8)
    x2, s2 = enhancement(changed, semantics)
    assert torch.equal(x2[:, 0], x[:, 0])
    assert torch.equal(s2[:, 0], s[:, 0])
    assert not torch.allclose(s2[:, 1], s[:, 1])
    assert not torch.allclose(enhancement(tokens, -semantics)[0], x)


def test_enhancement_without_layers_is_the_identity():
    tokens, semantics = torch.randn(2, 2, 5, 8), torch.randn(2, 3, 8)
    x, s = SpatialSemanticEnhancement(8, 2, 16, 0, 0.0)(tokens, semantics)
    assert torch.equal(x, tokens)
    assert torch.equal(s, semantics[:, None].expand(-1, 2, -1, -1))


def test_activation_shapes_and_maps():
    torch.manual_seed(0)
    activation = RegionActivation(8, 2, 16, 2, num_frames=3, num_queries=2).eval()
    tokens, semantics = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 2, 8)
    responses, maps = activation(tokens, semantics, return_maps=True)
    assert responses.shape == (2, 3, 2, 8)
    assert_close(maps.sum(-1), torch.ones(2, 3, 2))
    again, none = activation(tokens, semantics)
    assert none is None
    assert_close(again, responses)


def test_query_self_attention():
    for self_attention in (False, True):
        torch.manual_seed(0)
        activation = RegionActivation(8, 2, 16, 1, 3, 2, self_attention=self_attention).eval()
        tokens, semantics = torch.randn(1, 3, 5, 8), torch.randn(1, 3, 2, 8)
        other = semantics.clone()
        other[:, :, 1] = -other[:, :, 1]
        same = torch.allclose(activation(tokens, semantics)[0][:, :, 0], activation(tokens, other)[0][:, :, 0])
        assert same is not self_attention


def test_responses_without_residual_depend_only_on_the_regions():
    for residual in (True, False):
        torch.manual_seed(0)
        activation = RegionActivation(8, 2, 16, 1, 3, 2, response_residual=residual).eval()
        uniform = torch.randn(1, 1, 1, 8).expand(1, 3, 5, 8)  # any attention has the same output
        first, second = (activation(uniform, torch.randn(1, 3, 2, 8))[0] for _ in range(2))
        assert torch.allclose(first, second, atol=1e-6) is not residual


def test_prompts_are_specific_to_the_frame_index():
    activation = RegionActivation(8, 2, 16, 1, num_frames=3, num_queries=2).eval()
    tokens = torch.randn(1, 1, 5, 8).expand(1, 3, 5, 8)
    semantics = torch.randn(1, 1, 2, 8).expand(1, 3, 2, 8)
    responses, _ = activation(tokens, semantics)
    assert not torch.allclose(responses[:, 0], responses[:, 1])
