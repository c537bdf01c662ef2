"""Backbones: modules that compute visual tokens and a global feature of a video, built by name."""

from art.backbones.base import Backbone, Features, backbone_names, build_backbone, register_backbone
from art.backbones.efficientnet_lite import EfficientNetLite0
from art.backbones.image_vit import ClipViT, TimmViT
from art.backbones.tea import TEA50
from art.backbones.tiny import Tiny
from art.backbones.transformers_image import TransformersImage
from art.backbones.transformers_video import TransformersVideo
from art.backbones.uniformerv2 import UniFormerV2

__all__ = [
    "TEA50",
    "Backbone",
    "ClipViT",
    "EfficientNetLite0",
    "Features",
    "TimmViT",
    "Tiny",
    "TransformersImage",
    "TransformersVideo",
    "UniFormerV2",
    "backbone_names",
    "build_backbone",
    "register_backbone",
]
