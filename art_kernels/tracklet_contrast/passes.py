"""What the forward and the backward pass of every backend take and give."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Options(NamedTuple):
    """The choices of `mtc_loss`.

    Attributes:
        margin: λ.
        absolute: the temporal term is |λ - ⟨·,·⟩| and not max(0, λ - ⟨·,·⟩).
        clamp: negative cosines count as 0 in the spatial and the tracklet term.
        flattened: tracklets are compared as the concatenations of their responses, and not pooled.
    """

    margin: float
    absolute: bool
    clamp: bool
    flattened: bool


class Forward(NamedTuple):
    """The terms, and what their gradients are scaled sums of; float32 or float64 where it says nothing else.

    Attributes:
        terms: [3]: spatial, temporal, tracklet.
        scale: [3]: what each term's sum was multiplied with to be a mean.
        within: of the spatial term. Triton: the gradient of its sum [B,T,K,C] in the dtype of the responses. Native:
            the matrices [B,T,K,K] which times the responses of a frame are that gradient.
        across: of the temporal term. Triton: the gradient of its sum, as above. Native: factors of a response [B,T,K]
            and of the next one [B,T,K], stacked.
        whole: of the tracklet term. Triton: the gradient of its sum, by the tracklets [B,K,C], or as above where they
            are flattened. Native: matrices as for the spatial term [B,K,K].

    The last four have no element where no gradient is asked for.
    """

    terms: Float[Tensor, "3"]
    scale: Float[Tensor, "3"]
    within: Tensor
    across: Tensor
    whole: Tensor


class Gradients(NamedTuple):
    """Of the inputs, in their dtypes; None where not asked for, or where there is no such input."""

    responses: Float[Tensor, "b t k c"] | None
    aggregated: Float[Tensor, "b k c"] | None
