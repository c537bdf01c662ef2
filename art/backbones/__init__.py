"""Backbones: modules that turn a video into visual tokens and one global feature, built by name."""

from art.backbones.clip import ClipViT
from art.backbones.interface import Backbone, Features, backbone_names, build_backbone, register_backbone
from art.backbones.tea import TEA50
from art.backbones.timm_vit import TimmViT
from art.backbones.tiny import Tiny
from art.backbones.transformers_video import TransformersVideo
from art.backbones.uniformerv2 import UniFormerV2

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
