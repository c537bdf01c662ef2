"""``uniformerv2_*``: agreement with the published implementation and a plain reference; options; checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden_outputs, golden_shapes, golden_video, golden_weights
from torch.testing import assert_close
from uniformerv2_tiny import SSV2, TINY, make_tiny

from art import ARTModel, BackboneClassifier, build_backbone, load_model
from art.backbones.uniformerv2 import SIZES, DropPath, FeedForward
from art.backbones.uniformerv2_weights import NormalizedLinear, published_state

CLASSES = ["walk", "run with the left arm raised", "jump"]


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


# The published model.


@pytest.mark.parametrize(("published", "labels", "options"), [("k400", 400, {}), ("ssv2", 174, SSV2)])
def test_names_and_shapes_match_the_published_models(published, labels, options):
    with torch.device("meta"):
        backbone = build_backbone("uniformerv2_b16", num_frames=4, keep_head=True, **options)
        state = published_state(backbone, backbone.video_head(labels))
    shapes = golden_shapes(f"uniformerv2_b16_{published}")
    assert {name: list(value.shape) for name, value in state.items()} == {f"backbone.{n}": s for n, s in shapes.items()}


@pytest.mark.slow
def test_outputs_match_the_published_implementation():
    weights = golden_weights(golden_shapes("uniformerv2_b16_k400"), "k400_b16_f4")
    head = {name.removeprefix("transformer.proj."): weights.pop(name) for name in list(weights) if ".proj." in name}
    with torch.device("meta"):
        backbone = build_backbone("uniformerv2_b16", num_frames=4)
    backbone.load_state_dict(weights, assign=True)
    # The published network takes normalized colors.
    video = golden_video((1, 3, 4, 224, 224), "k400_b16_f4").transpose(1, 2) * 0.225 + 0.45
    with torch.no_grad():
        tokens, class_token, grid = backbone.eval()(video)
    normalized = F.layer_norm(class_token, (768,), head["0.weight"], head["0.bias"])
    expected = golden_outputs("uniformerv2_b16_k400_f4")
    assert grid == (14, 14)
    assert tokens.shape == (1, 4, 196, 768)
    assert_close(tokens[0, :, ::13, ::17], expected["tokens"], atol=2e-4, rtol=0)
    assert_close(class_token, expected["cls"], atol=2e-4, rtol=0)
    assert_close(F.linear(normalized, head["2.weight"], head["2.bias"]), expected["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["uniformerv2_l14", "uniformerv2_l14_336"])
def test_large_sizes(name):
    with torch.device("meta"):
        backbone = build_backbone(name, num_frames=8)
    side = backbone.input_size // 14
    assert (backbone.channels, backbone.input_size) == (1024, SIZES[name]["input_size"])
    assert backbone.positional_embedding.shape == (1 + side**2, 1024)
    assert len(backbone.transformer.resblocks) == 24
    assert backbone.transformer.global_blocks == (20, 21, 22, 23)
    assert backbone.transformer.dec[0].attn.num_heads == 16


# A plain reference: every region is normalized and projected.


def reference(s, video, options):
    """Compute tokens [B,T',N,C] and x_cls [B,C] from the state dict ``s`` in plain PyTorch."""
    heads, stride = options["heads"], 2 if options.get("temporal_downsample") else 1
    size, padding = (stride, *s["conv1.weight"].shape[3:]), (s["conv1.weight"].shape[2] // 2, 0, 0)
    volume = F.conv3d((video.transpose(1, 2) - 0.45) / 0.225, s["conv1.weight"], stride=size, padding=padding)
    b, c, t, h, w = volume.shape
    patches = volume.permute(0, 2, 3, 4, 1).reshape(b, t, h * w, c)
    x = torch.cat([s["class_embedding"].expand(b, t, 1, c), patches], 2) + s["positional_embedding"]
    x = norm(s, "ln_pre", x)
    query = s["transformer.temporal_cls_token"].expand(b, 1, c)
    for i in range(options["layers"]):
        block = f"transformer.resblocks.{i}"
        x = local_relation(s, f"{block}.lmhra1.pos_embed", x, (h, w))
        frames = norm(s, f"{block}.ln_1", x).flatten(0, 1)
        x = x + attend(s, f"{block}.attn", frames, frames, heads).view_as(x)
        x = local_relation(s, f"{block}.lmhra2.pos_embed", x, (h, w))
        x = x + transform(s, f"{block}.mlp", norm(s, f"{block}.ln_2", x))
        if i in options["global_blocks"]:
            j = options["global_blocks"].index(i)
            name, block = f"transformer.dpe.{j}", f"transformer.dec.{j}"
            position = F.conv3d(volume_of(x, (h, w)), s[f"{name}.weight"], s[f"{name}.bias"], padding=1, groups=c)
            regions = norm(s, f"{block}.ln_3", with_patches(x, position)).flatten(1, 2)
            query = query + attend(s, f"{block}.attn", norm(s, f"{block}.ln_1", query), regions, heads)
            query = query + transform(s, f"{block}.mlp", norm(s, f"{block}.ln_2", query))
    if "transformer.balance" not in s:
        return x[:, :, 1:], query[:, 0]
    gate = torch.sigmoid(s["transformer.balance"])
    return x[:, :, 1:], (1 - gate) * query[:, 0] + gate * x[:, :, 0].mean(1)


def norm(s, name, x):
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"])


def attend(s, name, queries, regions, heads):
    weight, bias = s[f"{name}.in_proj_weight"].chunk(3), s[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (
        F.linear(x, weight[i], bias[i]).unflatten(-1, (heads, -1)).transpose(1, 2)
        for i, x in enumerate((queries, regions, regions))
    )
    attended = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return F.linear(attended.transpose(1, 2).flatten(2), s[f"{name}.out_proj.weight"], s[f"{name}.out_proj.bias"])


def transform(s, name, x):
    hidden = F.linear(x, s[f"{name}.c_fc.weight"], s[f"{name}.c_fc.bias"])
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return F.linear(hidden, s[f"{name}.c_proj.weight"], s[f"{name}.c_proj.bias"])


def local_relation(s, name, x, grid):
    if f"{name}.0.weight" not in s:
        return x
    p = [{key: s[f"{name}.{i}.{key}"] for key in ("weight", "bias")} for i in range(4)]
    volume = F.batch_norm(volume_of(x, grid), s[f"{name}.0.running_mean"], s[f"{name}.0.running_var"], **p[0])
    volume = F.conv3d(volume, **p[1])
    volume = F.conv3d(volume, **p[2], padding=(1, 0, 0), groups=volume.shape[1])
    return with_patches(x, F.conv3d(volume, **p[3]))


def volume_of(x, grid):
    return x[:, :, 1:].unflatten(2, grid).permute(0, 4, 1, 2, 3)


def with_patches(x, volume):
    """Add a volume [B,C,T,h,w] to the patches of ``x``."""
    return x + F.pad(volume.permute(0, 2, 3, 4, 1).flatten(2, 3), (0, 0, 1, 0))


VARIANTS = [{}, SSV2, {"local_mhra": 1}, {"global_blocks": [1]}, {"frozen": True, "local_mhra": 2}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_outputs_and_gradients_match_the_reference(variant, video):
    backbone = make_tiny(**variant).double()
    s = {name: value.detach().clone() for name, value in backbone.state_dict().items()}
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    for name in trained:
        s[name].requires_grad_()
    tokens, class_token = reference(s, video.double(), {**TINY, **variant})
    stride = 2 if "temporal_downsample" in variant else 1
    read = []
    backbone.transformer.dec[0].attn.register_forward_pre_hook(lambda _, arguments: read.append(arguments[1]))
    features = backbone(video.double())
    assert read[0].shape == (2, 40 // stride, 24) and read[0]._is_view(), "the regions are not copied"
    assert_close(features.class_token, class_token)
    assert_close(features.tokens[:, ::stride], tokens)

    weight = torch.randn(class_token.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((features.class_token * weight).sum(), list(trained.values()), allow_unused=True)
    expected = torch.autograd.grad((class_token * weight).sum(), [s[n] for n in trained], allow_unused=True)
    for name, ours, other in zip(trained, found, expected, strict=True):
        assert (ours is None) == (other is None), name
        if ours is not None:
            assert_close(ours, other, msg=lambda m, name=name: f"{name}: {m}")


# Options.


def test_temporal_downsampling_repeats_tokens(video):
    tokens = make_tiny(**SSV2)(video).tokens
    assert tokens.shape == (2, 4, 9, 24)
    assert_close(tokens[:, 1::2], tokens[:, ::2])
    assert not torch.allclose(tokens[:, 2], tokens[:, 0])


def test_drop_path_drops_whole_clips_at_a_linearly_increasing_rate():
    torch.manual_seed(0)
    branch = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert branch.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (branch == branch[:, :1, :1]).all()
    assert branch.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(torch.ones(8)), torch.ones(8))
    blocks = make_tiny(drop_path=0.2, global_drop_path=0.1).transformer
    assert [block.drop_path.rate for block in blocks.resblocks] == pytest.approx([0, 0.1, 0.2])
    assert [block.drop_path.rate for block in blocks.dec] == pytest.approx([0, 0.1])


def test_gradient_checkpointing_keeps_gradients_and_statistics(video):
    gradients, counts = [], []
    for recompute in (False, 2):
        backbone = make_tiny(gradient_checkpointing=recompute, drop_path=0.5, **SSV2).train()
        torch.manual_seed(0)
        backbone(video).class_token.square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
        counts.append({n: v.item() for n, v in backbone.named_buffers() if n.endswith("num_batches_tracked")})
    assert_close(gradients[0], gradients[1])
    assert counts[0] == counts[1]
    assert set(counts[1].values()) == {1}


def test_gradient_checkpointing_saves_memory(video):
    def saved_elements(recompute):
        sizes = []
        backbone = make_tiny(gradient_checkpointing=recompute).train()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            backbone(video)
        return sum(sizes)

    everything, every, three, one = (saved_elements(recompute) for recompute in (False, True, 3, 1))
    assert every == three < 0.7 * everything and every < one < everything


def test_frozen_trains_only_video_parameters(video):
    backbone = make_tiny(frozen=True)
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"temporal_cls_token", "dpe", "dec"}
    assert not backbone(video).tokens.requires_grad


def test_autocast_keeps_the_residual_in_float32(video):
    backbone = make_tiny(**SSV2)
    expected = backbone(video)
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(video)
    assert features.tokens.dtype == features.class_token.dtype == torch.float32
    assert not torch.equal(features.tokens, expected.tokens)
    for found, exact in zip(features[:2], expected[:2], strict=True):
        assert (found - exact).norm() < 0.01 * exact.norm()


# In the model.


SMALL = {"latent_dim": 16, "num_heads": 2, "feedforward_dim": 32, "enhancement_layers": 1, "activation_layers": 1}


@pytest.mark.parametrize("variant", [{}, SSV2, {"frozen": True}], ids=str)
def test_art_trains_and_is_saved(variant, video, tmp_path):
    torch.manual_seed(0)
    model = ARTModel(CLASSES, "uniformerv2_b16", 4, backbone_options={**TINY, **variant}, **SMALL)
    model.backbone.load_state_dict(make_tiny(**variant).state_dict())
    out = model(video, return_maps=True)
    assert out.maps.shape == (2, 4, 2, 3, 3)
    model.loss(out, torch.tensor([0, 2])).total.backward()
    reached = {name for name, p in model.backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, p in model.backbone.named_parameters() if p.requires_grad}

    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(ARTModel.from_pretrained(tmp_path)(video).logits, model(video).logits)


@pytest.mark.slow
def test_art_compiles_without_graph_breaks(video):
    torch.manual_seed(0)
    options = {**TINY, "layers": 1, "global_blocks": [0], **SSV2}
    model = ARTModel(CLASSES, "uniformerv2_b16", 4, backbone_options=options, **SMALL).eval()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(video)
        assert_close(compiled.logits, model(video).logits)


def test_kept_head_is_saved_with_the_model(video, tmp_path):
    options = {**TINY, "keep_head": True, "head_labels": [2, 0, 1]}
    torch.save(published_state(make_tiny(), NormalizedLinear(24, 3)), tmp_path / "weights.pth")
    model = BackboneClassifier(
        CLASSES, "uniformerv2_b16", 4, backbone_options=options, pretrained=str(tmp_path / "weights.pth")
    ).eval()
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert_close(load_model(tmp_path / "model")(video).logits, model(video).logits)


# Invalid input.


def test_invalid_videos(video):
    with pytest.raises(ValueError, match=r"24×32 pixels.*3×3 patches of 8: expected 24×24.*input_size"):
        make_tiny()(F.pad(video, (0, 8)))
    with pytest.raises(ValueError, match=r"5 frames.*an even number such as 6, or temporal_downsample=False"):
        build_backbone("uniformerv2_b16", num_frames=5, **TINY, temporal_downsample=True)
    with pytest.raises(ValueError, match="3 frames"):
        make_tiny(**SSV2)(video[:, :3])
    assert make_tiny()(video[:, :3]).tokens.shape == (2, 3, 9, 24)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("heads", 5, "width is 24, expected a multiple of heads, 5"),
        ("layers", 0, "layers is 0, expected at least 1"),
        ("input_size", 30, "input_size is 30, expected a multiple of the patch size, 8, such as 24 or 32"),
        ("global_blocks", [2, 1], r"global_blocks is \[2, 1\], expected .*of 0 to 2"),
        ("global_blocks", [3], r"global_blocks is \[3\]"),
        ("global_blocks", [], r"global_blocks is \[\], expected at least one"),
        ("local_mhra", 3, "local_mhra is 3, expected 0, 1 or 2"),
        ("local_reduction", 0.5, "local_reduction is 0.5"),
        ("drop_path", 1, r"drop_path is 1, expected in \[0, 1\)"),
        ("gradient_checkpointing", -1, "gradient_checkpointing is -1"),
        ("head_labels", [0], "head_labels is given, but keep_head is False"),
    ],
)
def test_options_out_of_range(option, value, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("uniformerv2_b16", num_frames=4, **{**TINY, option: value})


def test_mlp_matches_clip_and_saves_the_hidden_layer_twice():
    mlp = FeedForward(6).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    saved = {}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        found = mlp(x)
    hidden = mlp.c_fc(x)
    expected = mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    assert_close(found, expected)
    inputs = (x, *mlp.parameters())
    assert_close(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), inputs))
    assert sum(tensor.numel() == 2 * 3 * 5 * 24 for tensor in saved.values()) == 2
