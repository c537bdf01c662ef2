"""Heads on the features of a frozen backbone: modules that pool tokens and classify, built by name."""

from art.heads.attentive import AttentiveHead
from art.heads.base import FeatureShape, Head, HeadOutput, build_head, head_names, register_head
from art.heads.classifier import ProbeClassifier, ProbeOutput
from art.heads.pooling import ClassTokenHead, EfficientProbing, MeanHead
from art.heads.tracklets import ARTHead

__all__ = [
    "ARTHead",
    "AttentiveHead",
    "ClassTokenHead",
    "EfficientProbing",
    "FeatureShape",
    "Head",
    "HeadOutput",
    "MeanHead",
    "ProbeClassifier",
    "ProbeOutput",
    "build_head",
    "head_names",
    "register_head",
]
