"""Action-Region Tracking for fine-grained video action recognition, after the ART paper (arXiv 2511.21202)."""

from importlib.metadata import PackageNotFoundError, version

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
