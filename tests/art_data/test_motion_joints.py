import json

import numpy as np
import pytest

from art.data.motion import open_motion
from art.data.motion.classes import CLASSES
from art.data.motion.joints import defining_joints, read_joints
from art.data.registry import open_dataset


@pytest.fixture
def root(tmp_path):
    """A data set as it is on the disk, without its videos."""
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "classes.txt").write_text("turn left\nturn right\nrun\n")
    for split in ("train", "test"):
        lines = [
            "path,label,class,yaw,start",
            f"clips/{split}/a.mp4,2,run,10.0,0.5",
            f"clips/{split}/b.mp4,0,turn left,1,3",
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    positions = [[[0.1, 0.2], [0.3, 0.4]]] * 3
    (tmp_path / "joints.json").write_text(json.dumps({"names": ["x", "y"], "clips": {"clips/train/a.mp4": positions}}))
    return tmp_path


def test_positions_by_either_path(root):
    joints = read_joints(str(root))
    assert joints.names == ("x", "y")
    assert len(joints) == 1
    for path in ("clips/train/a.mp4", root / "clips/train/a.mp4"):
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


def test_the_data_set_opens_by_name(root):
    clip_set = open_dataset("motion", root, "train")
    assert clip_set == open_motion(root, "train")
    assert clip_set.class_names == ("turn left", "turn right", "run")
    assert clip_set.mirror == (1, 0, 2)
    assert clip_set.labels == (2, 0)
    assert [clip_set.relative_path(i) for i in range(2)] == ["clips/train/a.mp4", "clips/train/b.mp4"]
    assert all(clip.start is None for clip in clip_set), "the column start is a phase of the movement, not of the file"
    assert open_dataset("motion", root, "test").relative_path(0) == "clips/test/a.mp4"


def test_opening_what_is_not_there(root, tmp_path):
    with pytest.raises(ValueError, match="has no split 'val': there are train, test"):
        open_motion(root, "val")
    (root / "joints.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"is not finished; .* art prepare motion --root {root}"):
        open_motion(root, "train")
    (root / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"make it with: art prepare motion --root {root}"):
        open_motion(root, "train")
