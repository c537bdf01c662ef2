"""Linking the responses of the frames to tracklets, and the assignment problems that it solves."""

from art_kernels.tracklet_linking.assignment import linear_assignment
from art_kernels.tracklet_linking.operator import TrackletLinks, gather_tracklets, link_tracklets

__all__ = ["TrackletLinks", "gather_tracklets", "linear_assignment", "link_tracklets"]
