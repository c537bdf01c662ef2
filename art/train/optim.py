"""Optimizers over the model's parameter groups, each group with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from art.train.config import ConfigError, OptimConfig


def build_optimizers(
    groups: Mapping[str, Sequence[nn.Parameter]],
    optim: OptimConfig,
    backbone_layers: Sequence[Sequence[nn.Parameter]] | None = None,
) -> list[torch.optim.Optimizer]:
    """One optimizer, or two where the backbone has another kind than the rest.

    Weight decay acts on the matrices of "backbone" and "head" only: not on biases and normalisation weights, and not on
    the bank's agent, which enters the losses through cosines. (Our reading; the paper names no weight decay.)

    Args:
        groups: "backbone", "head" and "bank", as ``model.parameter_groups()`` gives them; any may be empty.
        optim: kinds, rates and decay.
        backbone_layers: the backbone's parameters by depth, for ``optim.layer_decay``; None where it does not say.

    Returns:
        Optimizers whose parameter groups carry "name" and "base_lr"; :func:`set_learning_rates` moves "lr".

    Raises:
        ValueError: if there is nothing to train.
        ConfigError: ``optim.layer_decay`` with a backbone that does not say which layer comes before which.
    """
    factors = _rate_factors(optim, backbone_layers) if optim.layer_decay is not None and groups["backbone"] else {}
    base_rates = {
        "backbone": optim.lr if optim.backbone_lr is None else optim.backbone_lr,
        "head": optim.lr,
        "bank": optim.bank_lr,
    }
    kinds = {"backbone": optim.backbone_optimizer or optim.optimizer}
    decays = {"backbone": optim.weight_decay, "head": optim.weight_decay, "bank": 0.0}
    if optim.backbone_weight_decay is not None:
        decays["backbone"] = optim.backbone_weight_decay
    by_kind: dict[str, list[dict[str, object]]] = {}
    for name, parameters in groups.items():
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        decay = decays[name]
        alike: dict[tuple[float, bool], list[nn.Parameter]] = {}  # by rate, and whether they decay
        for p in trainable:
            alike.setdefault((base_rates[name] * factors.get(id(p), 1.0), decay > 0 and p.ndim >= 2), []).append(p)
        for (rate, decays_here), members in sorted(alike.items(), key=lambda entry: entry[0], reverse=True):
            weight_decay = decay if decays_here else 0.0
            group = {"params": members, "name": name, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
            by_kind.setdefault(kinds.get(name, optim.optimizer), []).append(group)
    if not by_kind:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    return [_build(kind, members, optim) for kind, members in by_kind.items()]


def _rate_factors(optim: OptimConfig, layers: Sequence[Sequence[nn.Parameter]] | None) -> dict[int, float]:
    """What the rate of each parameter of the backbone is multiplied with, by its id: 1 in the last layer."""
    assert optim.layer_decay is not None
    if layers is None:
        raise ConfigError(
            f"optim.layer_decay: got {optim.layer_decay}, but this backbone does not say which layer comes before "
            "which; leave it null, or give the backbone a method parameters_by_depth (art.backbones.Backbone)"
        )
    depth = len(layers)
    return {id(p): optim.layer_decay ** (depth - 1 - i) for i, layer in enumerate(layers) for p in layer}


def _build(kind: str, groups: list[dict[str, object]], optim: OptimConfig) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum)
    if kind == "adamw":
        return torch.optim.AdamW(groups)
    raise ValueError(f"optim.optimizer: got {kind!r}, expected 'sgd' or 'adamw'")


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> dict[str, float]:
    """Sets every group's rate to ``factor`` times its base rate and returns the rates by group name: of the backbone's
    layers, the highest."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            rates[group["name"]] = max(group["lr"], rates.get(group["name"], 0.0))
    return rates
