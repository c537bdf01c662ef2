"""What the forward and the backward pass of every backend take and give."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class Pairs(NamedTuple):
    """Which pairs are positive, and which take no part; never as a matrix.

    Attributes:
        anchor_ids: of each anchor.
        candidate_ids: of each candidate.
        excluded: for each anchor the index of a candidate with which it makes no pair (itself, say), or -1; None for
            no such pair. Such a pair is neither in a sum over pairs nor positive.
        rule: name of the function (`rules.function_of`) that is True for the ids of a positive pair.
    """

    anchor_ids: Int[Tensor, " m"]
    candidate_ids: Int[Tensor, " n"]
    excluded: Int[Tensor, " m"] | None
    rule: str


class Statistics(NamedTuple):
    """Of each row of logits l_ij = ⟨a_i, c_j⟩ / temperature, and, where asked for, of each column; float32 or float64.

    Each is stacked [3, M] (or [3, N]): the log-sum-exp over all pairs, -inf where there is none; the mean logit of the
    positive pairs, 0 where there is none; the number of positive pairs. Columns that were not asked for are [3, 0].
    """

    rows: Float[Tensor, "3 m"]
    columns: Float[Tensor, "3 n"]


class Gradients(NamedTuple):
    """With g the gradient of the log-sum-exp and h that of the mean, that of a logit is g_i p_ij + h_i y_ij / count_i,
    where p is the softmax of its row and y is 1 for a positive pair; so for columns, and the two are summed.

    Attributes:
        anchors: in their dtype; None where not asked for.
        candidates: in their dtype; None where not asked for.
        temperature: a scalar in the dtype of the statistics.
    """

    anchors: Float[Tensor, "m c"] | None
    candidates: Float[Tensor, "n c"] | None
    temperature: Float[Tensor, ""]
