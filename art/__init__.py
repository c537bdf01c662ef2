"""Action-Region Tracking for fine-grained video action recognition, after the ART paper (arXiv 2511.21202)."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import Features, build_backbone
    from .baseline import BackboneClassifier
    from .model import ARTModel, ARTOutput
    from .options import ARTOptions
    from .pretrained import VideoClassifier, build_model, load_model

try:
    __version__ = version("art-kernels")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "0+source"

__all__ = [
    "ARTModel",
    "ARTOptions",
    "ARTOutput",
    "BackboneClassifier",
    "Features",
    "VideoClassifier",
    "build_backbone",
    "build_model",
    "load_model",
]

_ROOMS = {
    "ARTModel": "model",
    "ARTOptions": "options",
    "ARTOutput": "model",
    "BackboneClassifier": "baseline",
    "Features": "backbones",
    "VideoClassifier": "pretrained",
    "build_backbone": "backbones",
    "build_model": "pretrained",
    "load_model": "pretrained",
}


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used: the command line answers before torch is loaded.
    if name not in _ROOMS:
        raise AttributeError(f"module 'art' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
