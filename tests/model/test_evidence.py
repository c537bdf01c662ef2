"""The readout "evidence": its equations as loops, maps, contributions, losses, and files of models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from art import ARTModel, load_model
from art.backbones import Features
from art.model.evidence import QUERY_SCALE, RegionEvidence, focus, maps_of
from art.model.regions import sine_position

NAMES = ["run", "walk", "jump", "stand"]
OPTIONS = {"readout": "evidence", "latent_dim": 16, "num_heads": 2, "dropout": 0.0}


def make_module(text_dim=None, position="none", channels=8):
    torch.manual_seed(0)
    module = RegionEvidence(channels, len(NAMES), text_dim, position).double()
    for parameter in (module.weight, module.change_weight, module.bias, module.queries):
        torch.nn.init.normal_(parameter)
    return module


def expected_logit(module, tokens, clip, label, query, positions):
    """Compute z of one class of one clip with loops over frames."""
    responses = []
    for frame in tokens[clip]:
        regions = F.layer_norm(frame, frame.shape[-1:])
        keys = regions if positions is None else regions + positions
        weights = (keys @ query * QUERY_SCALE / math.sqrt(len(query))).softmax(0)
        responses.append(weights @ regions)
    evidence = [module.weight[label] @ response for response in responses]
    for t in range(len(responses) - 1):
        evidence[t] = evidence[t] + module.change_weight[label] @ (responses[t + 1] - responses[t])
    return module.bias[label] + torch.stack(evidence).exp().mean().log()


@pytest.mark.parametrize(("text_dim", "position"), [(None, "none"), (5, "none"), (None, "sine"), (5, "sine")])
def test_logits_equal_the_equations(text_dim, position):
    module = make_module(text_dim, position)
    tokens = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    semantics = None if text_dim is None else torch.randn(len(NAMES), text_dim, dtype=torch.float64)
    found = module(tokens, (2, 3), semantics)
    queries = module.queries
    if semantics is not None:
        queries = queries + F.normalize(semantics, dim=-1) @ module.text_projection.weight.mT
    positions = None
    if position == "sine":
        positions = sine_position((2, 3), module.position_dim).double() @ module.position_projection.weight.mT
    expected = torch.stack(
        [
            torch.stack([expected_logit(module, tokens, b, c, queries[c], positions) for c in range(len(NAMES))])
            for b in range(2)
        ]
    )
    torch.testing.assert_close(found.logits, expected, rtol=1e-9, atol=1e-9)
    inputs = [tokens, *module.parameters()]
    for actual, wanted in zip(
        torch.autograd.grad(found.logits.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-8)


def test_contributions_sum_to_the_evidence_without_changes():
    module = make_module(position="sine")
    torch.nn.init.zeros_(module.change_weight)
    found = module(torch.randn(2, 3, 6, 8, dtype=torch.float64), (2, 3), return_maps=True)
    classes = torch.tensor([[0, 3], [2, 1]])
    maps = maps_of(found, classes)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 2, dtype=torch.float64))
    summed = module.contributions(found, classes).sum(-1)
    torch.testing.assert_close(summed, found.evidence.gather(2, classes[:, None].expand(-1, 3, -1)))


def test_a_response_has_no_position_and_no_query():
    """Equal regions have equal responses, for any query and position."""
    module = make_module(text_dim=5, position="sine")
    tokens = torch.randn(1, 1, 1, 8, dtype=torch.float64).expand(1, 2, 6, 8)
    found = module(tokens, (2, 3), torch.randn(len(NAMES), 5, dtype=torch.float64))
    torch.testing.assert_close(found.responses, found.regions[:, :1, :1].expand_as(found.responses))


def test_focus_is_the_relative_entropy_of_the_true_class():
    module = make_module()
    with torch.no_grad():
        module.queries[0] = 0  # looks everywhere
    found = module(torch.randn(2, 3, 6, 8, dtype=torch.float64), (2, 3), return_maps=True)
    torch.testing.assert_close(focus(found, torch.tensor([0, 0])), torch.tensor(1.0, dtype=torch.float64))
    maps = maps_of(found, torch.tensor([[1], [2]]))
    expected = -(maps * maps.log()).sum(-1).mean() / math.log(6)
    torch.testing.assert_close(focus(found, torch.tensor([1, 2])), expected)
    torch.testing.assert_close(focus(found, F.one_hot(torch.tensor([1, 2]), 4) * 0.9), expected)


def make_model(**options):
    torch.manual_seed(0)
    return ARTModel.from_features(NAMES, channels=12, num_frames=3, num_tracklets=2, **{**OPTIONS, **options})


def make_features():
    return Features(torch.randn(2, 3, 6, 12), torch.randn(2, 12), (2, 3))


@pytest.mark.parametrize("linking", ["index", "optimal"])
def test_output_of_the_model(linking):
    model = make_model(linking=linking).eval()
    torch.nn.init.normal_(model.evidence.weight)
    output = model.forward_features(make_features(), return_maps=True)
    torch.testing.assert_close(output.logits, output.video_logits + output.region_evidence.logits)
    assert torch.equal(output.selected, output.logits.topk(2).indices)
    assert output.responses.shape == (2, 3, 2, 12) and output.maps.shape == (2, 3, 2, 2, 3)
    torch.testing.assert_close(output.maps.sum((-2, -1)), torch.ones(2, 3, 2))
    torch.testing.assert_close(output.saliency.sum(1), torch.ones(2, 2))
    regions = output.region_evidence.regions
    torch.testing.assert_close(output.responses, torch.einsum("btkn,btnc->btkc", output.maps.flatten(-2), regions))
    context, region_part, _, _ = model.region_parts(output)
    torch.testing.assert_close(model.combine_parts(context, region_part), output.logits)


def test_loss_terms_and_gradients():
    model = make_model(weight_mtc=0.5).train()
    terms = model.loss(model.forward_features(make_features()), torch.tensor([0, 3]))
    assert {"region", "focus", "mtc", "sema"} <= set(terms.named()) and 0 <= terms.focus.item() <= 1
    expected = terms.video + terms.contextual + terms.region + 0.2 * terms.focus + 0.5 * terms.mtc + 5 * terms.sema
    torch.testing.assert_close(terms.total, expected)
    terms.total.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == [], "every parameter is trained"


def test_saved_models_are_equal(tmp_path):
    model = ARTModel(NAMES, num_frames=3, backbone_options={"width": 4}, **OPTIONS).eval()
    torch.nn.init.normal_(model.evidence.weight)
    model.save_pretrained(tmp_path)
    video = torch.rand(1, 3, 3, 112, 112)
    assert torch.equal(load_model(tmp_path)(video).logits, model(video).logits)
