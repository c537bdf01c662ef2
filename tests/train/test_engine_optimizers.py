import pytest
import torch
from torch import nn

from art.train.config import ConfigError, OptimConfig
from art.train.optim import build_optimizers, set_learning_rates


def groups():
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 3)
    return {
        "backbone": list(backbone.parameters()),
        "head": list(head.parameters()),
        "bank": [nn.Parameter(torch.ones(4, 3, 2))],
    }


def described(optimizers):
    return {
        (type(o).__name__, g["name"], p.ndim): (g["lr"], g["weight_decay"])
        for o in optimizers
        for g in o.param_groups
        for p in g["params"]
    }


def test_each_group_has_its_rate_and_only_matrices_decay():
    optim = OptimConfig(lr=0.1, backbone_lr=0.01, bank_lr=0.5, weight_decay=0.2)
    assert described(build_optimizers(groups(), optim)) == {
        ("SGD", "backbone", 2): (0.01, 0.2),
        ("SGD", "backbone", 1): (0.01, 0.0),
        ("SGD", "head", 2): (0.1, 0.2),
        ("SGD", "head", 1): (0.1, 0.0),
        ("SGD", "bank", 3): (0.5, 0.0),
    }


def test_the_backbone_may_have_an_optimizer_of_its_own():
    optimizers = build_optimizers(groups(), OptimConfig(backbone_optimizer="adamw", backbone_lr=1e-5))
    kinds = {(kind, name) for kind, name, _ in described(optimizers)}
    assert kinds == {("AdamW", "backbone"), ("SGD", "head"), ("SGD", "bank")}


def test_every_parameter_is_trained_once_and_frozen_ones_never():
    members = groups()
    members["backbone"][0].requires_grad_(False)
    trained = [p for o in build_optimizers(members, OptimConfig()) for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in trained} == {id(p) for ps in members.values() for p in ps} - {id(members["backbone"][0])}
    assert len(trained) == 4


def test_rates_are_set_as_shares_of_the_base():
    optimizers = build_optimizers(groups(), OptimConfig(lr=0.1, backbone_lr=0.01, bank_lr=0.5))
    assert set_learning_rates(optimizers, 0.5) == pytest.approx({"backbone": 0.005, "head": 0.05, "bank": 0.25})
    assert set_learning_rates(optimizers, 0.1) == pytest.approx({"backbone": 0.001, "head": 0.01, "bank": 0.05})


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizers({"backbone": [], "head": [], "bank": []}, OptimConfig())


def deep(*layers):
    """A backbone of linear layers, as groups and as parameters by depth, with a head."""
    by_depth = [list(layer.parameters()) for layer in layers]
    head = list(nn.Linear(2, 3).parameters())
    return {"backbone": [p for layer in by_depth for p in layer], "head": head, "bank": []}, by_depth


def test_rates_fall_by_layer_towards_the_pixels():
    members, by_depth = deep(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optim = OptimConfig(lr=0.1, backbone_lr=0.01, layer_decay=0.5, weight_decay=0.2)
    optimizers = build_optimizers(members, optim, by_depth)
    rates = {id(p): (g["lr"], g["weight_decay"]) for o in optimizers for g in o.param_groups for p in g["params"]}
    assert [rates[id(layer[0])] for layer in by_depth] == [(0.0025, 0.2), (0.005, 0.2), (0.01, 0.2)]
    assert [rates[id(layer[1])] for layer in by_depth] == [(0.0025, 0.0), (0.005, 0.0), (0.01, 0.0)]
    assert all(rates[id(p)][0] == 0.1 for p in members["head"])
    assert set_learning_rates(optimizers, 0.5) == pytest.approx({"backbone": 0.005, "head": 0.05})
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.00125, 0.0025, 0.005, 0.05}


def test_layer_decay_needs_a_backbone_that_tells_its_layers():
    with pytest.raises(ConfigError, match=r"optim\.layer_decay: got 0\.5, but this backbone does not say which layer"):
        build_optimizers(groups(), OptimConfig(layer_decay=0.5), None)
