"""InfoNCE and supervised contrast across a batch, and across devices."""

from art_kernels.tracklet_nce.functional import positive_rule, tracklet_nce

__all__ = ["positive_rule", "tracklet_nce"]
