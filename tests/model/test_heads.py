"""Heads on frozen features: published formulations, shapes, maps, and errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from art.backbones import Features
from art.extras import import_extra
from art.heads import FeatureShape, Head, HeadOutput, build_head, head_names, register_head

SHAPE = FeatureShape(num_steps=3, grid=(2, 5), channels=24)
NAMES = ("run", "walk", "jump")


def make_features(batch=4, shape=SHAPE, dtype=torch.float64, seed=0):
    """Return random features."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, shape.num_steps, shape.grid[0] * shape.grid[1], shape.channels)
    tokens = torch.randn(size, generator=generator, dtype=dtype)
    return Features(tokens, torch.randn(batch, shape.channels, generator=generator, dtype=dtype), shape.grid)


def published_efficient_probing(head, tokens):
    """Project every token, then let each query pool its part of the channels."""
    count, channels = head.queries.shape
    values = head.value(tokens).unflatten(-1, (count, -1))  # [B, N, Q, D]
    weights = (tokens @ head.queries.mT * channels**-0.5).softmax(1)  # [B, N, Q]
    return head.classifier(torch.einsum("bnq,bnqd->bqd", weights, values).flatten(1))


@pytest.mark.parametrize(("queries", "reduction"), [(8, 1), (3, 2), (1, 1), (24, 1)])
def test_folded_efficient_probing_equals_the_published_formulation(queries, reduction):
    head = build_head("ep", SHAPE, NAMES, num_queries=queries, channel_reduction=reduction).double()
    features, labels = make_features(), torch.tensor([0, 1, 2, 1])
    output = head(features)
    expected = published_efficient_probing(head, features.tokens.flatten(1, 2))
    torch.testing.assert_close(output.logits, expected, rtol=1e-9, atol=1e-12)
    parameters = list(head.parameters())
    gradients = torch.autograd.grad(head.loss(output, labels), parameters)
    expected_gradients = torch.autograd.grad(F.cross_entropy(expected, labels), parameters)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_parameters_of_efficient_probing():
    """The size that its paper reports for ViT-B: 32 queries, 768 channels, 1,000 classes."""
    shape = FeatureShape(1, (14, 14), 768)
    head = build_head("ep", shape, [str(number) for number in range(1000)], num_queries=32)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_383_400


def test_mean_and_class_token_heads_are_linear():
    features = make_features()
    for name, pooled in (("mean", features.tokens.mean((1, 2))), ("cls", features.class_token)):
        head = build_head(name, SHAPE, NAMES).double().eval()
        linear = head.classifier[1]
        torch.testing.assert_close(head(features).logits, pooled / (1 + 1e-6) ** 0.5 @ linear.weight.mT + linear.bias)


@pytest.mark.parametrize("name", ["ep", "attentive"])
def test_maps_sum_to_one_over_the_clip(name):
    head = build_head(name, SHAPE, NAMES).double().eval()
    features = make_features()
    output = head(features, return_maps=True)
    assert head.has_maps and output.maps is not None
    assert output.maps.shape[2:] == (3, 2, 5)
    torch.testing.assert_close(output.maps.sum((2, 3, 4)), torch.ones(output.maps.shape[:2], dtype=torch.float64))
    torch.testing.assert_close(output.logits, head(features).logits)


@pytest.mark.parametrize("name", ["ep", "attentive"])
def test_only_a_time_position_makes_a_head_depend_on_the_order_of_frames(name):
    features = make_features()
    reversed_features = features._replace(tokens=features.tokens.flip(1))
    for time_position, differs in (("none", False), ("learned", True)):
        torch.manual_seed(0)
        head = build_head(name, SHAPE, NAMES, time_position=time_position).double().eval()
        if head.time_position is not None:
            nn.init.normal_(head.time_position)
        change = (head(features).logits - head(reversed_features).logits).abs().max()
        assert (change > 1e-4) == differs, f"{time_position}: {change}"


@pytest.mark.parametrize("depth", [1, 3])
def test_attentive_head_equals_the_probe_of_vjepa2(depth):
    """Logits and gradient of the query, for published weights in the format of transformers."""
    pytest.importorskip("transformers")
    transformers = import_extra("transformers", extra="transformers", needed_by="this test")
    config = transformers.VJEPA2Config(
        hidden_size=24, num_attention_heads=4, num_hidden_layers=1, num_pooler_layers=depth - 1, crop_size=32,
        patch_size=16, frames_per_clip=2, mlp_ratio=4, num_labels=3, pred_hidden_size=24, pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    published = transformers.VJEPA2ForVideoClassification(config).double().eval()
    for parameter in published.parameters():
        nn.init.normal_(parameter, std=0.2)
    head = build_head("attentive", SHAPE, NAMES, depth=depth, num_heads=4).double().eval()
    head.load_vjepa2(published.state_dict(), source="published")
    features = make_features()
    expected = published.classifier(published.pooler(features.tokens.flatten(1, 2)))
    logits = head(features).logits
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)
    gradient = torch.autograd.grad(logits.square().sum(), head.query)[0]
    expected_gradient = torch.autograd.grad(expected.square().sum(), published.pooler.query_tokens)[0]
    torch.testing.assert_close(gradient, expected_gradient[0], rtol=1e-8, atol=1e-10)


