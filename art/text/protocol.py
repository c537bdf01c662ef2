"""What a text encoder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor


class TextEncoder(Protocol):
    """Turns texts into vectors of C_t channels."""

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """One float32 vector for each of ``texts``; no gradient."""
        ...
