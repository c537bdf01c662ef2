"""What the forward and the backward pass of every backend give."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Forward(NamedTuple):
    """What the forward pass leaves behind.

    Attributes:
        output: [F,M,C].
        softmax: [F,M,2] float32, of each row the highest score h and Σ exp(score - h); of no element where the backward
            pass does not ask for it.
        map: [F,M,N], or of no element where it was not asked for.
    """

    output: Tensor
    softmax: Tensor
    map: Tensor


class Gradients(NamedTuple):
    """Of queries [F,M,C], regions [F,N,C] and key_position [N,C], the last two None where they were not asked for."""

    queries: Tensor
    regions: Tensor | None
    key_position: Tensor | None
