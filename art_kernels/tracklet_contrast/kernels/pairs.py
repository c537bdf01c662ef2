"""Cosines of the rows of a block, their repulsion, and its gradient."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

#: Below this squared norm, the smallest normal number, a vector counts as zero: its direction is lost.
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def inverse_norms(b_squares):
    """1 / norm of each row from its square; 0 for a zero vector, which makes its cosines and its gradient 0."""
    return tl.where(b_squares < TINY, 0.0, 1.0 / tl.sqrt(tl.where(b_squares < TINY, 1.0, b_squares)))


@triton.jit
def repelled(b_products, b_inverse, m_pair, CLAMP: tl.constexpr):
    """Of the pairs taken: which repel each other, as 0 and 1 in float32, and the sum of each row's cosines."""
    b_cosines = b_products * b_inverse[:, None] * b_inverse[None, :]
    if CLAMP:
        m_pair = m_pair & (b_cosines > 0)
    return tl.where(m_pair, 1.0, 0.0), tl.sum(tl.where(m_pair, b_cosines, 0.0), 1)


@triton.jit
def repulsion_gradient(b_x, b_inverse, b_repelled, b_row_cosines, PRECISION: tl.constexpr):
    """A chunk of the gradient of Σ_i≠j ⟨r_i, r_j⟩: 2 (Σ_j û_j - Σ_j ⟨r_i, r_j⟩ û_i) / |r_i|, û the unit vectors.

    The unit vectors are the factors of the product, and not the responses with 1 / norms in the matrix: these vanish in
    16 bits.
    """
    b_units = b_x.to(tl.float32) * b_inverse[:, None]
    b_sum = tl.dot(b_repelled.to(b_x.dtype), b_units.to(b_x.dtype), input_precision=PRECISION)
    return 2 * b_inverse[:, None] * (b_sum - b_row_cosines[:, None] * b_units)
