"""Text encoders, which map texts to vectors, built by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from art.text.encoders import ClipText, WordLlamaText

__all__ = ["TEXT_ENCODERS", "TextEncoder", "build_text_encoder", "text_width"]

TEXT_ENCODERS: dict[str, type[WordLlamaText] | type[ClipText]] = {"wordllama": WordLlamaText, "clip": ClipText}


class TextEncoder(Protocol):
    """Maps texts to vectors of C_t channels.

    Examples:
        >>> import torch
        >>> from art.model.semantics import encode_prompts
        >>> def lengths(texts):  # any such function is a text encoder
        ...     return torch.tensor([[float(len(text))] for text in texts])
        >>> encode_prompts(lengths, ["walk", "jump high"], ["a video of {label}"]).tolist()
        [[[15.0], [20.0]]]
    """

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """Return one float32 vector per text, without gradient."""
        ...


def build_text_encoder(name: str, **options: Any) -> TextEncoder:
    """Build a text encoder.

    Args:
        name: ``"wordllama"`` (bundled, no download) or ``"clip"`` (requires the extra ``[clip]``).
        options: keyword arguments of the encoder's constructor.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> from art.text import build_text_encoder
        >>> encoder = build_text_encoder("wordllama")
        >>> encoder(["walk", "walk and hold out the right arm"]).shape
        torch.Size([2, 256])
    """
    return _encoder_class(name)(**options)


def text_width(name: str, **options: Any) -> int:
    """Return C_t, the number of channels of a text encoder, without downloading its weights.

    Arguments are those of :func:`build_text_encoder`.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> from art.text import text_width
        >>> text_width("wordllama")
        256
    """
    return _encoder_class(name).embedding_dim(**options)


def _encoder_class(name: str) -> type[WordLlamaText] | type[ClipText]:
    if name not in TEXT_ENCODERS:
        close = difflib.get_close_matches(name, TEXT_ENCODERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"text_encoder {name!r} is unknown; expected one of {', '.join(TEXT_ENCODERS)}{hint}")
    return TEXT_ENCODERS[name]
