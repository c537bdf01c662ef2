"""Text encoders behind one protocol: texts in, one vector a text out."""

from __future__ import annotations

import difflib
from typing import Any

from .protocol import TextEncoder

__all__ = ["TEXT_ENCODERS", "TextEncoder", "build_text_encoder"]

TEXT_ENCODERS = ("wordllama", "clip")


def build_text_encoder(name: str, **options: Any) -> TextEncoder:
    """Build text encoder ``name``: ``"wordllama"`` (embedded, no download) or ``"clip"`` (needs the extra ``[clip]``).

    Raises:
        ValueError: an unknown name.
    """
    if name == "wordllama":
        from .wordllama import WordLlamaText

        return WordLlamaText(**options)
    if name == "clip":
        from .clip import ClipText

        return ClipText(**options)
    near = difflib.get_close_matches(name, TEXT_ENCODERS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"text_encoder {name!r} is unknown; expected one of {', '.join(TEXT_ENCODERS)}{hint}")
