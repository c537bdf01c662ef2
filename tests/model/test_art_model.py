"""ARTModel and the baseline: shapes and gradients of every stage, linking, losses, and invalid input."""

import pytest
import torch
from torch.testing import assert_close

from art import ARTModel
from art.model.art_model import aggregate
from art_kernels import pool_tracklets

LABELS = torch.tensor([1, 3])
METHODS = ("index", "optimal")


def test_output_shapes(make_art, video):
    out = make_art(num_tracklets=3)(video, return_maps=True)
    assert out.logits.shape == out.video_logits.shape == (2, 4)
    assert out.class_token.shape == (2, 48)
    assert out.selected.shape == (2, 3)
    assert out.responses.shape == (2, 3, 3, 16)
    assert out.tracklets.shape == (2, 3, 3, 16)
    assert out.aggregated.shape == (2, 3, 16)
    assert out.saliency.shape == (2, 3, 3)
    assert out.maps.shape == (2, 3, 3, 6, 8)
    assert_close(out.maps.sum((-2, -1)), torch.ones(2, 3, 3))
    assert_close(out.saliency.sum(1), torch.ones(2, 3))
    assert_close(out.tracklets, out.responses.transpose(1, 2))
    assert torch.equal(out.order, torch.arange(3).expand(2, 3, 3))


def with_swapped_queries(model):
    """Swap the prompts of queries 0 and 1 in frame 1, and scale them to dominate the queries."""
    with torch.no_grad():
        model.activation.prompts[:, 0], model.activation.prompts[:, 1] = torch.randn(2, 1, 16) * 100
        model.activation.prompts[1] = model.activation.prompts[1].flip(0)
    return model


def test_linking_reorders_responses_and_maps(make_art, video):
    by_query, linked = (with_swapped_queries(make_art(linking=method))(video, return_maps=True) for method in METHODS)
    assert linked.order.tolist() == [[[0, 1], [1, 0], [0, 1]]] * 2
    for name in ("responses", "maps"):
        one, other = getattr(by_query, name), getattr(linked, name)
        assert_close(other[:, 1], one[:, 1].flip(1))
        assert_close(other[:, ::2], one[:, ::2])


@pytest.mark.parametrize("method", ["greedy", "optimal"])
def test_linking_follows_regions_that_swap_queries(make_art, video, method, monkeypatch):
    # The regions of the two queries are swapped in frame 1 and stay swapped.
    regions = torch.eye(2, 16)
    responses = torch.stack([regions, regions.flip(0), regions.flip(0)]).expand(2, 3, 2, 16)
    model = make_art(linking=method)
    monkeypatch.setattr(model.activation, "forward", lambda *_, **__: (responses, None))
    out = model(video)
    assert out.order.tolist() == [[[0, 1], [1, 0], [1, 0]]] * 2
    assert torch.equal(out.responses, regions.expand(2, 3, 2, 16))
    assert out.maps is None


def test_aggregate_with_detached_saliency():
    responses = torch.randn(2, 3, 2, 4, requires_grad=True)
    semantics = torch.randn(2, 2, 4, requires_grad=True)
    expected = pool_tracklets(responses, semantics, temperature=0.1)
    assert_close(aggregate(responses, semantics, temperature=0.1), tuple(expected))
    aggregated, saliency = aggregate(responses, semantics, temperature=0.1, detach_saliency=True)
    assert_close(aggregated, expected[0])
    aggregated.sum().backward()
    assert semantics.grad is None
    assert_close(responses.grad, saliency[..., None].expand_as(responses))


def test_selected_classes_are_distinct(make_art, video):
    selected = make_art(num_tracklets=4)(video).selected
    assert selected.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 2


def test_every_parameter_has_a_gradient(make_art, video):
    model = make_art(query_self_attention=True)
    model.loss(model(video), LABELS).total.backward()
    # The gradient of the key bias is zero, because it shifts all scores of a query equally.
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_each_loss_has_gradients_in_the_backbone(make_art, video):
    for weights in ({"weight_video": 1}, {"weight_contextual": 1}, {"weight_mtc": 1}):
        off = dict.fromkeys(("weight_video", "weight_contextual", "weight_mtc", "weight_sema"), 0.0)
        model = make_art(**{**off, **weights})
        model.loss(model(video), LABELS).total.backward()
        assert model.backbone.stem.weight.grad.abs().sum() > 0, weights


@pytest.mark.parametrize("detach, reaches", [(True, False), (False, True)])
def test_detach_video(make_art, video, detach, reaches):
    off = dict.fromkeys(("weight_video", "weight_contextual", "weight_mtc"), 0.0)
    model = make_art(**off, detach_video=detach)
    model.loss(model(video), LABELS).total.backward()
    assert bool(model.backbone.stem.weight.grad.abs().sum() > 0) is reaches
    assert model.semantics.agent.grad.abs().sum() > 0


