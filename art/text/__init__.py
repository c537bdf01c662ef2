"""Text encoders behind one protocol: texts in, one vector a text out."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from art.text.protocol import TextEncoder

if TYPE_CHECKING:
    from art.text.clip import ClipText
    from art.text.wordllama import WordLlamaText

__all__ = ["TEXT_ENCODERS", "TextEncoder", "build_text_encoder", "text_width"]

TEXT_ENCODERS = ("wordllama", "clip")


def build_text_encoder(name: str, **options: Any) -> TextEncoder:
    """Build text encoder ``name``: ``"wordllama"`` (embedded, no download) or ``"clip"`` (needs the extra ``[clip]``).

    Raises:
        ValueError: an unknown name.

    Examples:
        >>> from art.text import build_text_encoder
        >>> encoder = build_text_encoder("wordllama")
        >>> encoder(["walk", "walk and hold out the right arm"]).shape
        torch.Size([2, 256])
    """
    return _encoder_class(name)(**options)


def text_width(name: str, **options: Any) -> int:
    """C_t, the channels of what text encoder ``name`` gives. Nothing is downloaded; arguments as above.

    Raises:
        ValueError: an unknown name.

    Examples:
        >>> from art.text import text_width
        >>> text_width("wordllama")
        256
    """
    return _encoder_class(name).width_of(**options)


def _encoder_class(name: str) -> type[WordLlamaText] | type[ClipText]:
    if name == "wordllama":
        from art.text.wordllama import WordLlamaText

        return WordLlamaText
    if name == "clip":
        from art.text.clip import ClipText

        return ClipText
    near = difflib.get_close_matches(name, TEXT_ENCODERS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"text_encoder {name!r} is unknown; expected one of {', '.join(TEXT_ENCODERS)}{hint}")