def test_vjepa2_weights_of_another_depth_are_an_error():
    head = build_head("attentive", SHAPE, NAMES, depth=2, num_heads=4)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(ValueError, match=r"(?s)probe\.safetensors does not match .*missing"):
        head.load_vjepa2({"classifier.weight": torch.zeros(3, 24)}, source="probe.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("name", ["mean", "cls", "ep", "attentive"])
def test_training_reduces_the_loss(name):
    """On clips whose class is visible in one channel of the tokens and of the class token."""
    torch.manual_seed(0)
    head = build_head(name, SHAPE, NAMES)
    labels = torch.arange(12) % 3
    features = make_features(12, dtype=torch.float32)
    features.tokens[..., :3] += 3 * F.one_hot(labels, 3)[:, None, None]
    features.class_token[:, :3] += 3 * F.one_hot(labels, 3)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        head.loss(head(features), labels).backward()
        optimizer.step()
    assert (head(features).logits.argmax(1) == labels).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ep", {"num_queries": 7}, "num_queries is 7, expected a divisor of 24"),
        ("ep", {"num_queries": 0}, "num_queries is 0"),
        ("ep", {"channel_reduction": 5}, "channel_reduction is 5, expected a divisor of 24"),
        ("ep", {"time_position": "sine"}, "time_position is 'sine', expected 'none' or 'learned'"),
        ("attentive", {"depth": 0}, "depth is 0, expected at least 1"),
        ("attentive", {"num_heads": 5}, "num_heads is 5, expected a divisor of 24"),
        ("epp", {}, "head 'epp' is unknown; expected one of .*did you mean 'ep'"),
    ],
)
def test_invalid_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_head(name, SHAPE, NAMES, **options)


def test_unknown_option_and_other_features():
    with pytest.raises(TypeError, match=r"head 'mean': .*num_queries"):
        build_head("mean", SHAPE, NAMES, num_queries=2)
    other = make_features(shape=SHAPE._replace(num_steps=4))
    with pytest.raises(
        ValueError,
        match=r"features have 4 time steps of 2×5 tokens with 24 channels, but the head was built for 3 time",
    ):
        build_head("mean", SHAPE, NAMES).double()(other)


def test_register_head():
    class Constant(Head):
        def forward(self, features, *, return_maps=False):
            return HeadOutput(torch.zeros(len(features.tokens), self.num_classes))

    register_head("constant_of_this_test")(Constant)
    assert "constant_of_this_test" in head_names()
    assert build_head("constant_of_this_test", SHAPE, NAMES)(make_features()).logits.shape == (4, 3)
    with pytest.raises(ValueError, match="already registered"):
        register_head("ep")(Constant)


@pytest.mark.parametrize("queries", ["text", "shuffled", "learned"])
def test_art_head_equals_the_model_on_the_same_features(queries):
    torch.manual_seed(0)
    head = build_head("art", SHAPE, NAMES, queries=queries).eval()
    features = make_features(dtype=torch.float32)
    output = head(features, return_maps=True)
    expected = head.model.forward_features(features, return_maps=True)
    torch.testing.assert_close(output.logits, expected.logits)
    labels = torch.tensor([0, 1, 2, 1])
    torch.testing.assert_close(head.loss(output, labels), head.model.loss(expected, labels).total)
    assert output.maps.shape == (4, 2, 3, 2, 5)
    torch.testing.assert_close(output.maps.sum((2, 3, 4)), torch.ones(4, 2))


def test_shuffled_class_names_are_those_of_other_classes():
    text, shuffled = (build_head("art", SHAPE, NAMES, queries=queries).model for queries in ("text", "shuffled"))
    assert sorted(shuffled.prompts) == sorted(text.prompts)
    assert all(a != b for a, b in zip(text.prompts, shuffled.prompts, strict=True))
    assert not torch.equal(text.semantics.bank, shuffled.semantics.bank)


def test_a_model_built_from_features_has_no_backbone():
    model = build_head("art", SHAPE, NAMES).model
    with pytest.raises(TypeError, match="call forward_features"):
        model(torch.zeros(1, 3, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mean", {}),
        ("cls", {}),
        ("ep", {"num_queries": 3}),
        ("ep", {"num_queries": 3, "time_position": "learned"}),
        ("art", {"latent_dim": 8}),
        ("art", {"latent_dim": 8, "queries": "text", "time_position": "learned"}),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_heads_computed_together_equal_each_alone(name, options, train):
    heads = [build_head(name, SHAPE, NAMES, **options).double().train(train) for _ in range(3)]
    for head in heads:
        if head.time_position is not None:
            nn.init.normal_(head.time_position)
    features, labels = make_features(), torch.tensor([0, 1, 2, 1])
    alone = [copy.deepcopy(head) for head in heads]
    outputs = heads[0].forward_together(heads, features)
    torch.stack([head.loss(output, labels) for head, output in zip(heads, outputs, strict=True)]).sum().backward()
    for head, output, other in zip(heads, outputs, alone, strict=True):
        expected = other(features)
        other.loss(expected, labels).backward()
        torch.testing.assert_close(output.logits, expected.logits, rtol=1e-9, atol=1e-12)
        for parameter, expected_parameter in zip(head.parameters(), other.parameters(), strict=True):
            if expected_parameter.grad is None:  # of a term with weight 0
                assert parameter.grad is None
                continue
            torch.testing.assert_close(parameter.grad, expected_parameter.grad, rtol=1e-8, atol=1e-12)
        for buffer, expected_buffer in zip(head.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected_buffer)
