"""Backbones: modules that turn a video into visual tokens and one global feature, built by name."""

from .clip import ClipViT
from .interface import Backbone, Features, backbone_names, build_backbone, register_backbone
from .tea import TEA50
from .timm_vit import TimmViT
from .tiny import Tiny
from .transformers_video import TransformersVideo
from .uniformerv2 import UniFormerV2

__all__ = [
    "TEA50",
    "Backbone",
    "ClipViT",
    "Features",
    "TimmViT",
    "Tiny",
    "TransformersVideo",
    "UniFormerV2",
    "backbone_names",
    "build_backbone",
    "register_backbone",
]
