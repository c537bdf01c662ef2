"""Cosine similarity that is zero, with zero gradient, where a vector is zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def cosine_norms(squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Euclidean norms from squared norms, infinite where the vector is zero.

    Dividing a dot product by these norms gives the cosine. The infinite norm makes cosine and gradient of a zero
    vector exactly 0 where 0/0 would give NaN. A vector counts as zero when its squared norm is below the smallest
    normal number of the dtype (norm 1e-19 in float32), since its direction is lost to underflow.
    """
    return squares.masked_fill(squares < torch.finfo(squares.dtype).tiny, float("inf")).sqrt()


def unit_vectors(vectors: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
    """Each vector of the last dimension divided by its Euclidean norm; a zero vector stays zero, with zero gradient."""
    return vectors / cosine_norms(vectors.square().sum(-1, keepdim=True))
