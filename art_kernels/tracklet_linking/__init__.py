"""Linking the responses of the frames to tracklets."""

from art_kernels.tracklet_linking.operator import TrackletLinks, link_tracklets

__all__ = ["TrackletLinks", "link_tracklets"]