def test_total_is_the_weighted_sum_of_the_named_terms(make_art, video):
    model = make_art()
    terms = model.loss(model(video), LABELS)
    named = terms.named()
    assert set(named) == {
        "total", "video", "contextual", "spatial", "temporal", "tracklet", "mtc",
        "video_consistency", "prototype_consistency", "sema",
    }  # fmt: skip
    assert_close(named["mtc"], named["spatial"] + named["temporal"] + named["tracklet"])
    assert_close(named["sema"], named["video_consistency"] + named["prototype_consistency"])
    assert_close(terms.total, named["video"] + named["contextual"] + 5 * named["mtc"] + 5 * named["sema"])


def test_weight_nce(make_art, video):
    labels = torch.tensor([1, 1])
    without, with_nce = make_art(), make_art(weight_nce=0.5, nce_temperature=0.2)
    output = with_nce(video)
    terms = with_nce.loss(output, labels)
    assert terms.nce > 0
    assert_close(terms.total, without.loss(without(video), labels).total + 0.5 * terms.nce)
    (gradient,) = torch.autograd.grad(terms.nce, output.aggregated)
    assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize("kind", ["art", "backbone"])
def test_class_probabilities_as_labels(make_art, make_baseline, video, kind):
    model = (make_art if kind == "art" else make_baseline)()
    output = model(video)
    own, other = model.loss(output, torch.tensor([0, 2])), model.loss(output, torch.tensor([3, 1]))
    probabilities = torch.tensor([[0.8, 0, 0, 0.2], [0, 0.2, 0.8, 0]])
    mixed = model.loss(output, probabilities).named()
    for name, value in mixed.items():
        assert_close(value, 0.8 * own.named()[name] + 0.2 * other.named()[name])
    assert mixed["video"] != own.video


def test_clips_of_a_batch_are_independent_and_a_batch_may_be_empty(make_art, video):
    model = make_art().eval()
    assert_close(model(video).logits[1:], model(video[1:]).logits)
    stored = (255 * video).to(torch.uint8)
    assert_close(model(stored).logits, model(stored / 255).logits)
    out = model(video[:0], return_maps=True)
    assert out.logits.shape == (0, 4)
    assert out.maps.shape == (0, 3, 2, 6, 8)


def test_parameter_groups_contain_every_parameter_once(make_art, make_baseline):
    for model in (make_art(), make_baseline()):
        grouped = [p for group in model.parameter_groups().values() for p in group]
        assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))


def test_invalid_input(make_art, video):
    with pytest.raises(ValueError, match=r"video has shape \[2, 2, 3, 48, 64\], expected \[B, 3, 3, H, W\]"):
        make_art()(video[:, :2])
    with pytest.raises(TypeError, match=r"dtype torch\.int64, expected uint8, or float"):
        make_art()(video.long())
    with pytest.raises(TypeError, match="unknown option 'latent_dims'; did you mean 'latent_dim'"):
        make_art(latent_dims=3)
    with pytest.raises(ValueError, match="num_tracklets is 5, expected at most the number of classes, 4"):
        make_art(num_tracklets=5)
    with pytest.raises(ValueError, match="latent_dim is 15, expected a multiple of num_heads, 2"):
        make_art(latent_dim=15)
    with pytest.raises(ValueError, match=r"test_crop is 0\.0, expected above 0 and at most 1"):
        make_art(test_crop=0.0)
    with pytest.raises(ValueError, match=r"nce_temperature is 0\.0, expected above 0"):
        make_art(nce_temperature=0.0)
    with pytest.raises(ValueError, match="'walk' more than once"):
        ARTModel(["walk", "walk"])
    with pytest.raises(TypeError, match="single string"):
        ARTModel("walk")


def test_prompts_replace_the_class_names(make_art):
    named, prompted = make_art(), make_art(prompts=["go", "race", "leap", "wheel"])
    assert not torch.allclose(named.semantics.bank, prompted.semantics.bank)
    assert prompted.class_names == named.class_names
    with pytest.raises(ValueError, match="prompts has 1 texts, expected one for each of the 4 classes"):
        make_art(prompts=["go"])


def test_baseline_has_no_maps(make_baseline, video):
    with pytest.raises(ValueError, match="has no response maps"):
        make_baseline()(video, return_maps=True)


def test_deprecated_names_of_update_bank(make_art):
    model = make_art(bank_momentum=0.75)
    with torch.no_grad():
        model.semantics.agent.add_(4.0)
    expected = model.semantics.bank + 1
    with pytest.warns(DeprecationWarning, match="ARTModel.after_step is now update_bank"):
        model.after_step()
    assert_close(model.semantics.bank, expected)
    with pytest.warns(DeprecationWarning, match="SemanticsBank.follow_agent is now ema_update"):
        model.semantics.follow_agent()
    with pytest.warns(DeprecationWarning, match="centre_crop is now center_crop"):
        assert model.centre_crop.size == model.center_crop.size
