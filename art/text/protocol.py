"""What a text encoder is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor


class TextEncoder(Protocol):
    """Turns texts into vectors of C_t channels.

    Examples:
        >>> import torch
        >>> from art.model.semantics import encode_prompts
        >>> def lengths(texts):  # any function of texts is one
        ...     return torch.tensor([[float(len(text))] for text in texts])
        >>> encode_prompts(lengths, ["walk", "jump high"], ["a video of {label}"]).tolist()
        [[[15.0], [20.0]]]
    """

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """One float32 vector for each of ``texts``; no gradient."""
        ...
