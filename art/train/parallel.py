"""Distributed models: the model and its loss as one module, DDP, FSDP2, and synchronized batch norm."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from art.model.losses import Labels
from art.model.pretrained import VideoClassifier
from art.train.config import ParallelConfig
from art.train.distributed import DistContext


class ModelWithLoss(nn.Module):
    """A model and its loss as one module, because the hooks of DDP and FSDP run in ``forward`` only.

    Args:
        model: the classifier.
        group: process group over which a batch is split; None for a single process.
    """

    def __init__(self, model: VideoClassifier, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model = model
        self._group = group

    def forward(
        self, video: Shaped[Tensor, "b t 3 height width"], targets: Labels | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs, "logits" [B, Y] and for ART "order" [B, T, K] and "video_latent" [B, d], and the loss
        terms by name (empty without ``targets``)."""
        output = self.model(video)
        outputs = {"logits": output.logits}
        if self.model.kind == "art":
            outputs |= {"order": output.order, "video_latent": output.video_latent.detach()}
        if targets is None:
            return outputs, {}
        kwargs = {} if self._group is None else {"group": self._group}
        return outputs, self.model.loss(output, targets, **kwargs).named()


def parallelize(model: VideoClassifier, dist_ctx: DistContext, parallel: ParallelConfig) -> nn.Module:
    """Wrap ``model`` in :class:`ModelWithLoss` and DDP or FSDP, with the weights of rank 0 on all ranks.

    Modifies ``model``: build optimizers afterwards.
    """
    if not dist_ctx.is_distributed:
        return ModelWithLoss(model)
    if parallel.sync_batch_norm:
        convert_sync_batch_norm(model, dist_ctx.device)
    dist_ctx.broadcast([*model.parameters(), *model.buffers()])
    model_with_loss = ModelWithLoss(model, dist.group.WORLD)
    if parallel.strategy == "fsdp":
        _shard(model_with_loss, dist_ctx, parallel.fsdp_block)
        return model_with_loss
    with warnings.catch_warnings():  # PyTorch 2.9 does not support the new name of broadcast_buffers
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return DistributedDataParallel(
            model_with_loss,
            device_ids=None if dist_ctx.device.type == "cpu" else [dist_ctx.device],
            broadcast_buffers=False,  # buffers are equal on all ranks, or synchronized by broadcast_buffers()
            find_unused_parameters=parallel.unused_parameters,
            gradient_as_bucket_view=True,
        )


def unwrap_ddp(module: nn.Module) -> nn.Module:
    """Return the module to call without gradients. With FSDP all ranks must call it together."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def broadcast_buffers(model: nn.Module, dist_ctx: DistContext, extra: Iterable[Tensor] = ()) -> None:
    """Copy rank 0's buffers and ``extra`` to all ranks if their running batch norm statistics differ."""
    if any(isinstance(module, _BatchNorm) and not is_sync_batch_norm(module) for module in model.modules()):
        dist_ctx.broadcast([*model.buffers(), *extra])


def reshard_modules(module: nn.Module) -> None:
    """Free the parameters that FSDP gathered in a forward pass without gradients. Other modules are not changed."""
    for child in module.modules():
        if (reshard := getattr(child, "reshard", None)) is not None:
            reshard()


@contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Accumulate gradients locally in the block, for all microbatches of a step but the last."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    elif (set_sync := getattr(module, "set_requires_gradient_sync", None)) is not None:  # FSDP
        set_sync(False)
        try:
            yield
        finally:
            set_sync(True)
    else:
        yield


def sharded_layers(model: nn.Module, min_parameters: int) -> list[nn.Module]:
    """Return the layers that become FSDP units, outer layers first; the rest of ``model`` is one more unit."""
    layers = [
        layer
        for container in model.modules()
        if isinstance(container, (nn.ModuleList, nn.Sequential))
        for layer in container
        if not isinstance(layer, nn.ModuleList)
        and any(True for _ in layer.children())  # the output of a single operation may be modified in place
        and sum(p.numel() for p in layer.parameters()) >= min_parameters
    ]
    return list(dict.fromkeys(layers))


def _shard(model_with_loss: ModelWithLoss, dist_ctx: DistContext, min_parameters: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # FSDP warns about views that may be modified in place: some loss terms are views, and none is modified.
    warnings.filterwarnings("ignore", message=rf"FSDP2-wrapped module \(FSDP{ModelWithLoss.__name__}\) returned a view")
    mesh = init_device_mesh(dist_ctx.device.type, (dist_ctx.world_size,))
    for parameter in model_with_loss.parameters():
        parameter.data = parameter.data.contiguous()  # required by FSDP; some backbones are channels-last
    for layer in reversed(sharded_layers(model_with_loss, min_parameters)):  # inner layers first
        fully_shard(layer, mesh=mesh)
    fully_shard(model_with_loss, mesh=mesh)
    for module in model_with_loss.modules():
        if isinstance(module, FSDPModule) and dist_ctx.device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # Gloo does not support averaging


def convert_sync_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Replace every batch norm layer in ``model``, in place, and keep its parameters and buffers."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, CPUSyncBatchNorm.from_batch_norm(child))


def is_sync_batch_norm(module: nn.Module) -> bool:
    """Return whether :func:`convert_sync_batch_norm` created this layer."""
    return isinstance(module, (CPUSyncBatchNorm, nn.SyncBatchNorm))


class CPUSyncBatchNorm(_BatchNorm):
    """Batch norm over all ranks for CPU tensors, which PyTorch's SyncBatchNorm does not support.

    Parameters, buffers and arguments are those of ``nn.BatchNorm2d``.
    """

    @classmethod
    def from_batch_norm(cls, other: _BatchNorm) -> CPUSyncBatchNorm:
        """Return a layer that uses the parameters and buffers of ``other`` (not copies)."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new.train(other.training)
        new._parameters, new._buffers = other._parameters, other._buffers
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept inputs with at least two dimensions, unlike the layers of PyTorch, which accept a fixed number."""

    def forward(self, input: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        """Normalize with the statistics of all ranks in training, where it is a collective operation."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))  # half precision under autocast
        reduced = [d for d in range(input.ndim) if d != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        sums = _AllReduceSum.apply(torch.cat([x.sum(reduced), x.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1]
        mean = sums[:-1] / count
        centered = x - mean.view(shape)
        variance = _AllReduceSum.apply(centered.square().sum(reduced)) / count
        self._update_running_stats(mean.detach(), variance.detach(), count.detach())
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)

    @torch.no_grad()
    def _update_running_stats(
        self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"], count: Float[Tensor, ""]
    ) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)  # unbiased


class _AllReduceSum(torch.autograd.Function):
    """Sum over all ranks; the gradient is summed over all ranks too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.apply(gradient)
