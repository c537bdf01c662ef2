"""Action-Region Tracking (ART) for fine-grained video action recognition, after arXiv 2511.21202."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from art._deprecated import MovedModules

if TYPE_CHECKING:
    from art.backbones import Features, build_backbone
    from art.model.art_model import ARTModel, ARTOutput
    from art.model.loading import VideoClassifier, build_model, load_model
    from art.model.options import ARTOptions
    from art.model.pretrained import BackboneClassifier

try:
    __version__ = version("art-kernels")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+source"

# Names are imported on first use, so that `import art` and `art --help` do not load torch.
_LAZY_EXPORTS = {
    "ARTModel": "art.model.art_model",
    "ARTOptions": "art.model.options",
    "ARTOutput": "art.model.art_model",
    "BackboneClassifier": "art.model.pretrained",
    "Features": "art.backbones",
    "VideoClassifier": "art.model.loading",
    "build_backbone": "art.backbones",
    "build_model": "art.model.loading",
    "load_model": "art.model.loading",
}

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

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules())  # before the path finder, which would load a second copy


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'art' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY_EXPORTS[name]), name)
