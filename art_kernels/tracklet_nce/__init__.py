"""Contrast of tracklets across a batch, and across devices."""

from art_kernels.tracklet_nce.operator import tracklet_nce
from art_kernels.tracklet_nce.rules import PositiveRule, Positives, positive_rule

__all__ = ["PositiveRule", "Positives", "positive_rule", "tracklet_nce"]
