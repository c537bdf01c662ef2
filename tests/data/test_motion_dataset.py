import pytest

from art.data.datasets.registry import open_dataset
from art.data.motion import open_motion


def test_the_data_set_opens_by_name(motion_root):
    clip_set = open_dataset("motion", motion_root, "train")
    assert clip_set == open_motion(motion_root, "train")
    assert clip_set.class_names == ("turn left", "turn right", "run")
    assert clip_set.mirror == (1, 0, 2)
    assert clip_set.labels == (2, 0)
    assert [clip_set.relative_path(i) for i in range(2)] == ["clips/train/a.mp4", "clips/train/b.mp4"]
    assert all(clip.start is None for clip in clip_set), "the column start is a phase of the movement, not of the file"
    assert open_dataset("motion", motion_root, "test").relative_path(0) == "clips/test/a.mp4"


def test_opening_what_is_not_there(motion_root):
    with pytest.raises(ValueError, match="has no split 'val'; expected one of train, test"):
        open_dataset("motion", motion_root, "val")
    (motion_root / "joints.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"is not finished; .* art prepare motion --root {motion_root}"):
        open_motion(motion_root, "train")
    (motion_root / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"make it with: art prepare motion --root {motion_root}"):
        open_motion(motion_root, "train")
