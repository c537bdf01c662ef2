"""From statistics to the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def sum_and_count(statistics: Float[Tensor, "3 m"]) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The sum of log-sum-exp less mean positive logit over the anchors that have a positive, and their number."""
    log_sum_exp, mean, count = statistics
    some = count > 0
    return (log_sum_exp - mean).masked_fill(~some, 0).sum(), some.sum()


def mean_loss(statistics: Float[Tensor, "3 m"]) -> Float[Tensor, ""]:
    """The mean over the anchors that have a positive, 0 where none has."""
    total, count = sum_and_count(statistics)
    return total / count.clamp(min=1)
