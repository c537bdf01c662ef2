"""What backbones say of their depth, and that blocks that are computed again in the backward pass change nothing."""

import json
from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from art import build_backbone
from art.backbones.interface import Backbone
from art.extras import import_extra

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
UNIFORMER = {"width": 24, "layers": 3, "heads": 2, "patch_size": 8, "input_size": 24, "global_dropout": 0.0}
# name: the options, how many layers, a parameter of the first and one of the last but one (or of the last, in stages).
CASES = {
    "tiny": ({"width": 4, "depth": [1, 2, 1]}, 5, "stem.weight", "stages.1.1.spatial.weight"),
    "uniformerv2_b16": (UNIFORMER, 4, "positional_embedding", "transformer.resblocks.1.attn.out_proj.weight"),
    "tea50": ({}, 5, "conv1.weight", "layer3.0.conv1.weight"),
    "timm_vit": ({"model": "test_vit", "input_size": 48}, 7, "model.pos_embed", "model.blocks.4.attn.qkv.weight"),
    "clip_vit": (
        {"model": "deep-vit"},
        4,
        "model.class_embedding",
        "model.transformer.resblocks.1.attn.out_proj.weight",
    ),
    "videomae": (
        {**SMALL, "patch_size": 8, "input_size": 24},
        4,
        "model.videomae.embeddings.patch_embeddings.projection.weight",
        "model.videomae.encoder.layer.1.output.dense.weight",
    ),
    "vivit": (
        {**SMALL, "tubelet_size": [2, 8, 8], "input_size": 24},
        4,
        "model.vivit.embeddings.cls_token",
        "model.vivit.layers.1.attention.q_proj.weight",
    ),
    "timesformer": (
        {**SMALL, "patch_size": 8, "input_size": 24},
        4,
        "model.timesformer.embeddings.cls_token",
        "model.timesformer.encoder.layer.1.attention.attention.qkv.weight",
    ),
}
LIBRARIES = {"timm_vit": "timm", "clip_vit": "open_clip", "videomae": "transformers", "vivit": "transformers"}
LIBRARIES["timesformer"] = "transformers"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def make(name, **given):
        library = LIBRARIES.get(name)
        if library is not None and find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
        if name == "clip_vit":
            open_clip = import_extra("open_clip", extra="clip", needed_by="these tests")
            vision = {"image_size": 24, "layers": 3, "width": 24, "head_width": 8, "patch_size": 8}
            text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
            path = tmp_path_factory.mktemp("configs") / "deep-vit.json"
            path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
            open_clip.add_model_config(path)
        torch.manual_seed(0)
        return build_backbone(name, num_frames=2, **CASES[name][0], **given)

    return make


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_in_one_layer_from_the_pixels_on(make, name):
    _, count, first, before_last = CASES[name]
    backbone = make(name)
    layers = backbone.parameters_by_depth()
    assert len(layers) == count
    assert sorted(id(p) for layer in layers for p in layer) == sorted(id(p) for p in backbone.parameters())
    of = {id(p): number for number, layer in enumerate(layers) for p in layer}
    depths = {parameter: of[id(tensor)] for parameter, tensor in backbone.named_parameters()}
    assert depths[first] == 0
    assert depths[before_last] == count - 2
    assert max(depths.values()) == count - 1


def test_what_comes_after_the_blocks_has_the_rate_of_the_last(make):
    for name, after in (("timm_vit", "model.norm.weight"), ("clip_vit", "model.ln_post.weight")):
        backbone = make(name)
        last = {id(p) for p in backbone.parameters_by_depth()[-1]}
        assert id(dict(backbone.named_parameters())[after]) in last


def test_a_backbone_says_nothing_unless_it_is_written_down():
    class Silent(Backbone):
        def forward(self, video):
            raise NotImplementedError

    assert Silent().parameters_by_depth() is None


@pytest.mark.parametrize("name", ["timm_vit", "clip_vit", "videomae", "vivit", "timesformer"])
def test_blocks_that_are_computed_again_keep_less_and_give_the_same_gradients(make, name):
    kept, gradients = [], []
    for recompute in (False, True):
        backbone = make(name, gradient_checkpointing=recompute).train()
        video = torch.rand(
            2, 2, 3, backbone.input_size, backbone.input_size, generator=torch.Generator().manual_seed(1)
        )
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            class_token = backbone(video).class_token
        torch.manual_seed(0)
        class_token.square().sum().backward()
        kept.append(sum(sizes))
        gradients.append([p.grad for p in backbone.parameters()])
    assert kept[1] < 0.7 * kept[0]
    assert_close(gradients[0], gradients[1])
