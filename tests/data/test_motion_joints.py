import numpy as np
import pytest

from art.data.motion.classes import CLASSES
from art.data.motion.joints import defining_joints, read_joints


def test_positions_by_either_path(motion_root):
    joints = read_joints(str(motion_root))
    assert joints.names == ("x", "y")
    assert len(joints) == 1
    assert joints.frame_size == 112
    for path in ("clips/train/a.mp4", motion_root / "clips/train/a.mp4"):
        positions = joints.of(path)
        assert positions.shape == (3, 2, 2)
        assert positions.dtype == np.float64
        assert positions[1].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    with pytest.raises(ValueError, match=r"clip clips/train/b\.mp4 is not in .*joints\.json, which knows 1 clips"):
        joints.of("clips/train/b.mp4")


def test_joints_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"make the data set with: art prepare motion --root {tmp_path}"):
        read_joints(tmp_path)


def test_defining_joints_follow_the_names():
    names = [motion_class.name for motion_class in CLASSES]
    assert defining_joints(names[::-1]) == [motion_class.joint for motion_class in CLASSES[::-1]]
    assert None in defining_joints(names)
    with pytest.raises(ValueError, match=f"class '{names[0]}x' is not one of .*; did you mean '{names[0]}'"):
        defining_joints([f"{names[0]}x"])
