"""The ART model and the baseline that it is compared with."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art.model.art_model import ARTModel, ARTOutput

_LAZY_EXPORTS = ("ARTModel", "ARTOutput")

__all__ = ["ARTModel", "ARTOutput"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'art.model' has no attribute {name!r}")
    return getattr(importlib.import_module("art.model.art_model"), name)
