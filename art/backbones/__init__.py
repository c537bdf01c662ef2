"""Backbones: modules that turn a video into visual tokens and one global feature, built by name."""

from .interface import Backbone, Features, backbone_names, build_backbone, register_backbone
from .tea import TEA50
from .tiny import Tiny

__all__ = ["TEA50", "Backbone", "Features", "Tiny", "backbone_names", "build_backbone", "register_backbone"]
