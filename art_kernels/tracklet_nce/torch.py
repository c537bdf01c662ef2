"""The "torch" backend: contrast across a batch in PyTorch operators, one tile of the logits at a time.

A tile fits the processor's caches. The sums of each row and column accumulate over tiles relative to their maximum so
far (online softmax). The backward pass recomputes the same tiles, so their logits are bitwise identical.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from art_kernels._core.precision import at_least_float32
from art_kernels.tracklet_nce.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Float, Int

#: Rows and columns of a tile: on a CPU about the size of its caches, on a GPU enough to occupy it.
BLOCK = {"cpu": 512, "cuda": 4096}
SAVED_OUTPUTS = ("rows", "columns")


def forward(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    anchor_ids: Int[Tensor, " m"],
    candidate_ids: Int[Tensor, " n"],
    excluded: Int[Tensor, " m"] | None,
    temperature: Float[Tensor, ""],
    symmetric: bool,
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 n"]]:
    """Return the statistics described in `Arguments`."""
    arguments = Arguments(anchors, candidates, anchor_ids, candidate_ids, excluded, temperature, symmetric)
    rows = _OnlineStatistics.empty(temperature, len(anchors))
    columns = _OnlineStatistics.empty(temperature, len(candidates) if symmetric else 0)
    logits, scratch = _tile_buffer(arguments), _tile_buffer(arguments)
    wide = at_least_float32(candidates)
    for row_block in _blocks(anchors):
        scaled = at_least_float32(anchors[row_block]) / temperature
        for column_block in _blocks(candidates):
            tile = _matmul(scaled, wide[column_block], logits)
            positive = _positive_pairs(arguments, row_block, column_block, tile)
            spare = _view_like(scratch, tile)
            rows.update(row_block, tile, positive, 1, spare)
            if symmetric:
                columns.update(column_block, tile, positive, 0, spare)
    return rows.result(), columns.result()


def fake(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return uninitialized outputs of `forward`."""
    anchors, candidates, *_, temperature, symmetric = arguments
    return (
        temperature.new_empty(3, anchors.shape[0]),
        temperature.new_empty(3, candidates.shape[0] if symmetric else 0),
    )


