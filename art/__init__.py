"""Action-Region Tracking for fine-grained video action recognition, after the ART paper (arXiv 2511.21202)."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art.backbones import Features, build_backbone
    from art.model.art_model import ARTModel, ARTOutput
    from art.model.baseline import BackboneClassifier
    from art.model.options import ARTOptions
    from art.model.pretrained import VideoClassifier, build_model, load_model

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
    "ARTModel": "model.art_model",
    "ARTOptions": "model.options",
    "ARTOutput": "model.art_model",
    "BackboneClassifier": "model.baseline",
    "Features": "backbones",
    "VideoClassifier": "model.pretrained",
    "build_backbone": "backbones",
    "build_model": "model.pretrained",
    "load_model": "model.pretrained",
}


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used: the command line answers before torch is loaded.
    if name not in _ROOMS:
        raise AttributeError(f"module 'art' has no attribute {name!r}")
    return getattr(importlib.import_module(f"art.{_ROOMS[name]}"), name)
