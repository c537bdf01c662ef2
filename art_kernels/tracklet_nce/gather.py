"""Contrast across processes: the collectives and their gradients.

Each process compares its own anchors with the candidates of all, so the rows of its anchors are complete. The columns
of the symmetric loss are complete only over all processes: their log-sum-exps and sums are combined, three numbers per
candidate, and anchors are never sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from art_kernels._core.backends import transforms_active
from art_kernels._core.checks import describe
from art_kernels._core.precision import FLOATING
from art_kernels.tracklet_nce.reference import loss_sum, pair_ids

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

    Group = dist.ProcessGroup


def check_group(group: object) -> None:
    """Raise TypeError unless `group` is a process group, ValueError unless this process is a member and the collectives
    support the active transforms."""
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"tracklet_nce: group is {describe(group)}, expected a "
            "torch.distributed.ProcessGroup; call torch.distributed.init_process_group and pass "
            "torch.distributed.group.WORLD, or None for this process only"
        )
    if dist.get_rank(group) < 0:
        raise ValueError("tracklet_nce: this process is not a member of group; call it on members only")
    if transforms_active():
        raise ValueError(
            "tracklet_nce: group supports neither torch.func transforms nor forward-mode differentiation; "
            "use torch.autograd.grad, or pass group=None"
        )


@torch.compiler.disable(reason="tracklet_nce with a group waits for the sizes of all processes")
def distributed_loss(
    run: Callable[..., tuple[Tensor, Tensor]],
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    positives: Int[Tensor, " m"] | tuple[Int[Tensor, " m"], Int[Tensor, " n"]],
    excluded: Int[Tensor, " m"] | None,
    temperature: Float[Tensor, ""],
    symmetric: bool,
    group: Group,
) -> Float[Tensor, ""]:
    """Return this process's contribution to the loss of the whole batch, whose mean over processes is that loss.

    `run` is the function of a backend.
    """
    counts = _gather_counts(anchors, candidates, isinstance(positives, Tensor), symmetric, group)
    candidates = _gather(candidates, counts, group)
    if not isinstance(positives, Tensor):
        positives = (positives[0], _gather(positives[1], counts, group))
    ids = pair_ids(positives, len(candidates))
    rows, columns = run(anchors, candidates, *ids, excluded, temperature, symmetric)
    total, count = loss_sum(rows)
    dist.all_reduce(count, group=group)
    loss = total * len(counts) / count.clamp(min=1)
    if not symmetric:
        return loss
    all_columns = _combine_columns(columns, group)
    total, _ = loss_sum(all_columns.split(counts, dim=1)[dist.get_rank(group)])
    _, count = loss_sum(all_columns)
    return (loss + total * len(counts) / count.clamp(min=1)) / 2


def _gather_counts(anchors: Tensor, candidates: Tensor, by_index: bool, symmetric: bool, group: Group) -> list[int]:
    """Return the number of candidates of each process.

    Raises:
        ValueError: on every process, if they disagree about channels, dtype or options, with which the collectives
            would deadlock.
    """
    local = [candidates.shape[0], candidates.shape[1], FLOATING.index(anchors.dtype), int(by_index), int(symmetric)]
    gathered = torch.empty(dist.get_world_size(group), len(local), dtype=torch.int64, device=anchors.device)
    dist.all_gather(list(gathered), torch.tensor(local, device=anchors.device), group=group)
    counts, *options = zip(*gathered.tolist(), strict=True)
    names = ("the number of channels", "dtype", "the form of positives (1: indices, 0: labels)", "symmetric")
    for name, values in zip(names, options, strict=True):
        if len(set(values)) > 1:
            shown = [FLOATING[value] for value in values] if name == "dtype" else list(values)
            raise ValueError(
                f"tracklet_nce: the processes of group disagree about {name}: {shown} by rank; "
                "call it with the same options on all of them"
            )
    return list(counts)


def _gather(tensor: Shaped[Tensor, "n ..."], counts: list[int], group: Group) -> Shaped[Tensor, "total ..."]:
    """Return the tensors of all processes in rank order; the gradients of all processes are summed."""
    return _Gather.apply(tensor, counts, group)


def _combine_columns(columns: Float[Tensor, "3 total"], group: Group) -> Float[Tensor, "3 total"]:
    """Combine the statistics of each column over the rows of all processes."""
    log_sum_exp, mean, count = columns
    # The smallest finite number instead of -inf for a column without pairs, whose difference with itself would be NaN.
    maximum = log_sum_exp.detach().clamp(min=torch.finfo(columns.dtype).min)
    dist.all_reduce(maximum, dist.ReduceOp.MAX, group=group)
    sums = _AllReduce.apply(torch.stack([(log_sum_exp - maximum).exp(), mean * count, count]), group)
    empty = sums[0] == 0
    log_sum_exp = (maximum + sums[0].masked_fill(empty, 1).log()).masked_fill(empty, -torch.inf)
    return torch.stack([log_sum_exp, sums[1] / sums[2].clamp(min=1), sums[2]])


class _Gather(torch.autograd.Function):
    """Gather the parts of all processes; the backward pass sums the gradients of each part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        parts = _padded_buffer(tensor, counts)
        own = parts[dist.get_rank(group)].clone()
        own[: len(tensor)] = tensor
        dist.all_gather(list(parts), own, group=group)
        return _unpad(parts, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _ReduceScatter.apply(gradient, ctx.counts, ctx.group), None, None


class _ReduceScatter(torch.autograd.Function):
    """Sum over all processes and keep the local part; the backward pass gathers the gradients of all parts."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        parts = _padded_buffer(tensor, counts)
        for part, own in zip(parts, tensor.split(counts), strict=True):
            part[: len(own)] = own
        result = torch.empty_like(parts[0])
        dist.reduce_scatter(result, list(parts), group=group)
        return result[: counts[dist.get_rank(group)]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(gradient, ctx.counts, ctx.group), None, None


class _AllReduce(torch.autograd.Function):
    """Sum over all processes; the backward pass sums the gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        result = tensor.clone()
        dist.all_reduce(result, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(gradient, ctx.group), None


def _padded_buffer(like: Tensor, counts: list[int]) -> Tensor:
    """Return a buffer for the parts of all processes, padded to equal sizes, which the collectives require."""
    return like.new_zeros(len(counts), max(counts), *like.shape[1:])


def _unpad(parts: Tensor, counts: list[int]) -> Tensor:
    if min(counts) == max(counts):
        return parts.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
