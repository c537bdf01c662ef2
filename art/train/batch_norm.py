"""Batch normalisation over the clips of all ranks: PyTorch's on GPUs, and one for CPUs, for which it has none."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Replaces every batch normalisation in ``model``, in place, with its parameters and buffers."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SyncedBatchNorm.like(child))


def is_synchronized(module: nn.Module) -> bool:
    """Whether this is what :func:`synchronize_batch_norm` puts in place."""
    return isinstance(module, (SyncedBatchNorm, nn.SyncBatchNorm))


class SyncedBatchNorm(_BatchNorm):
    """Batch normalisation over the clips of all ranks on a CPU; parameters, buffers and arguments are those of
    ``nn.BatchNorm2d``."""

    @classmethod
    def like(cls, other: _BatchNorm) -> SyncedBatchNorm:
        """With the parameters and buffers of ``other`` themselves."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new.train(other.training)
        new._parameters, new._buffers = other._parameters, other._buffers
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two."""

    def forward(self, input: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        """In training with the statistics of all ranks, which then must all call this."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))  # under autocast it is half as wide
        others = [d for d in range(input.ndim) if d != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        sums = torch.cat([x.sum(others), x.new_tensor([x.numel() / x.shape[1]])])
        *_, count = sums = _summed(sums)
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = _summed(centred.square().sum(others)) / count
        self._follow(mean.detach(), variance.detach(), count.detach())
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"], count: Float[Tensor, ""]) -> None:
        """Moves the running statistics, the variance without bias."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)


def _summed(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The sum over all ranks; so are the gradients."""
    return _Summed.apply(values)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Summed.apply(gradient)
