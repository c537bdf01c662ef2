"""Grad-CAM and attention rollout against naive implementations."""

import importlib.util
import json

import pytest
import torch
from torch import nn

from art import Features, build_backbone
from art.extras import import_extra
from art.tools.explain.backbone_maps import MapUnavailable, _forward_hooks, attention_rollout, grad_cam

TINY = {"width": 24, "layers": 3, "heads": 3, "patch_size": 8, "input_size": 24, "global_blocks": [0, 2]}
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def make(name, frames=4, **options):
    torch.manual_seed(0)
    backbone = build_backbone(name, num_frames=frames, **options).eval()
    if name.startswith("uniformer"):  # global blocks are initialized as the identity, which ignores the frames
        for parameter in backbone.parameters():
            nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    return backbone, nn.Linear(backbone.channels, 5)


def video(size, frames=4):
    return torch.rand(1, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def gradients_and_hooks(backbone, head):
    return [(p.requires_grad, p.grad) for p in (*backbone.parameters(), *head.parameters())], len(
        [hook for m in backbone.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
    )


BACKBONES = [
    pytest.param("tiny", {"width": 8, "depth": (1, 1, 1)}, 32, id="tiny"),
    pytest.param("uniformerv2_b16", TINY, 24, id="uniformerv2"),
    pytest.param("uniformerv2_b16", {**TINY, "temporal_downsample": True, "frozen": True}, 24, id="uniformerv2-frozen"),
    pytest.param(
        "timm_vit", {"model": "vit_tiny_patch16_224", "input_size": 48, "frozen": True}, 48, id="timm", marks=needs_timm
    ),
    pytest.param(
        "videomae",
        {"input_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32},
        32, id="videomae", marks=needs_transformers,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "size"), BACKBONES)
def test_grad_cam_of_each_backbone_leaves_the_model_unchanged(name, options, size):
    backbone, head = make(name, **options)
    before, logits = gradients_and_hooks(backbone, head), head(backbone(video(size)).class_token)
    with torch.no_grad():
        maps = [grad_cam(backbone, head, video(size), target) for target in range(5)]
        features = backbone(video(size))
    assert maps[0].shape == (4, *features.grid)
    assert all((m >= 0).all() and not m.requires_grad for m in maps) and any(m.any() for m in maps)
    assert not torch.equal(maps[0], maps[1])
    assert gradients_and_hooks(backbone, head) == before
    assert torch.equal(head(features.class_token), logits)


def test_grad_cam_of_averaged_tokens_matches_autograd():
    backbone, head = make("tiny", width=8, depth=(1, 1, 1))
    features = backbone(video(32))
    tokens = features.tokens.detach().requires_grad_()
    logit = head(backbone.norm(tokens.mean((1, 2))))[0, 2]
    (gradient,) = torch.autograd.grad(logit, tokens)
    expected = (tokens * gradient.mean((1, 2), keepdim=True)).sum(-1).relu().view(4, *features.grid)
    assert torch.allclose(grad_cam(backbone, head, video(32), 2), expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_of_a_class_token_uses_the_input_of_the_last_block():
    """In UniFormerV2 without a global block at the last layer, the patches after it have no influence."""
    backbone, head = make("uniformerv2_b16", **{**TINY, "global_blocks": [0]})
    last = backbone.transformer.resblocks[-1]
    kept = {}
    with last.register_forward_pre_hook(lambda _, inputs: kept.update(x=inputs[0].detach().requires_grad_())):
        backbone(video(24))

    def rest(x):
        class_token = last(x, backbone.architecture.grid)[:, :, 0].mean(1)
        return head(torch.lerp(torch.zeros_like(class_token), class_token, backbone.transformer.balance.sigmoid()))

    (gradient,) = torch.autograd.grad(rest(kept["x"])[0, 1], kept["x"])
    patches, weights = kept["x"][:, :, 1:], gradient[:, :, 1:].mean((1, 2))
    expected = torch.einsum("btnc,bc->btn", patches, weights).relu().view(4, 3, 3)
    assert expected.any()
    assert torch.allclose(grad_cam(backbone, head, video(24), 1), expected, atol=1e-6)


class Unknown(nn.Module):
    """A convolution whose global feature is a maximum."""

    channels = 4

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 8, 8)

    def forward(self, x):
        tokens = self.convolution(x.flatten(0, 1)).flatten(2).mT.unflatten(0, x.shape[:2])
        return Features(tokens, tokens.amax((1, 2)), (x.shape[3] // 8, x.shape[4] // 8))


def test_unsupported_maps_raise_with_the_reason():
    with pytest.raises(MapUnavailable, match="Unknown does not average its tokens"):
        grad_cam(Unknown(), nn.Linear(4, 2), video(16), 0)
    with pytest.raises(MapUnavailable, match="it has no attention"):
        attention_rollout(Unknown(), video(16))


@pytest.mark.slow
@needs_timm
@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224"])
def test_rollout_of_timm_matches_the_product_of_attention(model):
    backbone, _ = make("timm_vit", frames=2, model=model, input_size=48)
    before = backbone(video(48, 2)).class_token
    found = attention_rollout(backbone, video(48, 2))
    assert torch.equal(backbone(video(48, 2)).class_token, before)  # fused attention is restored
    vit = backbone.model
    x = vit._pos_embed(vit.patch_embed(backbone.normalize(video(48, 2)).flatten(0, 1)))
    product = torch.eye(x.shape[1])
    for block in vit.blocks:
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT * block.attn.scale).softmax(-1).mean(1)
        product = (attention + torch.eye(x.shape[1])) / 2 @ product
        x = block(x)
    prefix = vit.num_prefix_tokens
    read = product[:, 0, 1:] if vit.global_pool == "token" else product[:, prefix:, prefix:].mean(1)
    assert torch.allclose(found, read.view(2, 3, 3) / 2, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")
@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_rollout_of_clip_matches_the_product_of_attention(pool, tmp_path):
    open_clip = import_extra("open_clip", extra="clip", needed_by="this test")
    vision = {"image_size": 24, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8, "pool_type": pool}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    name = f"explained-{pool}"
    (tmp_path / f"{name}.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path)
    backbone, head = make("clip_vit", frames=2, model=name)
    found = attention_rollout(backbone, video(24, 2))
    product, kept, blocks = torch.eye(10), [], backbone.model.transformer.resblocks
    with _forward_hooks([block.ln_1 for block in blocks], lambda _, __, x: kept.append(x)):
        backbone(video(24, 2))
    for block, x in zip(blocks, kept, strict=True):
        x = x if block.attn.batch_first else x.transpose(0, 1)
        q, k, _ = nn.functional.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        q, k = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in (q, k))
        product = ((q @ k.mT / 8**0.5).softmax(-1).mean(1) + torch.eye(10)) / 2 @ product
    read = product[:, 0, 1:] if pool == "tok" else product[:, 1:, 1:].mean(1)
    assert torch.allclose(found, read.view(2, 3, 3) / 2, atol=1e-6)
    assert grad_cam(backbone, head, video(24, 2), 1).shape == (2, 3, 3)


@pytest.mark.parametrize("frozen", [False, True])
def test_rollout_of_uniformer_matches_the_product_of_attention(frozen):
    backbone, _ = make("uniformerv2_b16", **TINY, frozen=frozen)
    blocks, global_blocks, kept = backbone.transformer.resblocks, backbone.transformer.dec, {}
    with _forward_hooks([b.attn for b in (*blocks, *global_blocks)], lambda m, inputs, _: kept.update({m: inputs})):
        backbone(video(24))
    mixing, query, number = torch.eye(10).expand(4, -1, -1), None, 0
    for index, block in enumerate(blocks):
        a = nn.MultiheadAttention(24, 3, batch_first=True)
        a.load_state_dict(block.attn.state_dict())
        x = kept[block.attn][0]
        mixing = (a(x, x, x)[1] + torch.eye(10)) / 2 @ mixing
        if index in TINY["global_blocks"]:
            dec = global_blocks[number]
            a.load_state_dict(dec.attn.state_dict())
            global_query, regions = kept[dec.attn]
            regions = dec.ln_3(regions)
            weights = a(global_query, regions, regions)[1].view(4, 10)
            read = torch.stack([weights[t] @ mixing[t] for t in range(4)])
            query = read / 2 if query is None else (query + read) / 2
            number += 1
    gate = 0.0 if frozen else backbone.transformer.balance.detach().sigmoid().mean()
    expected = (1 - gate) * query + gate * mixing[:, 0] / 4
    found = attention_rollout(backbone, video(24))
    assert torch.allclose(found, expected[:, 1:].view(4, 3, 3), atol=1e-5)
    assert found.sum() <= 1 + 1e-5
