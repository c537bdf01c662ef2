"""Text-guided pooling of tracklets over time."""

from art_kernels.tracklet_pooling.functional import pool_tracklets

__all__ = ["pool_tracklets"]
