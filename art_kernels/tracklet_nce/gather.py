"""Contrast across processes: what is sent between them, with gradients.

Each process takes its own anchors against the candidates of all, and so the rows of its anchors are whole. Columns, for
the symmetric loss, are whole only over all processes: their log-sum-exps and sums are joined, 3 numbers a candidate,
and no anchor is ever sent.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from art_kernels._core.precision import FLOATING
from art_kernels.tracklet_nce.loss import sum_and_count
from art_kernels.tracklet_nce.rules import Positives, pairs_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

    Group = dist.ProcessGroup


def check_group(operation: str, group: object) -> None:
    """Raise TypeError unless `group` is a process group, ValueError unless this process is in it."""
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{operation}: group is {group!r} of type {type(group).__name__}, expected a "
            "torch.distributed.ProcessGroup; call torch.distributed.init_process_group and pass "
            "torch.distributed.group.WORLD, or None for this process alone"
        )
    if dist.get_rank(group) < 0:
        raise ValueError(f"{operation}: this process is not in group, expected a member; call it on members only")


@torch.compiler.disable(reason="tracklet_nce with a group waits for the sizes of all processes")
def share_of_loss(
    run: Callable[..., tuple[Tensor, Tensor]],
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    positives: Tensor | tuple[Tensor, Tensor] | Positives,
    temperature: Float[Tensor, ""],
    symmetric: bool,
    excluded: Int[Tensor, " m"] | None,
    group: Group,
    operation: str,
) -> Float[Tensor, ""]:
    """What this process adds to the loss of the whole batch, times the number of processes: the mean over them is it.

    Its anchors are taken against the candidates of all, by the backend's `run`; the arguments are checked already.
    """
    counts = _agreed_counts(operation, anchors, candidates, _form(positives), symmetric, group)
    candidates = _gathered(candidates, counts, group)
    if isinstance(positives, Positives):
        positives = positives._replace(candidate_ids=_gathered(positives.candidate_ids, counts, group))
    elif not isinstance(positives, Tensor):
        positives = (positives[0], _gathered(positives[1], counts, group))
    rows, columns = run(anchors, candidates, pairs_of(positives, len(candidates), excluded), temperature, symmetric)
    total, count = sum_and_count(rows)
    count = count.clone()
    dist.all_reduce(count, group=group)
    share = total * len(counts) / count.clamp(min=1)
    if not symmetric:
        return share
    whole = _joined(columns, group)
    total, _ = sum_and_count(whole.split(counts, dim=1)[dist.get_rank(group)])
    _, count = sum_and_count(whole)
    return (share + total * len(counts) / count.clamp(min=1)) / 2


def _form(positives: Tensor | tuple[Tensor, Tensor] | Positives) -> str:
    if isinstance(positives, Positives):
        return f"rule {positives.rule.name}"
    return "index" if isinstance(positives, Tensor) else "labels"


def _agreed_counts(
    operation: str, anchors: Tensor, candidates: Tensor, form: str, symmetric: bool, group: Group
) -> list[int]:
    """The number of candidates of each process.

    Raises:
        ValueError: on every process, where they disagree about channels, dtype, `form` or `symmetric`: going on they
            would wait for each other for ever.
    """
    mine = [
        candidates.shape[0],
        candidates.shape[1],
        FLOATING.index(anchors.dtype),
        zlib.crc32(form.encode()),
        int(symmetric),
    ]
    all_of_them = torch.empty(dist.get_world_size(group), len(mine), dtype=torch.int64, device=anchors.device)
    dist.all_gather(list(all_of_them), torch.tensor(mine, device=anchors.device), group=group)
    lines = all_of_them.tolist()
    what = ("the number of channels", "dtype", "the form or the rule of positives", "symmetric")
    for place, name in enumerate(what, start=1):
        values = [line[place] for line in lines]
        if len(set(values)) > 1:
            shown = [FLOATING[value] for value in values] if name == "dtype" else values
            raise ValueError(
                f"{operation}: the processes of group disagree about {name}: {shown} by rank, expected one for all; "
                "call it with the same options everywhere"
            )
    return [line[0] for line in lines]


def _gathered(tensor: Shaped[Tensor, "n ..."], counts: list[int], group: Group) -> Shaped[Tensor, "total ..."]:
    """The tensors of all processes, rank by rank; a gradient goes back to where a part came from, summed."""
    return _Gathered.apply(tensor, counts, group)


def _joined(columns: Float[Tensor, "3 total"], group: Group) -> Float[Tensor, "3 total"]:
    """The statistics of each column over the rows of all processes."""
    log_sum_exp, mean, count = columns
    # The lowest finite number in place of -inf, where there is no pair: a difference of the two is no NaN.
    highest = log_sum_exp.detach().clamp(min=torch.finfo(columns.dtype).min)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    sums = _Summed.apply(torch.stack([(log_sum_exp - highest).exp(), mean * count, count]), group)
    none = sums[0] == 0
    log_sum_exp = (highest + sums[0].masked_fill(none, 1).log()).masked_fill(none, -torch.inf)
    return torch.stack([log_sum_exp, sums[1] / sums[2].clamp(min=1), sums[2]])


class _Gathered(torch.autograd.Function):
    """Forward the parts of all processes; backward the sum of all their gradients of the own part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        parts = _padded(tensor, counts)
        own = parts[dist.get_rank(group)].clone()
        own[: len(tensor)] = tensor
        dist.all_gather(list(parts), own, group=group)
        return _unpadded(parts, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Scattered.apply(gradient, ctx.counts, ctx.group), None, None


class _Scattered(torch.autograd.Function):
    """Forward the own part of the sum over all processes; backward, the gradients of all parts."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        parts = _padded(tensor, counts)
        for part, own in zip(parts, tensor.split(counts), strict=True):
            part[: len(own)] = own
        result = torch.empty_like(parts[0])
        dist.reduce_scatter(result, list(parts), group=group)
        return result[: counts[dist.get_rank(group)]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Gathered.apply(gradient, ctx.counts, ctx.group), None, None


class _Summed(torch.autograd.Function):
    """Forward the sum over all processes; backward that of the gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        result = tensor.clone()
        dist.all_reduce(result, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Summed.apply(gradient, ctx.group), None


def _padded(like: Tensor, counts: list[int]) -> Tensor:
    """Room for the parts of all processes, each as long as the longest: collectives are only for parts of one size."""
    return like.new_zeros(len(counts), max(counts), *like.shape[1:])


def _unpadded(parts: Tensor, counts: list[int]) -> Tensor:
    if min(counts) == max(counts):
        return parts.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
