"""Properties of every backbone, with small models and random weights: layers, layout of tokens, gradients, saving."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from art import ARTModel, build_backbone
from art.extras import import_extra

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
HIDDEN = {"hidden_size": 16, "input_size": 24}
SMALL = {**HIDDEN, **SIZES}
IMAGE = {**HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2}
VIDEOPRISM = {**HIDDEN, "num_attention_heads": 2, "intermediate_size": 32, "tubelet_size": [1, 8, 8]}
UNIFORMER = {"width": 24, "layers": 3, "heads": 2, "patch_size": 8, "input_size": 24, "global_dropout": 0.0}
# name: options, number of layers, a parameter of the first layer and one of the last but one.
CASES = {
    "tiny": ({"width": 4, "depth": [1, 2, 1]}, 5, "stem", "stages.1.1.spatial"),
    "uniformerv2_b16": (UNIFORMER, 4, "positional_embedding", "transformer.resblocks.1.attn.out_proj"),
    "tea50": ({}, 5, "conv1", "layer3.0.conv1"),
    "timm_vit": ({"model": "test_vit", "input_size": 48}, 7, "model.pos_embed", "model.blocks.4.attn.qkv"),
    "clip_vit": ({"model": "deep-vit"}, 4, "model.class_embedding", "model.transformer.resblocks.1.attn.out_proj"),
    "videomae": (
        {**SMALL, "patch_size": 8},
        4,
        "model.videomae.embeddings.patch_embeddings.projection",
        "model.videomae.encoder.layer.1.output.dense",
    ),
    "vivit": (
        {**SMALL, "tubelet_size": [2, 8, 8]},
        4,
        "model.vivit.embeddings.cls_token",
        "model.vivit.layers.1.attention.q_proj",
    ),
    "timesformer": (
        {**SMALL, "patch_size": 8},
        4,
        "model.timesformer.embeddings.cls_token",
        "model.timesformer.encoder.layer.1.attention.attention.qkv",
    ),
    "vjepa2": (
        {**HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8},
        4,
        "model.encoder.embeddings.patch_embeddings.proj",
        "model.encoder.layer.1.mlp.fc1",
    ),
    "videoprism": (
        {**VIDEOPRISM, "num_spatial_layers": 2, "num_temporal_layers": 2},
        5,
        "model.spatial_embeddings.position_embeddings",
        "model.temporal_layers.0.attention.q_proj",
    ),
    "dinov3": (
        {**SMALL, "patch_size": 8, "num_register_tokens": 2, "pos_embed_rescale": None},
        4,
        "model.embeddings.register_tokens",
        "model.model.layer.1.attention.q_proj",
    ),
    "dinov2": (
        {**IMAGE, "patch_size": 8},
        4,
        "model.embeddings.position_embeddings",
        "model.encoder.layer.1.mlp.fc1",
    ),
    "dinov2_with_registers": (
        {**IMAGE, "patch_size": 8},
        4,
        "model.embeddings.register_tokens",
        "model.encoder.layer.1.mlp.fc1",
    ),
    "siglip2": (
        {**SMALL, "patch_size": 8},
        4,
        "model.embeddings.position_embedding",
        "model.encoder.layers.1.mlp.fc1",
    ),
}
VIDEO_MODELS = ["videomae", "vivit", "timesformer", "vjepa2", "videoprism"]
OF_TRANSFORMERS = [*VIDEO_MODELS, "dinov3", "dinov2", "dinov2_with_registers", "siglip2"]
LIBRARIES = {"timm_vit": "timm", "clip_vit": "open_clip", **dict.fromkeys(OF_TRANSFORMERS, "transformers")}
FROM_LIBRARY = list(LIBRARIES)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    if find_spec("open_clip") is not None:
        open_clip = import_extra("open_clip", extra="clip", needed_by="these tests")
        vision = {"image_size": 24, "layers": 3, "width": 24, "head_width": 8, "patch_size": 8}
        text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
        path = tmp_path_factory.mktemp("configs") / "deep-vit.json"
        path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
        open_clip.add_model_config(path)

    def make(name, num_frames=2, **options):
        if name in LIBRARIES and find_spec(LIBRARIES[name]) is None:
            pytest.skip(f"{LIBRARIES[name]} is not installed")
        torch.manual_seed(0)
        return build_backbone(name, num_frames=num_frames, **CASES[name][0], **options)

    return make


def random_video(size, num_frames=2):
    return torch.rand(2, num_frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def perturb(model):
    """Change positions, biases, and class tokens, which are zero initially."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", CASES)
def test_parameters_by_depth_contains_every_parameter_once(make, name):
    _, count, first, before_last = CASES[name]
    backbone = make(name)
    layers = backbone.parameters_by_depth()
    assert len(layers) == count
    assert sorted(id(p) for layer in layers for p in layer) == sorted(id(p) for p in backbone.parameters())
    layer_of = {id(p): number for number, layer in enumerate(layers) for p in layer}
    depths = {n.removesuffix(".weight"): layer_of[id(p)] for n, p in backbone.named_parameters()}
    assert depths[first] == 0
    assert depths[before_last] == count - 2
    assert max(depths.values()) == count - 1
    for final in ("model.norm", "model.ln_post"):  # after the blocks
        assert depths.get(final, count - 1) == count - 1


