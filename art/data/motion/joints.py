"""Where the joints are in each frame of the ``motion`` clips, and which joint makes a class what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from art.data.datasets.base import suggest
from art.data.motion.classes import CLASSES
from art.data.motion.prepare import JOINTS_FILE, SETTINGS_FILE


class Joints:
    """True joint positions.

    Attributes:
        root: the data set's folder.
        names: the tracked joints, in the order of the positions.
        frame_size: height and width of every frame, in pixels.
    """

    def __init__(
        self, root: Path, names: Sequence[str], frame_size: int, clips: dict[str, list[list[list[float]]]]
    ) -> None:
        self.root, self.frame_size = root, frame_size
        self.names = tuple(names)
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def of(self, path: str | os.PathLike[str]) -> Float[np.ndarray, "t joints 2"]:
        """The (x, y) of each joint in each frame of a clip, as a share of the image's width and height; (0, 0) is the
        top left, and a joint out of view lies outside 0..1.

        Args:
            path: of the clip, below the root or whole.

        Raises:
            ValueError: there is no such clip.
        """
        asked = Path(path)
        key = asked.relative_to(self.root) if asked.is_relative_to(self.root) else asked
        if key.as_posix() not in self._clips:
            raise ValueError(f"clip {path} is not in {self.root / JOINTS_FILE}, which knows {len(self)} clips")
        return np.array(self._clips[key.as_posix()], dtype=np.float64)


def read_joints(root: str | os.PathLike[str]) -> Joints:
    """The joint positions of a prepared data set.

    Raises:
        FileNotFoundError: ``root`` does not hold one.
    """
    path = Path(root) / JOINTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; make the data set with: art prepare motion --root {root}")
    content = json.loads(path.read_text(encoding="utf-8"))
    settings = json.loads((Path(root) / SETTINGS_FILE).read_text(encoding="utf-8"))
    return Joints(Path(root), content["names"], settings["size"], content["clips"])


def defining_joints(class_names: Sequence[str]) -> list[str | None]:
    """For each class the joint that tells it from its neighbours; None where the whole body does.

    Raises:
        ValueError: a name is no class of the data set.
    """
    known = {motion_class.name: motion_class.joint for motion_class in CLASSES}
    for name in class_names:
        if name not in known:
            raise ValueError(f"class {name!r} is not one of the motion data set{suggest(name, tuple(known))}")
    return [known[name] for name in class_names]
