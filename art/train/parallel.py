"""A model on several ranks: DDP, FSDP, and its loss as a part of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from art.model.losses import Labels
from art.model.pretrained import VideoClassifier
from art.train.batch_norm import is_synchronized, synchronize_batch_norm
from art.train.config import ParallelConfig
from art.train.distributed import Ranks


class Objective(nn.Module):
    """A model and its loss as one module, because DDP and FSDP take part in ``forward`` and in nothing else.

    Args:
        model: the classifier.
        group: the processes among which the clips of a batch are divided; None of a process alone.
    """

    def __init__(self, model: VideoClassifier, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model = model
        self._group = group

    def forward(
        self, video: Shaped[Tensor, "b t 3 height width"], targets: Labels | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The answers, "logits" [B, Y] and of ART "order" [B, T, K] and "video_latent" [B, d]; and the terms of the
        loss by name, none without ``targets``."""
        output = self.model(video)
        answers = {"logits": output.logits}
        if self.model.kind == "art":
            answers |= {"order": output.order, "video_latent": output.video_latent.detach()}
        if targets is None:
            return answers, {}
        among = {} if self._group is None else {"group": self._group}
        return answers, self.model.loss(output, targets, **among).named()


def parallelized(model: VideoClassifier, ranks: Ranks, parallel: ParallelConfig) -> nn.Module:
    """The :class:`Objective` of ``model`` on all ranks, which have rank 0's weights then. Changes ``model``: build
    optimizers afterwards."""
    if not ranks.several:
        return Objective(model)
    if parallel.sync_batch_norm:
        synchronize_batch_norm(model, ranks.device)
    ranks.share([*model.parameters(), *model.buffers()])
    objective = Objective(model, dist.group.WORLD)
    if parallel.strategy == "fsdp":
        _shard(objective, ranks, parallel.fsdp_block)
        return objective
    with warnings.catch_warnings():  # the new name of broadcast_buffers is not known to PyTorch 2.9
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return DistributedDataParallel(
            objective,
            device_ids=None if ranks.device.type == "cpu" else [ranks.device],
            broadcast_buffers=False,  # they are the same, or are shared when they are asked for: share_buffers
            find_unused_parameters=parallel.unused_parameters,
            gradient_as_bucket_view=True,
        )


def answering(objective: nn.Module) -> nn.Module:
    """What to ask without gradients. Sharded, all ranks must ask at the same time."""
    return objective.module if isinstance(objective, DistributedDataParallel) else objective


def share_buffers(model: nn.Module, ranks: Ranks, others: Iterable[Tensor] = ()) -> None:
    """Gives all ranks the buffers of rank 0, and what follows them: running statistics of batches that each normalised
    alone differ."""
    if any(isinstance(module, _BatchNorm) and not is_synchronized(module) for module in model.modules()):
        ranks.share([*model.buffers(), *others])


def put_away(objective: nn.Module) -> None:
    """Leaves each rank with its shards after answers without gradients; where nothing is sharded, does nothing."""
    for module in objective.modules():
        if (reshard := getattr(module, "reshard", None)) is not None:  # of FSDP
            reshard()


@contextmanager
def adding_up(objective: nn.Module) -> Iterator[None]:
    """In its block gradients are added up on each rank alone: for all backward passes of a step but the last."""
    if isinstance(objective, DistributedDataParallel):
        with objective.no_sync():
            yield
    elif (switch := getattr(objective, "set_requires_gradient_sync", None)) is not None:  # of FSDP
        switch(False)
        try:
            yield
        finally:
            switch(True)
    else:
        yield


def sharded_layers(model: nn.Module, from_parameters: int) -> list[nn.Module]:
    """The layers that FSDP puts together one at a time, outer ones first; the rest of ``model`` is one more."""
    layers = [
        layer
        for container in model.modules()
        if isinstance(container, (nn.ModuleList, nn.Sequential))
        for layer in container
        if not isinstance(layer, nn.ModuleList)
        and any(True for _ in layer.children())  # what follows a single operation may change its output in place
        and sum(p.numel() for p in layer.parameters()) >= from_parameters
    ]
    return list(dict.fromkeys(layers))


def _shard(objective: Objective, ranks: Ranks, from_parameters: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # It warns of views that later operations may change in place: the terms of the loss are some, and none is changed.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(FSDPObjective\) returned a view")
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for parameter in objective.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other; of tiny they are channels last
    layers = sharded_layers(objective, from_parameters)
    for layer in reversed(layers):  # inner ones first
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    for module in objective.modules():
        if isinstance(module, FSDPModule) and ranks.device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # Gloo has no mean
