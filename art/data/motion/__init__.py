"""The embedded data set: recorded human motion, rendered."""

from __future__ import annotations

from pathlib import Path

from art.data.datasets.base import ClipSet, mirror_by_words
from art.data.datasets.base import register_dataset
from art.data.datasets.custom import clips_of_table
from art.data.datasets.custom import read_classes
from art.data.motion.joints import Joints, defining_joints, read_joints
from art.data.motion.prepare import JOINTS_FILE, SETTINGS_FILE, prepare_motion
from art.data.motion.views import SPLITS

__all__ = ["Joints", "defining_joints", "open_motion", "prepare_motion", "read_joints"]


@register_dataset("motion", description="the embedded one: recorded human motion, rendered", splits=tuple(SPLITS))
def open_motion(root: Path, split: str) -> ClipSet:
    """A split of the data set that :func:`prepare_motion` made in ``root``. A horizontal flip swaps left and right in
    the class names.

    Raises:
        FileNotFoundError: it was not made there, or not to the end.
        ValueError: no such split.
    """
    command = f"art prepare motion --root {root}"
    if not (root / SETTINGS_FILE).is_file():
        raise FileNotFoundError(f"root {root} does not hold the motion data set; make it with: {command}")
    names = read_classes(root)
    if names is None or not (root / JOINTS_FILE).is_file():
        raise FileNotFoundError(
            f"the motion data set in {root} is not finished; continue with the same settings: {command}"
        )
    clips = clips_of_table(root / f"{split}.csv", root, names)
    return ClipSet("motion", split, root, clips, names, mirror=mirror_by_words(names))
