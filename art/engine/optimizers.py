"""Optimizers over the model's parameter groups, each group with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .config import OptimConfig


def build_optimizers(groups: Mapping[str, Sequence[nn.Parameter]], optim: OptimConfig) -> list[torch.optim.Optimizer]:
    """One optimizer, or two where the backbone has another kind than the rest.

    Weight decay acts on the matrices of "backbone" and "head" only: not on biases and normalisation weights, and not on
    the bank's agent, which enters the losses through cosines. (Our reading; the paper names no weight decay.)

    Args:
        groups: "backbone", "head" and "bank", as ``model.parameter_groups()`` gives them; any may be empty.
        optim: kinds, rates and decay.

    Returns:
        Optimizers whose parameter groups carry "name" and "base_lr"; :func:`set_learning_rates` moves "lr".

    Raises:
        ValueError: if there is nothing to train.
    """
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
        matrices = [p for p in trainable if decay > 0 and p.ndim >= 2]
        others = [p for p in trainable if not (decay > 0 and p.ndim >= 2)]
        for members, weight_decay in ((matrices, decay), (others, 0.0)):
            if members:
                rate = base_rates[name]
                group = {"params": members, "name": name, "lr": rate, "base_lr": rate, "weight_decay": weight_decay}
                by_kind.setdefault(kinds.get(name, optim.optimizer), []).append(group)
    if not by_kind:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    return [_build(kind, members, optim) for kind, members in by_kind.items()]


def _build(kind: str, groups: list[dict[str, object]], optim: OptimConfig) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum)
    if kind == "adamw":
        return torch.optim.AdamW(groups)
    raise ValueError(f"optim.optimizer: got {kind!r}, expected 'sgd' or 'adamw'")


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> dict[str, float]:
    """Sets every group's rate to ``factor`` times its base rate and returns the rates by group name."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]] = group["base_lr"] * factor
    return rates
