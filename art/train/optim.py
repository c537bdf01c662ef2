"""Optimizers, the learning rate schedule, gradient clipping, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from art.train.config import ConfigError, OptimConfig


def build_optimizers(
    groups: Mapping[str, Sequence[nn.Parameter]],
    optim: OptimConfig,
    backbone_layers: Sequence[Sequence[nn.Parameter]] | None = None,
) -> list[torch.optim.Optimizer]:
    """Build one optimizer, or two if the backbone uses a different optimizer class.

    Weight decay applies to matrices of "backbone" and "head" only: not to biases and normalization weights, and not to
    the bank's agent, which enters the losses through cosine similarities. (Our reading; the paper specifies none.)

    Args:
        groups: parameters by name, as ``model.parameter_groups()`` returns: "backbone", "head", "bank"; may be empty.
        optim: optimizer classes, learning rates and weight decay.
        backbone_layers: the backbone's parameters by depth, for ``optim.layer_decay``; None if not available.

    Returns:
        Optimizers whose parameter groups have "name" and "base_lr"; :func:`set_learning_rates` sets "lr".

    Raises:
        ValueError: no parameter requires a gradient.
        ConfigError: ``optim.layer_decay`` with a backbone that does not define the order of its layers.
    """
    use_layer_decay = optim.layer_decay is not None and groups["backbone"]
    factors = _layer_factors(optim, backbone_layers) if use_layer_decay else {}
    base_rates = {
        "backbone": optim.lr if optim.backbone_lr is None else optim.backbone_lr,
        "head": optim.lr,
        "bank": optim.bank_lr,
    }
    decays = {"backbone": optim.weight_decay, "head": optim.weight_decay, "bank": 0.0}
    if optim.backbone_weight_decay is not None:
        decays["backbone"] = optim.backbone_weight_decay
    by_kind: dict[str, list[dict[str, object]]] = {}
    for name, parameters in groups.items():
        kind = (optim.backbone_optimizer if name == "backbone" else None) or optim.optimizer
        split: dict[tuple[float, float], list[nn.Parameter]] = {}  # by learning rate and weight decay
        for p in parameters:
            if p.requires_grad:
                key = (base_rates[name] * factors.get(id(p), 1.0), decays[name] if p.ndim >= 2 else 0.0)
                split.setdefault(key, []).append(p)
        for (rate, decay), members in sorted(split.items(), key=lambda entry: entry[0], reverse=True):
            group = {"params": members, "name": name, "lr": rate, "base_lr": rate, "weight_decay": decay}
            by_kind.setdefault(kind, []).append(group)
    if not by_kind:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
    return [_build_optimizer(kind, members, optim) for kind, members in by_kind.items()]


def _layer_factors(optim: OptimConfig, layers: Sequence[Sequence[nn.Parameter]] | None) -> dict[int, float]:
    """Return the learning rate factor of each backbone parameter by its id; it is 1 in the last layer."""
    assert optim.layer_decay is not None
    if layers is None:
        raise ConfigError(
            f"optim.layer_decay: got {optim.layer_decay}, but this backbone does not define the order of its layers; "
            "leave it null, or implement the backbone's method parameters_by_depth (art.backbones.Backbone)"
        )
    depth = len(layers)
    return {id(p): optim.layer_decay ** (depth - 1 - i) for i, layer in enumerate(layers) for p in layer}


def _build_optimizer(kind: str, groups: list[dict[str, object]], optim: OptimConfig) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum)
    if kind == "adamw":
        return torch.optim.AdamW(groups)
    raise ValueError(f"optim.optimizer: got {kind!r}, expected 'sgd' or 'adamw'")


def learning_rate_factor(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Return the factor of the base learning rates, a function of the step only, so that it needs no saved state.

    "step" divides by 10 every ``step_epochs`` epochs (20 in the paper); "cosine" decays to 0 at the end of training.
    During the first ``warmup_epochs`` (our addition, off by default) the factor also rises linearly from 0.

    Args:
        optim: schedule, epochs and warm-up.
        step: optimizer steps taken so far.
        steps_per_epoch: batches per epoch, at least 1.

    Raises:
        ValueError: negative ``step``, ``steps_per_epoch`` below 1, or unknown schedule.
    """
    if step < 0 or steps_per_epoch < 1:
        raise ValueError(f"step and steps_per_epoch: got {step} and {steps_per_epoch}, expected >= 0 and >= 1")
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps >= 1 else 1.0
    if optim.schedule == "step":
        decay = 0.1 ** (step // steps_per_epoch // optim.step_epochs)
    elif optim.schedule == "cosine":
        progress = min(1.0, step / (optim.epochs * steps_per_epoch))
        decay = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"optim.schedule: got {optim.schedule!r}, expected 'step' or 'cosine'")
    return warmup * decay


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> dict[str, float]:
    """Set every learning rate to ``factor`` times its base and return the highest rate by group name."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            rates[group["name"]] = max(group["lr"], rates.get(group["name"], 0.0))
    return rates


class GradientClipper:
    """Computes gradient norms and clips the total norm in one pass over the gradients.

    Args:
        groups: parameters by name, as ``model.parameter_groups()`` returns.
        max_norm: largest total norm; None disables clipping.
    """

    def __init__(self, groups: Mapping[str, Sequence[nn.Parameter]], max_norm: float | None = None) -> None:
        self._groups = {name: list(parameters) for name, parameters in groups.items()}
        self._max_norm = max_norm

    def clip(self, *, measure: bool) -> dict[str, float]:
        """Clip the gradients if ``max_norm`` is set. A collective operation.

        Args:
            measure: also return "gradient_norm/total" and "gradient_norm/<group>" before clipping. If False and
                clipping is disabled, nothing is computed.
        """
        if self._max_norm is None and not measure:
            return {}
        norms = {
            name: norm for name, parameters in self._groups.items() if (norm := _grad_norm(parameters)) is not None
        }
        if not norms:
            return {}
        total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        if self._max_norm is not None:
            parameters = [parameter for group in self._groups.values() for parameter in group]
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_norm, total)
        if not measure:
            return {}
        values = torch.stack([total, *norms.values()]).tolist()  # one device-to-host copy
        return dict(zip((f"gradient_norm/{name}" for name in ("total", *norms)), values, strict=True))


def _grad_norm(parameters: Sequence[nn.Parameter]) -> Float[Tensor, ""] | None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # reduce over the shards of all ranks


class EMA:
    """Exponential moving average of all entries of a model's state dict.

    Buffers are averaged too, so that batch statistics and the semantics bank match the weights; integer buffers are
    copied. Unlike PyTorch's ``AveragedModel`` there is no copy of the module, which sharded models do not support: the
    average is swapped in while it is needed (:meth:`swap_parameters`). Each rank averages its own shards.

    Args:
        model: the model before the first step.
        decay: decay of the average, above 0 and below 1; after n steps at most (1 + n) / (10 + n), because the average
            over the first steps would otherwise be close to the initial weights.

    Attributes:
        values: averages by state dict name.
        steps: number of updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average. Call it after every optimizer step."""
        average_fn = get_ema_multi_avg_fn(min(self.decay, (1 + self.steps) / (10 + self.steps)))
        grouped: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for name, current in model.state_dict().items():
            average = self.values[name]
            if not current.is_floating_point():
                average.copy_(current)
                continue
            averages, currents = grouped.setdefault((average.device, average.dtype), ([], []))
            averages.append(_to_local(average))
            currents.append(_to_local(current))
        for averages, currents in grouped.values():
            average_fn(averages, currents, 0)
        self.steps += 1

    def buffers(self, model: nn.Module) -> list[Tensor]:
        """Return the averages of the model's buffers."""
        return [self.values[name] for name, _ in model.named_buffers() if name in self.values]

    @contextmanager
    def swap_parameters(self, model: nn.Module) -> Iterator[None]:
        """Load the averaged weights and buffers into the model for the block, and restore its own afterwards."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        _copy_into(model, self.values)
        try:
            yield
        finally:
            _copy_into(model, own)


@torch.no_grad()
def _copy_into(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, current in model.state_dict().items():
        _to_local(current).copy_(_to_local(values[name]))


def _to_local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor (same memory), or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
