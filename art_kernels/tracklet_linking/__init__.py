"""Linear assignment, and linking the responses of adjacent frames into tracklets."""

from art_kernels.tracklet_linking.functional import (
    TrackletLinks,
    gather_tracklets,
    linear_assignment,
    link_tracklets,
)

__all__ = ["TrackletLinks", "gather_tracklets", "linear_assignment", "link_tracklets"]