def backward(
    grads: Sequence[Tensor | None], arguments: Arguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of anchors, candidates and temperature.

    With g the gradient of the log-sum-exp and h that of the mean, the gradient of a logit is G_ij = g_i p_ij +
    h_i y_ij / count_i, where p is the softmax of its row and y is 1 for a positive pair, plus the same for its column.
    The results are G C / temperature, Gᵀ A / temperature, and -⟨G, logits⟩ / temperature, computed as
    -⟨A / temperature, G C⟩ / temperature.
    """
    anchors, candidates, _, _, _, temperature, _ = arguments
    needs_anchors, needs_candidates, needs_temperature = needs
    rows, columns = (_LogitGradient.create(*pair) for pair in zip(saved, grads, strict=True))
    logits, scratch = _tile_buffer(arguments), _tile_buffer(arguments)
    wide = at_least_float32(candidates)
    grad_anchors = torch.empty_like(anchors, memory_format=torch.contiguous_format) if needs_anchors else None
    grad_candidates = torch.zeros_like(wide, memory_format=torch.contiguous_format) if needs_candidates else None
    inner = torch.zeros_like(temperature)  # ⟨G, logits⟩
    # Without the gradient of the anchors, ⟨G, logits⟩ = ⟨C, Gᵀ A / temperature⟩ saves a product.
    inner_from_candidates = needs_candidates and not needs_anchors
    for row_block in _blocks(anchors):
        scaled = at_least_float32(anchors[row_block]) / temperature
        products = torch.zeros_like(scaled)  # G C
        for column_block in _blocks(candidates):
            tile = _matmul(scaled, wide[column_block], logits)
            positive = _positive_pairs(arguments, row_block, column_block, tile)
            grad = _logit_gradient(
                tile,
                positive,
                None if rows is None else rows.at(row_block),
                None if columns is None else columns.at(column_block),
                _view_like(scratch, tile),
            )
            if not inner_from_candidates:
                products.addmm_(grad, wide[column_block])
            if grad_candidates is not None:
                grad_candidates[column_block].addmm_(grad.mT, scaled)
        inner += (scaled * products).sum()
        if grad_anchors is not None:
            grad_anchors[row_block] = products / temperature
    if inner_from_candidates and grad_candidates is not None:
        inner += (wide * grad_candidates).sum()
    if grad_candidates is not None:
        grad_candidates = grad_candidates.to(candidates.dtype)
    return grad_anchors, grad_candidates, -inner / temperature if needs_temperature else None


class _OnlineStatistics(NamedTuple):
    """Running sums of each row (or column): maximum logit, Σ exp(logit - maximum), Σ positive logits, their number."""

    maximum: Tensor
    exponentials: Tensor
    positive: Tensor
    num_positive: Tensor

    @classmethod
    def empty(cls, like: Tensor, size: int) -> _OnlineStatistics:
        # The smallest finite number instead of -inf, whose difference with itself would be NaN.
        return cls(like.new_full((size,), torch.finfo(like.dtype).min), *(like.new_zeros(size) for _ in range(3)))

    def update(self, block: slice, logits: Tensor, positive: Tensor, dim: int, scratch: Tensor) -> None:
        """Add a tile, reduced along `dim`; overwrites `scratch`."""
        maximum, exponentials = self.maximum[block], self.exponentials[block]
        new_maximum = torch.maximum(maximum, logits.amax(dim))
        powers = torch.sub(logits, new_maximum.unsqueeze(dim), out=scratch).exp_()
        exponentials.mul_((maximum - new_maximum).exp_()).add_(powers.sum(dim))
        maximum.copy_(new_maximum)
        self.positive[block] += torch.where(positive, logits, 0).sum(dim)
        self.num_positive[block] += positive.sum(dim)

    def result(self) -> Tensor:
        mean = self.positive / self.num_positive.clamp(min=1)
        return torch.stack([self.maximum + self.exponentials.log(), mean, self.num_positive])


class _LogitGradient(NamedTuple):
    """Factors of the gradient of a logit, for each row (or column): the log-sum-exp, its gradient, and the gradient of
    each positive logit."""

    log_sum_exp: Tensor
    gradient: Tensor
    positive: Tensor

    @classmethod
    def create(cls, statistics: Tensor, grad: Tensor | None) -> _LogitGradient | None:
        """Return the factors, or None if the statistics are not used."""
        if grad is None or statistics.numel() == 0:
            return None
        log_sum_exp, _, count = statistics
        # inf instead of -inf: exp(logit - inf) is 0, so a row without pairs has no gradient.
        log_sum_exp = log_sum_exp.masked_fill(log_sum_exp == -torch.inf, torch.inf)
        return cls(log_sum_exp, grad[0], grad[1] / count.clamp(min=1))

    def at(self, block: slice) -> _LogitGradient:
        return _LogitGradient(*(tensor[block] for tensor in self))


def _logit_gradient(
    logits: Tensor, positive: Tensor, rows: _LogitGradient | None, columns: _LogitGradient | None, scratch: Tensor
) -> Tensor:
    """Return the gradient of a tile of logits, in `scratch`; overwrites the logits."""
    if rows is None:
        grad, positive_grad = scratch.zero_(), scratch.new_zeros(())
    else:
        grad = torch.sub(logits, rows.log_sum_exp[:, None], out=scratch).exp_().mul_(rows.gradient[:, None])
        positive_grad = rows.positive[:, None]
    if columns is not None:
        grad.add_(logits.sub_(columns.log_sum_exp).exp_().mul_(columns.gradient))
        positive_grad = positive_grad + columns.positive
    return grad.add_(torch.where(positive, positive_grad, 0))


def _matmul(scaled: Tensor, candidates: Tensor, buffer: Tensor) -> Tensor:
    shape = (len(scaled), len(candidates))
    return torch.mm(scaled, candidates.mT, out=buffer[: shape[0] * shape[1]].view(shape))


def _positive_pairs(arguments: Arguments, row_block: slice, column_block: slice, logits: Tensor) -> Tensor:
    """Return which pairs of a tile are positive; sets the logits of excluded pairs to -inf."""
    positive = arguments.anchor_ids[row_block, None] == arguments.candidate_ids[column_block]
    if arguments.excluded is None:
        return positive
    # Writes one element of each row: -inf, or its old value if the excluded candidate is in another tile. Selecting
    # rows by a mask would synchronize.
    column = arguments.excluded[row_block, None] - column_block.start
    inside = (column >= 0) & (column < logits.shape[1])
    column = column.clamp(0, logits.shape[1] - 1)
    logits.scatter_(1, column, logits.gather(1, column).masked_fill_(inside, -torch.inf))
    return positive.scatter(1, column, positive.gather(1, column) & ~inside)


def _blocks(tensor: Tensor) -> Iterator[slice]:
    size = BLOCK.get(tensor.device.type, BLOCK["cuda"])
    return (slice(start, min(start + size, len(tensor))) for start in range(0, len(tensor), size))


def _tile_buffer(arguments: Arguments) -> Tensor:
    anchors, candidates = arguments.anchors, arguments.candidates
    size = BLOCK.get(anchors.device.type, BLOCK["cuda"])
    return arguments.temperature.new_empty(min(size, len(anchors)) * min(size, len(candidates)))


def _view_like(buffer: Tensor, like: Tensor) -> Tensor:
    return buffer[: like.numel()].view(like.shape)