@pytest.mark.parametrize("name", FROM_LIBRARY)
def test_gradient_checkpointing_saves_memory_and_keeps_gradients(make, name):
    saved, gradients = [], []
    for recompute in (False, True):
        backbone = make(name, gradient_checkpointing=recompute).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            class_token = backbone(random_video(backbone.input_size)).class_token
        torch.manual_seed(0)
        class_token.square().sum().backward()
        saved.append(sum(sizes))
        gradients.append([p.grad for p in backbone.parameters()])
    assert saved[1] < 0.7 * saved[0]
    assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", FROM_LIBRARY)
def test_tokens_are_frame_by_frame_in_row_major_order(make, name):
    backbone = make(name, num_frames=4).eval()
    if name in OF_TRANSFORMERS:
        perturb(backbone.model)
    patch = backbone.input_size // 3
    video = random_video(backbone.input_size, num_frames=4)
    changed = video.clone()
    changed[0, 2:, :, patch : 2 * patch, :patch] = 5  # first patch of the second row in the last two frames
    with torch.no_grad():
        moved = (backbone(changed).tokens - backbone(video).tokens).norm(dim=-1)
    assert set(moved[0].flatten().topk(2).indices.tolist()) == {2 * 9 + 3, 3 * 9 + 3}
    assert moved[1].max() == 0
    assert name in VIDEO_MODELS or moved[0, :2].max() == 0


@pytest.mark.parametrize("name", CASES)
def test_uint8_and_float_agree(make, name):
    backbone = make(name).eval()
    size = 64 if name in ("tiny", "tea50") else backbone.input_size  # these two read frames of any size
    stored = (random_video(size) * 255).round().to(torch.uint8)
    with torch.no_grad():
        assert_close(backbone(stored)[:2], backbone(stored / 255)[:2])


@pytest.mark.parametrize("name", FROM_LIBRARY)
def test_frozen(make, name):
    field = "attention_probs_dropout_prob" if name == "vjepa2" else "hidden_dropout_prob"
    dropout = {field: 0.5} if name in VIDEO_MODELS else {}
    backbone = make(name, frozen=True, **dropout).train()
    video = random_video(backbone.input_size)
    first = backbone(video)
    assert not first.tokens.requires_grad and not first.class_token.requires_grad
    assert_close(backbone(video).tokens, first.tokens)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_LIBRARY)
def test_compiles_without_graph_breaks(make, name):
    backbone = make(name).eval()
    video = random_video(backbone.input_size)
    with torch.no_grad():
        assert_close(torch.compile(backbone, fullgraph=True, backend="eager")(video), backbone(video))


@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FROM_LIBRARY)
def test_art_trains_and_loads_without_the_pretrained_file(make, name, frozen, tmp_path):
    published = make(name).model
    path = tmp_path / "published"
    published.save_pretrained(path) if name in OF_TRANSFORMERS else torch.save(published.state_dict(), path)
    options = {**CASES[name][0], "frozen": frozen, "image_mean": [0.5, 0.5, 0.5]}
    size = {"latent_dim": 16, "num_heads": 2, "pretrained": str(path)}
    model = ARTModel(["walk", "run", "jump"], name, 2, backbone_options=options, **size)
    video = random_video(model.input_size)
    model.loss(model(video), torch.tensor([0, 2])).total.backward()
    assert all((parameter.grad is None) == frozen for parameter in model.backbone.parameters())
    assert model.token_projection.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "ours")
    path.rename(tmp_path / "moved")
    with torch.no_grad():
        loaded = ARTModel.from_pretrained(tmp_path / "ours")
        assert_close(loaded(video).logits, model.eval()(video).logits)


# tiny.


@pytest.mark.parametrize(("size", "grid"), [((112, 80), (14, 10)), ((101, 75), (13, 10))])
def test_tiny_features(size, grid):
    features = build_backbone("tiny", num_frames=4, width=8)(torch.rand(2, 4, 3, *size))
    assert features.grid == grid
    assert features.tokens.shape == (2, 4, grid[0] * grid[1], 48)
    if size == (112, 80):  # with odd sizes, interpolation changes the mean
        assert_close(features.class_token, torch.nn.functional.layer_norm(features.tokens.mean((1, 2)), (48,)))


def test_tiny_is_independent_across_clips_and_depends_on_frame_order():
    torch.manual_seed(0)
    backbone = build_backbone("tiny", num_frames=4, width=8).eval()
    video = torch.rand(2, 4, 3, 32, 32)
    both = backbone(video).tokens
    assert_close(backbone(video[1:]).tokens, both[1:])
    assert not torch.allclose(backbone(video.flip(1)).tokens.flip(1), both)


def test_tiny_tokens_are_in_row_major_order():
    torch.manual_seed(0)
    backbone = build_backbone("tiny", num_frames=1, width=8, depth=[1, 1, 1]).eval()
    video = torch.zeros(1, 1, 3, 160, 160)
    reference = backbone(video).tokens
    video[..., 144:, :16] = 1  # bottom left
    moved = (backbone(video).tokens - reference).norm(dim=-1).reshape(20, 20)
    assert moved[19, 0] > 0
    assert moved[0].max() == 0
    assert moved[:, 19].max() == 0


def test_tiny_loads_pretrained_weights(tmp_path):
    first = build_backbone("tiny", num_frames=2, width=8)
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "tiny.safetensors")
    second = build_backbone("tiny", num_frames=2, width=8, pretrained=str(tmp_path / "tiny.safetensors"))
    assert_close(second.state_dict(), first.state_dict())
