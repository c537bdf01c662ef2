"""Models of kind "probe": a frozen backbone with a head, its files, maps, training and explanation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art import load_model
from art.backbones import Backbone, Features
from art.backbones.base import _REGISTRY
from art.heads import ProbeClassifier, head_names
from art.train.loop import train

NAMES = ["run", "walk", "jump"]
SMALL = {"num_frames": 4, "backbone_options": {"width": 4, "depth": [1, 1, 1]}}
OPTIONS = {"art": {"latent_dim": 16, "feedforward_dim": 16}, "ep": {"num_queries": 2}}


class Tubelets(Backbone):
    """Tokens of pairs of frames: the mean color of each quadrant."""

    channels, input_size, grid, tubelet = 6, 8, (2, 2), 2

    def __init__(self, *, num_frames, pretrained=None):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, video):
        b, t = video.shape[:2]
        steps = video.float().unflatten(1, (t // 2, 2)).mean(2).flatten(0, 1)
        tokens = nn.functional.adaptive_avg_pool2d(steps, 2).flatten(2).mT.repeat(1, 1, 2).unflatten(0, (b, t // 2))
        return Features(tokens.repeat_interleave(2, 1), tokens.mean((1, 2)), self.grid)


@pytest.fixture
def tubelets(monkeypatch):
    monkeypatch.setitem(_REGISTRY, "tubelets", Tubelets)


def make(head, **options):
    torch.manual_seed(0)
    return ProbeClassifier(NAMES, head=head, head_options=OPTIONS.get(head, {}), **{**SMALL, **options}).eval()


@pytest.mark.parametrize("head", head_names())
def test_saved_models_are_equal(head, tmp_path, monkeypatch):
    model = make(head)
    model.save_pretrained(tmp_path)
    # Loading must not need the text encoder, which may have to be downloaded.
    monkeypatch.setattr("art.model.art_model.build_text_encoder", None)
    loaded = load_model(tmp_path)
    video = torch.rand(2, 4, 3, 112, 112)
    assert isinstance(loaded, ProbeClassifier) and loaded.options == model.options
    torch.testing.assert_close(loaded(video).logits, model(video).logits, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.backbone.parameters())


@pytest.mark.parametrize("head", ["ep", "attentive", "art"])
def test_maps_and_weights_of_frames(head, tubelets):
    model = make(head, backbone="tubelets", backbone_options={})
    output = model(torch.rand(2, 4, 3, 8, 8), return_maps=True)
    assert output.maps.shape == (2, 4, model.num_maps, 2, 2) and len(model.map_queries(output)) == model.num_maps
    torch.testing.assert_close(output.maps.sum((-2, -1)), torch.ones(2, 4, model.num_maps))
    torch.testing.assert_close(output.saliency.sum(1), torch.ones(2, model.num_maps))
    assert torch.equal(output.maps[:, 0], output.maps[:, 1]), "the frames of a tubelet share a map"
    if head == "ep":
        expected = output.head.maps.mean(1)  # [B, T', h, w], with sum 1 over the clip
        torch.testing.assert_close((output.maps * output.saliency[..., None, None])[:, ::2, 0] * 2, expected)


def test_maps_of_a_head_without_queries_are_refused():
    with pytest.raises(ValueError, match="the head 'mean' does not attend to tokens"):
        make("mean")(torch.rand(1, 4, 3, 112, 112), return_maps=True)


def test_training_changes_the_head_only(configured, tmp_path):
    options = ["kind=probe", "model.head=ep", "model.head_options={num_queries: 2}", "model.dropout=0"]
    before = ProbeClassifier(NAMES, **{**SMALL, "num_frames": 3}, head="ep", head_options={"num_queries": 2})
    result = train(configured(tmp_path / "run", *options, "optim.lr=0.1"))
    model = load_model(result.output / "checkpoints" / "last")
    assert model.kind == "probe"
    torch.manual_seed(0)
    start = ProbeClassifier(NAMES, **{**SMALL, "num_frames": 3}, head="ep", head_options={"num_queries": 2})
    assert before.backbone.state_dict().keys() == start.backbone.state_dict().keys()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, start.backbone.state_dict()[name]), f"{name} of the frozen backbone changed"
    assert not torch.equal(model.head.queries, start.head.queries)
