"""The motion dataset: recorded human motion, rendered."""

from art.data.motion.dataset import Joints, defining_joints, open_motion, prepare_motion, read_joints

__all__ = ["Joints", "defining_joints", "open_motion", "prepare_motion", "read_joints"]
