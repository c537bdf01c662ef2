"""A moving average of a model's weights while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """An exponential moving average of everything in the state dict of a model.

    Buffers are averaged too, so that batch statistics and the semantics bank are of the same time as the weights that
    go with them; whole numbers are those of the model. PyTorch's ``AveragedModel`` is a copy of the module, which a
    sharded one does not allow; here the average takes the place of the weights while it is needed
    (:meth:`in_place_of`). Of a sharded model each rank averages its shards.

    Args:
        model: in its state before the first step.
        decay: of the average, above 0 and below 1. After n steps it is (1 + n) / (10 + n) while that is less: otherwise
            the average over few steps would be the initial weights for the most part.

    Attributes:
        values: the average, by the names of the state dict.
        steps: how many were averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """To be called after every optimizer step."""
        follow = get_ema_multi_avg_fn(min(self.decay, (1 + self.steps) / (10 + self.steps)))
        alike: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for name, current in model.state_dict().items():
            average = self.values[name]
            if not current.is_floating_point():
                average.copy_(current)
                continue
            averages, currents = alike.setdefault((average.device, average.dtype), ([], []))
            averages.append(_local(average))
            currents.append(_local(current))
        for averages, currents in alike.values():
            follow(averages, currents, 0)
        self.steps += 1

    def buffers(self, model: nn.Module) -> list[Tensor]:
        """The averages of the model's buffers."""
        return [self.values[name] for name, _ in model.named_buffers() if name in self.values]

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """In its block the model has the average as its weights and buffers; afterwards its own again."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        _fill(model, self.values)
        try:
            yield
        finally:
            _fill(model, own)


@torch.no_grad()
def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, current in model.state_dict().items():
        _local(current).copy_(_local(values[name]))


def _local(tensor: Tensor) -> Tensor:
    """The tensor, or this rank's shard of it; the memory is the same."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
