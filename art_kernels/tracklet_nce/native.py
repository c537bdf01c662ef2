"""Contrast across a batch in PyTorch's own operators, one tile of the logits at a time.

No more of the logits exists at once than a tile, small enough for the processor's caches. The sums of a row and of a
column grow from tile to tile beside the highest logit so far; the backward pass takes the logits again, in the same
tiles and so to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from art_kernels._core.precision import at_least_float32
from art_kernels.tracklet_nce.passes import Gradients, Pairs, Statistics
from art_kernels.tracklet_nce.rules import function_of

if TYPE_CHECKING:
    from jaxtyping import Float

#: Rows and columns of a tile: on a CPU about what its caches hold, on a GPU enough to fill it.
BLOCK = {"cpu": 512, "cuda": 4096}


def forward(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    pairs: Pairs,
    temperature: Float[Tensor, ""],
    symmetric: bool,
) -> Statistics:
    """Of rows, and with `symmetric` of columns; the arguments are checked already."""
    rows = _Sums.of_nothing(temperature, len(anchors))
    columns = _Sums.of_nothing(temperature, len(candidates) if symmetric else 0)
    logits, scratch = _buffer(anchors, candidates, temperature), _buffer(anchors, candidates, temperature)
    wide = at_least_float32(candidates)
    for of_rows in _blocks(anchors):
        scaled = at_least_float32(anchors[of_rows]) / temperature
        for of_columns in _blocks(candidates):
            tile = _matmul(scaled, wide[of_columns], logits)
            positive = _positive(pairs, of_rows, of_columns, tile)
            spare = _shaped(scratch, tile)
            rows.add(of_rows, tile, positive, 1, spare)
            if symmetric:
                columns.add(of_columns, tile, positive, 0, spare)
    return Statistics(rows.finished(), columns.finished())


def backward(
    grad_rows: Float[Tensor, "3 m"],
    grad_columns: Float[Tensor, "3 n"],
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    pairs: Pairs,
    temperature: Float[Tensor, ""],
    statistics: Statistics,
    needs_anchors: bool,
    needs_candidates: bool,
) -> Gradients:
    """The gradients; with G that of the logits they are G C / temperature, Gᵀ A / temperature, and for the temperature
    -⟨G, logits⟩ / temperature, which is -⟨A / temperature, G C⟩ / temperature and is taken so."""
    of_all_rows = _Share.of(statistics.rows, grad_rows)
    of_all_columns = _Share.of(statistics.columns, grad_columns) if statistics.columns.numel() > 0 else None
    logits, scratch = _buffer(anchors, candidates, temperature), _buffer(anchors, candidates, temperature)
    wide = at_least_float32(candidates)
    grad_anchors = torch.empty_like(anchors, memory_format=torch.contiguous_format) if needs_anchors else None
    grad_candidates = torch.zeros_like(wide, memory_format=torch.contiguous_format) if needs_candidates else None
    inner = torch.zeros_like(temperature)  # ⟨G, logits⟩
    by_candidates = needs_candidates and not needs_anchors  # ⟨G, logits⟩ = ⟨C, Gᵀ A / temperature⟩ is there for nothing
    for of_rows in _blocks(anchors):
        scaled = at_least_float32(anchors[of_rows]) / temperature
        pulled = torch.zeros_like(scaled)  # G C
        for of_columns in _blocks(candidates):
            tile = _matmul(scaled, wide[of_columns], logits)
            positive = _positive(pairs, of_rows, of_columns, tile)
            columns = None if of_all_columns is None else of_all_columns.at(of_columns)
            grad = _gradient(tile, positive, of_all_rows.at(of_rows), columns, _shaped(scratch, tile))
            if not by_candidates:
                pulled.addmm_(grad, wide[of_columns])
            if grad_candidates is not None:
                grad_candidates[of_columns].addmm_(grad.mT, scaled)
        inner += (scaled * pulled).sum()
        if grad_anchors is not None:
            grad_anchors[of_rows] = pulled / temperature
    if by_candidates and grad_candidates is not None:
        inner += (wide * grad_candidates).sum()
    if grad_candidates is not None:
        grad_candidates = grad_candidates.to(candidates.dtype)
    return Gradients(grad_anchors, grad_candidates, -inner / temperature)


class _Sums(NamedTuple):
    """Over the pairs so far of each row (or column): highest logit, sum of exp(logit - highest), sum of the positive
    logits, and their number."""

    highest: Tensor
    total: Tensor
    positive: Tensor
    number: Tensor

    @classmethod
    def of_nothing(cls, like: Tensor, size: int) -> _Sums:
        # The lowest finite number in place of -inf: a difference of the two is no NaN.
        return cls(like.new_full((size,), torch.finfo(like.dtype).min), *(like.new_zeros(size) for _ in range(3)))

    def add(self, at: slice, logits: Tensor, positive: Tensor, dim: int, scratch: Tensor) -> None:
        """Take a tile in: its sums along `dim`. What is in `scratch` is lost."""
        highest, total = self.highest[at], self.total[at]
        higher = torch.maximum(highest, logits.amax(dim))
        powers = torch.sub(logits, higher.unsqueeze(dim), out=scratch).exp_()
        total.mul_((highest - higher).exp_()).add_(powers.sum(dim))
        highest.copy_(higher)
        self.positive[at] += torch.where(positive, logits, 0).sum(dim)
        self.number[at] += positive.sum(dim)

    def finished(self) -> Tensor:
        return torch.stack([self.highest + self.total.log(), self.positive / self.number.clamp(min=1), self.number])


class _Share(NamedTuple):
    """Of each row (or column): log-sum-exp, its gradient, and the gradient of each positive logit from the mean."""

    log_sum_exp: Tensor
    gradient: Tensor
    positive: Tensor

    @classmethod
    def of(cls, statistics: Tensor, gradient: Tensor) -> _Share:
        log_sum_exp, _, count = statistics
        # inf in place of -inf: exp(logit - inf) is 0, and a row without pairs has no gradient.
        return cls(
            log_sum_exp.masked_fill(log_sum_exp == -torch.inf, torch.inf), gradient[0], gradient[1] / count.clamp(min=1)
        )

    def at(self, block: slice) -> _Share:
        return _Share(*(tensor[block] for tensor in self))


def _gradient(logits: Tensor, positive: Tensor, rows: _Share, columns: _Share | None, scratch: Tensor) -> Tensor:
    """That of the logits of a tile, in `scratch`; the logits are lost."""
    grad = torch.sub(logits, rows.log_sum_exp[:, None], out=scratch).exp_().mul_(rows.gradient[:, None])
    if columns is None:
        return grad.add_(torch.where(positive, rows.positive[:, None], 0))
    grad.add_(logits.sub_(columns.log_sum_exp).exp_().mul_(columns.gradient))
    return grad.add_(torch.where(positive, rows.positive[:, None] + columns.positive, 0))


def _matmul(scaled: Tensor, candidates: Tensor, buffer: Tensor) -> Tensor:
    shape = (len(scaled), len(candidates))
    return torch.mm(scaled, candidates.mT, out=buffer[: shape[0] * shape[1]].view(shape))


def _positive(pairs: Pairs, of_rows: slice, of_columns: slice, logits: Tensor) -> Tensor:
    """Which pairs of a tile are positive; the logits of those that are excluded become -inf."""
    rule = function_of(pairs.rule)
    positive = rule(pairs.anchor_ids[of_rows, None], pairs.candidate_ids[of_columns]).expand(logits.shape)
    if pairs.excluded is None:
        return positive
    # One element of each row is written: -inf, or, where the excluded one lies elsewhere, what it was. A selection of
    # rows would have the host wait for the device.
    column = pairs.excluded[of_rows, None] - of_columns.start
    inside = (column >= 0) & (column < logits.shape[1])
    column = column.clamp(0, logits.shape[1] - 1)
    logits.scatter_(1, column, logits.gather(1, column).masked_fill_(inside, -torch.inf))
    return positive.scatter(1, column, positive.gather(1, column) & ~inside)


def _blocks(tensor: Tensor) -> Iterator[slice]:
    size = BLOCK.get(tensor.device.type, BLOCK["cuda"])
    return (slice(start, min(start + size, len(tensor))) for start in range(0, len(tensor), size))


def _buffer(anchors: Tensor, candidates: Tensor, like: Tensor) -> Tensor:
    """Memory for a tile of logits."""
    size = BLOCK.get(anchors.device.type, BLOCK["cuda"])
    return like.new_empty(min(size, len(anchors)) * min(size, len(candidates)))


def _shaped(buffer: Tensor, like: Tensor) -> Tensor:
    return buffer[: like.numel()].view(like.shape)
