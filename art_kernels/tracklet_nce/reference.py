"""The definition of the contrast across a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from art_kernels._core.precision import at_least_float32
from art_kernels.tracklet_nce.passes import Pairs, Statistics
from art_kernels.tracklet_nce.rules import function_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def tracklet_nce(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    pairs: Pairs,
    temperature: Float[Tensor, ""],
    symmetric: bool,
) -> Statistics:
    """Of the rows, and with `symmetric` of the columns, of the logits A Cᵀ / temperature."""
    logits = at_least_float32(anchors @ candidates.mT) / temperature
    positive = function_of(pairs.rule)(pairs.anchor_ids[:, None], pairs.candidate_ids).expand(logits.shape)
    taken = torch.ones_like(positive)
    if pairs.excluded is not None:
        taken = pairs.excluded[:, None] != torch.arange(len(candidates), device=logits.device)
    rows = _statistics(logits, taken, positive & taken)
    if not symmetric:
        return Statistics(rows, rows.new_empty(3, 0))
    return Statistics(rows, _statistics(logits.mT, taken.mT, (positive & taken).mT))


def _statistics(
    logits: Float[Tensor, "m n"], taken: Bool[Tensor, "m n"], positive: Bool[Tensor, "m n"]
) -> Float[Tensor, "3 m"]:
    """Log-sum-exp of the logits taken, mean of the positive ones, and their number."""
    none = ~taken.any(1)
    # A row of zeros in place of one of -inf, whose gradient would be 0/0.
    log_sum_exp = logits.masked_fill(~taken, -torch.inf).masked_fill(none[:, None], 0).logsumexp(1)
    count = positive.sum(1)
    mean = logits.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return torch.stack([log_sum_exp.masked_fill(none, -torch.inf), mean, count.to(mean.dtype)])
