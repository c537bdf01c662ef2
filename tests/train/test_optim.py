"""Optimizers, learning rates, gradient clipping, and the EMA."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from art.train.config import ConfigError, OptimConfig
from art.train.optim import EMA, GradientClipper, build_optimizers, learning_rate_factor, set_learning_rates


def parameter_groups():
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 3)
    return {
        "backbone": list(backbone.parameters()),
        "head": list(head.parameters()),
        "bank": [nn.Parameter(torch.ones(4, 3, 2))],
    }


def test_learning_rate_and_weight_decay_by_group():
    optim = OptimConfig(lr=0.1, backbone_lr=0.01, bank_lr=0.5, weight_decay=0.2)
    rates = {
        (type(o).__name__, g["name"], p.ndim): (g["lr"], g["weight_decay"])
        for o in build_optimizers(parameter_groups(), optim)
        for g in o.param_groups
        for p in g["params"]
    }
    assert rates == {
        ("SGD", "backbone", 2): (0.01, 0.2),
        ("SGD", "backbone", 1): (0.01, 0.0),
        ("SGD", "head", 2): (0.1, 0.2),
        ("SGD", "head", 1): (0.1, 0.0),
        ("SGD", "bank", 3): (0.5, 0.0),
    }


def test_separate_backbone_optimizer():
    optimizers = build_optimizers(parameter_groups(), OptimConfig(backbone_optimizer="adamw", backbone_lr=1e-5))
    kinds = {(type(optimizer).__name__, group["name"]) for optimizer in optimizers for group in optimizer.param_groups}
    assert kinds == {("AdamW", "backbone"), ("SGD", "head"), ("SGD", "bank")}


def test_frozen_parameters_are_excluded():
    groups = parameter_groups()
    groups["backbone"][0].requires_grad_(False)
    trained = [p for o in build_optimizers(groups, OptimConfig()) for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in trained} == {id(p) for ps in groups.values() for p in ps} - {id(groups["backbone"][0])}
    assert len(trained) == 4
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizers({"backbone": [], "head": [], "bank": []}, OptimConfig())


def test_set_learning_rates():
    optimizers = build_optimizers(parameter_groups(), OptimConfig(lr=0.1, backbone_lr=0.01, bank_lr=0.5))
    assert set_learning_rates(optimizers, 0.5) == pytest.approx({"backbone": 0.005, "head": 0.05, "bank": 0.25})
    assert set_learning_rates(optimizers, 0.1) == pytest.approx({"backbone": 0.001, "head": 0.01, "bank": 0.05})


def test_layer_decay():
    layers = [list(nn.Linear(2, 2).parameters()) for _ in range(3)]
    head = list(nn.Linear(2, 3).parameters())
    groups = {"backbone": [p for layer in layers for p in layer], "head": head, "bank": []}
    optim = OptimConfig(lr=0.1, backbone_lr=0.01, layer_decay=0.5, weight_decay=0.2)
    optimizers = build_optimizers(groups, optim, layers)
    rates = {id(p): (g["lr"], g["weight_decay"]) for o in optimizers for g in o.param_groups for p in g["params"]}
    assert [rates[id(layer[0])] for layer in layers] == [(0.0025, 0.2), (0.005, 0.2), (0.01, 0.2)]
    assert [rates[id(layer[1])] for layer in layers] == [(0.0025, 0.0), (0.005, 0.0), (0.01, 0.0)]
    assert all(rates[id(p)][0] == 0.1 for p in head)
    assert set_learning_rates(optimizers, 0.5) == pytest.approx({"backbone": 0.005, "head": 0.05})
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.00125, 0.0025, 0.005, 0.05}
    with pytest.raises(ConfigError, match=r"optim\.layer_decay: got 0\.5, but this backbone does not define the order"):
        build_optimizers(groups, OptimConfig(layer_decay=0.5), None)


@pytest.mark.parametrize(
    ("optim", "step", "steps_per_epoch", "expected"),
    [
        *(
            ({}, step, 10, value)
            for step, value in ((0, 1), (199, 1), (200, 0.1), (399, 0.1), (400, 0.01), (499, 0.01))
        ),
        *(
            ({"schedule": "cosine", "epochs": 3}, step, 10, value)
            for step, value in ((0, 1), (10, 0.75), (15, 0.5), (20, 0.25), (30, 0), (31, 0))
        ),
        *(
            ({"warmup_epochs": 2}, step, 10, value)
            for step, value in ((0, 0.05), (9, 0.5), (19, 1), (20, 1), (200, 0.1))
        ),
        *(({"warmup_epochs": 0.5}, step, 4, value) for step, value in ((0, 0.5), (1, 1), (2, 1))),
    ],
)
def test_learning_rate_factor(optim, step, steps_per_epoch, expected):
    assert learning_rate_factor(OptimConfig(**optim), step, steps_per_epoch) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_factor_errors():
    for step, steps_per_epoch in ((-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="steps_per_epoch"):
            learning_rate_factor(OptimConfig(), step, steps_per_epoch)
    with pytest.raises(ValueError, match=r"optim\.schedule: got 'linear'"):
        learning_rate_factor(OptimConfig(schedule="linear"), 0, 1)


@pytest.fixture
def gradients():
    """Groups with gradient norms 5 (of 3 and 4), 12, and a parameter without a gradient."""
    first, second, head, unused = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    head.grad = torch.tensor([0.0, -12.0])
    return {"backbone": [first, second], "head": [head], "bank": [unused]}


def test_gradient_norms_by_group(gradients):
    norms = GradientClipper(gradients).clip(measure=True)
    assert norms == pytest.approx(
        {"gradient_norm/total": 13.0, "gradient_norm/backbone": 5.0, "gradient_norm/head": 12.0}
    )
    assert gradients["head"][0].grad.tolist() == [0.0, -12.0]


def test_clipping_returns_the_norms_before_it(gradients):
    norms = GradientClipper(gradients, max_norm=1.3).clip(measure=True)
    assert norms["gradient_norm/total"] == pytest.approx(13.0)
    assert gradients["head"][0].grad.tolist() == pytest.approx([0.0, -1.2])
    assert gradients["backbone"][0].grad.tolist() == pytest.approx([0.3, 0.0])
    assert GradientClipper(gradients).clip(measure=True)["gradient_norm/total"] == pytest.approx(1.3)


def test_clipping_matches_pytorch(gradients):
    parameters = [*gradients["backbone"], *gradients["head"]]
    copies = [nn.Parameter(torch.zeros(2)) for _ in parameters]
    for copy, p in zip(copies, parameters, strict=True):
        copy.grad = p.grad.clone()
    nn.utils.clip_grad_norm_(copies, 2.0)
    assert GradientClipper(gradients, max_norm=2.0).clip(measure=False) == {}
    for copy, p in zip(copies, parameters, strict=True):
        assert_close(copy.grad, p.grad)


def test_norms_are_computed_only_if_needed(gradients, monkeypatch):
    monkeypatch.setattr(nn.utils, "get_total_norm", lambda *_, **__: pytest.fail("computed a norm"))
    assert GradientClipper(gradients).clip(measure=False) == {}
    assert GradientClipper({"backbone": [], "head": gradients["bank"]}, max_norm=1.0).clip(measure=True) == {}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@torch.no_grad()
def change(model, amount):
    """Changes every entry of the state dict, integer buffers included."""
    for value in model.state_dict().values():
        value.add_(amount if value.is_floating_point() else 1)


def test_ema_of_weights_and_buffers(model):
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    ema = EMA(model, decay=0.3)
    for step in range(30):
        change(model, float(step))
        ema.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    assert ema.steps == 30
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert_close(ema.values[name], expected[name].float())
            assert not torch.allclose(ema.values[name], value)
    assert ema.values["1.num_batches_tracked"] == model[1].num_batches_tracked == 30


def test_ema_swap_restores_the_weights(model):
    ema = EMA(model, decay=0.9)
    change(model, 1.0)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    storage = model[0].weight.data_ptr()
    with pytest.raises(KeyError), ema.swap_parameters(model):  # also after an error
        assert all(torch.equal(value, ema.values[name]) for name, value in model.state_dict().items())
        assert model[0].weight.data_ptr() == storage  # optimizers and compiled code hold references to this memory
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
