"""Operations on the regions and tracklets of a video, each with a reference, a fast implementation and gradients."""

import sys

from art_kernels._core.launch import autotune
from art_kernels.region_attention import RegionCrossAttention, region_attention
from art_kernels.tracklet_contrast import MTCLoss, mtc_loss
from art_kernels.tracklet_linking import TrackletLinks, gather_tracklets, linear_assignment, link_tracklets
from art_kernels.tracklet_nce import positive_rule as positive_rule
from art_kernels.tracklet_nce import tracklet_nce
from art_kernels.tracklet_pooling import pool_tracklets

# These functions have the names of their packages, and replace them as attributes of this one. With the submodules as
# attributes of the functions, `import art_kernels.region_attention.triton as t` still works.
for _function in (region_attention, tracklet_nce):
    _prefix = f"{__name__}.{_function.__name__}."
    for _name in [name for name in sys.modules if name.startswith(_prefix) and "." not in name[len(_prefix) :]]:
        setattr(_function, _name[len(_prefix) :], sys.modules[_name])

__all__ = [
    "MTCLoss",
    "RegionCrossAttention",
    "TrackletLinks",
    "autotune",
    "gather_tracklets",
    "linear_assignment",
    "link_tracklets",
    "mtc_loss",
    "pool_tracklets",
    "region_attention",
    "tracklet_nce",
]
