"""Reference implementation of the contrast across a batch, the arguments of all backends, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from art_kernels._core.precision import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class Arguments(NamedTuple):
    """Arguments of every backend, which computes statistics of the logits l_ij = ⟨a_i, c_j⟩ / temperature.

    The statistics `rows` [3,M] are, for each anchor, the log-sum-exp over all pairs (-inf if there are none), the mean
    logit of the positive pairs (0 if there are none), and the number of positive pairs; `columns` [3,N] are those of
    each candidate, or [3,0] if not symmetric. Both are in float32 (float64 for float64).

    Attributes:
        anchors: [M,C].
        candidates: [N,C].
        anchor_ids: [M]; a pair is positive if its ids are equal.
        candidate_ids: [N].
        excluded: [M], the index of a candidate with which the anchor forms no pair, or -1; None for no such pairs. An
            excluded pair is neither positive nor part of any sum.
        temperature: a scalar in the dtype of the statistics.
        symmetric: whether to compute the statistics of the columns.
    """

    anchors: Float[Tensor, "m c"]
    candidates: Float[Tensor, "n c"]
    anchor_ids: Int[Tensor, " m"]
    candidate_ids: Int[Tensor, " n"]
    excluded: Int[Tensor, " m"] | None
    temperature: Float[Tensor, ""]
    symmetric: bool


def tracklet_nce(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    anchor_ids: Int[Tensor, " m"],
    candidate_ids: Int[Tensor, " n"],
    excluded: Int[Tensor, " m"] | None,
    temperature: Float[Tensor, ""],
    symmetric: bool,
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 n"] | None]:
    """Return the statistics of the rows and, if symmetric, of the columns of the logits A Cᵀ / temperature."""
    logits = at_least_float32(anchors @ candidates.mT) / temperature
    positive = anchor_ids[:, None] == candidate_ids
    included = torch.ones_like(positive)
    if excluded is not None:
        included = excluded[:, None] != torch.arange(len(candidates), device=logits.device)
    rows = _statistics(logits, included, positive & included)
    columns = _statistics(logits.mT, included.mT, (positive & included).mT) if symmetric else None
    return rows, columns


def _statistics(
    logits: Float[Tensor, "m n"], included: Bool[Tensor, "m n"], positive: Bool[Tensor, "m n"]
) -> Float[Tensor, "3 m"]:
    """Return the log-sum-exp of the included logits, the mean of the positive ones, and their number."""
    empty = ~included.any(1)
    # A row of zeros instead of -inf, whose gradient would be 0/0.
    log_sum_exp = logits.masked_fill(~included, -torch.inf).masked_fill(empty[:, None], 0).logsumexp(1)
    count = positive.sum(1)
    mean = logits.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return torch.stack([log_sum_exp.masked_fill(empty, -torch.inf), mean, count.to(mean.dtype)])


def pair_ids(
    positives: Int[Tensor, " m"] | tuple[Int[Tensor, " m"], Int[Tensor, " n"]], count: int
) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
    """Return ids of anchors and of the `count` candidates that are equal for positive pairs."""
    if isinstance(positives, torch.Tensor):
        return positives, torch.arange(count, device=positives.device)
    return positives[0], positives[1]


def loss_sum(statistics: Float[Tensor, "3 m"]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return Σ (log-sum-exp - mean positive logit) over the anchors with a positive, and their number."""
    log_sum_exp, mean, count = statistics
    has_positive = count > 0
    return (log_sum_exp - mean).masked_fill(~has_positive, 0).sum(), has_positive.sum()


def mean_loss(statistics: Float[Tensor, "3 m"]) -> Float[Tensor, ""]:
    """Return the mean loss of the anchors with a positive, or 0 if there are none."""
    total, count = loss_sum(statistics)
    return total / count.clamp(min=1)
