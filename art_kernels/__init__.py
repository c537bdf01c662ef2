"""Operations on the regions and tracklets of a video, each with its definition, a fast path and its gradients."""

from art_kernels.region_attention import RegionCrossAttention, region_attention
from art_kernels.tracklet_contrast import MTCLoss, mtc_loss
from art_kernels.tracklet_linking import TrackletLinks, gather_tracklets, linear_assignment, link_tracklets
from art_kernels.tracklet_nce import PositiveRule, Positives, positive_rule, tracklet_nce
from art_kernels.tracklet_pooling import pool_tracklets
from art_kernels.tuning import autotune

__all__ = [
    "MTCLoss",
    "PositiveRule",
    "Positives",
    "RegionCrossAttention",
    "TrackletLinks",
    "autotune",
    "gather_tracklets",
    "linear_assignment",
    "link_tracklets",
    "mtc_loss",
    "pool_tracklets",
    "positive_rule",
    "region_attention",
    "tracklet_nce",
]
