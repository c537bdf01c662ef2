"""Backbones: modules that turn a video into visual tokens and one global feature, built by name."""

from .interface import Backbone, Features, backbone_names, build_backbone, register_backbone
from .tea import TEA50
from .tiny import Tiny
from .uniformerv2 import UniFormerV2

__all__ = [
    "TEA50",
    "Backbone",
    "Features",
    "Tiny",
    "UniFormerV2",
    "backbone_names",
    "build_backbone",
    "register_backbone",
]
