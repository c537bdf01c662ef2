import csv
import json

import numpy as np
import pytest

from art.data.datasets.base import open_dataset
from art.data.decoding.video import read_frames
from art.data.motion import dataset
from art.data.motion.dataset import defining_joints, open_motion, prepare_motion, read_joints
from art.data.motion.render import TRACKED, sample_params
from art.data.motion.takes import CLASSES

pytestmark = pytest.mark.slow

NAMES = [motion_class.name for motion_class in CLASSES]
SMALL = {"size": 64, "frames": 4, "train_per_class": 1, "test_per_class": 1, "workers": 1, "progress": False}
COUNT = 2 * len(CLASSES)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    pytest.importorskip("pybullet_data", reason="the recordings and the renderer are in the package pybullet")
    root = tmp_path_factory.mktemp("data") / "motion"
    prepare_motion(root, **SMALL)
    return root


@pytest.fixture
def rendered(monkeypatch):
    """Collects the paths of the clips that are rendered."""
    paths, render_clip = [], dataset.render_clip

    def record(job):
        render_clip(job)
        paths.append(job.path)

    monkeypatch.setattr(dataset, "render_clip", record)
    return paths


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows(root, split):
    with (root / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_open_by_name(motion_root, relative_paths):
    clip_set = open_dataset("motion", motion_root, "train")
    assert clip_set == open_motion(motion_root, "train")
    assert clip_set.class_names == ("turn left", "turn right", "run")
    assert (clip_set.mirror, clip_set.labels) == ((1, 0, 2), (2, 0))
    assert relative_paths(clip_set) == ["clips/train/a.mp4", "clips/train/b.mp4"]
    assert all(clip.start is None for clip in clip_set), "the column start is a phase of the movement, not of the file"
    assert open_dataset("motion", motion_root, "test").relative_path(0) == "clips/test/a.mp4"


def test_open_missing_dataset(motion_root):
    with pytest.raises(ValueError, match="has no split 'val'; expected one of train, test"):
        open_dataset("motion", motion_root, "val")
    (motion_root / "joints.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"is incomplete; .* art prepare motion --root {motion_root}"):
        open_motion(motion_root, "train")
    (motion_root / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"create it with: art prepare motion --root {motion_root}"):
        open_motion(motion_root, "train")


def test_read_joints(motion_root, tmp_path):
    joints = read_joints(str(motion_root))
    assert joints.names == ("x", "y")
    assert len(joints) == 1
    assert joints.frame_size == 112
    for path in ("clips/train/a.mp4", motion_root / "clips/train/a.mp4"):
        positions = joints.of(path)
        assert positions.shape == (3, 2, 2)
        assert positions.dtype == np.float64
        assert positions[1].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    with pytest.raises(ValueError, match=r"clip clips/train/b\.mp4 is not one of the 1 clips in .*joints\.json"):
        joints.of("clips/train/b.mp4")
    with pytest.raises(FileNotFoundError, match=r"create the dataset with: art prepare motion --root .*empty"):
        read_joints(tmp_path / "empty")


def test_defining_joints():
    assert defining_joints(NAMES[::-1]) == [motion_class.joint for motion_class in CLASSES[::-1]]
    assert None in defining_joints(NAMES)
    with pytest.raises(ValueError, match=f"class '{NAMES[0]}x' is not one of .*; did you mean '{NAMES[0]}'"):
        defining_joints([f"{NAMES[0]}x"])


def test_prepared_files(prepared):
    expected = {f"clips/{split}/{c:02d}_000.mp4" for split in ("train", "test") for c in range(len(CLASSES))}
    expected |= {"train.csv", "test.csv", "classes.txt", "joints.json", "dataset.json"}
    assert contents(prepared).keys() == expected
    assert (prepared / "classes.txt").read_text().splitlines() == NAMES


def test_prepared_clips_and_tables(prepared):
    joints = read_joints(prepared)
    assert joints.names == TRACKED
    for split in ("train", "test"):
        table = rows(prepared, split)
        assert [int(row["label"]) for row in table] == list(range(len(CLASSES)))
        for row, motion_class in zip(table, CLASSES, strict=True):
            assert read_frames(prepared / row["path"]).shape == (4, 3, 64, 64)
            assert joints.of(row["path"]).shape == (4, len(TRACKED), 2)
            assert (row["class"], row["take"]) == (motion_class.name, motion_class.action.take)
            params = sample_params(motion_class, split, seed=0, class_index=int(row["label"]), index=0, frames=4)
            expected = [params.view.yaw, params.body_hue, params.floor_hue, params.speed]
            found = [float(row[name]) for name in ("yaw", "body_hue", "floor_hue", "speed")]
            assert found == pytest.approx(expected, abs=1e-4)
            assert {"pitch", "distance", "field_of_view", "start", "body_hue", "floor_hue", "light_x"} <= row.keys()


def test_only_missing_files_are_rendered(prepared, rendered):
    before = contents(prepared)
    for missing in ([], ["clips/test/01_000.mp4", "train.csv"]):
        for name in missing:
            (prepared / name).unlink()
        prepare_motion(prepared, **SMALL)
        assert rendered == missing[:1]
        assert contents(prepared) == before


def test_resume_after_an_interruption(prepared, rendered, tmp_path, monkeypatch):
    root, render_clip = tmp_path / "motion", dataset.render_clip

    def stop_after_five(job):
        if len(rendered) == 5:
            raise KeyboardInterrupt
        render_clip(job)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "render_clip", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            prepare_motion(root, **SMALL)
    assert len(rendered) == 5
    assert len(list(root.rglob("*.mp4"))) == len(list(root.rglob("*.npy"))) == 5
    assert not list(root.rglob("*.partial"))
    (root / "clips/train/00_000.mp4.partial").write_text("left by a killed process")
    (root / "clips/train/00_000.mp4").unlink()
    prepare_motion(root, **SMALL)
    assert len(rendered) == COUNT + 1
    assert len(set(rendered)) == COUNT
    assert contents(root) == contents(prepared)


def test_result_does_not_depend_on_workers(prepared, tmp_path):
    prepare_motion(tmp_path / "motion", **{**SMALL, "workers": 2})
    assert contents(tmp_path / "motion") == contents(prepared)


def test_other_settings_require_another_root_or_force(prepared, rendered, tmp_path):
    root = tmp_path / "motion"
    prepare_motion(root, **SMALL)
    message = r"prepared with other settings: seed is 0, requested 1\. Use another root, .* --force \(force=True\)$"
    with pytest.raises(ValueError, match=message):
        prepare_motion(root, **SMALL, seed=1)
    with pytest.raises(ValueError, match="frames is 4, requested 5"):
        prepare_motion(root, **{**SMALL, "frames": 5})
    assert contents(root) == contents(prepared)
    (root / "notes.md").write_text("mine")
    rendered.clear()
    prepare_motion(root, **SMALL, seed=1, force=True)
    assert len(rendered) == COUNT
    assert json.loads((root / "dataset.json").read_text())["seed"] == 1
    assert (root / "notes.md").read_text() == "mine"
    changed = [name for name, content in contents(prepared).items() if contents(root)[name] != content]
    assert len(changed) >= COUNT


def test_result_of_another_version(prepared, tmp_path):
    settings = json.loads((prepared / "dataset.json").read_text())
    root = tmp_path / "motion"
    root.mkdir()
    (root / "dataset.json").write_text(json.dumps({**settings, "fingerprint": "0"}))
    with pytest.raises(ValueError, match="views or poses were computed by another version"):
        prepare_motion(root, **SMALL)
    (root / "dataset.json").write_text(json.dumps({**settings, "classes": ["walk"]}))
    with pytest.raises(ValueError, match="it has other classes"):
        prepare_motion(root, **SMALL)


def test_directory_with_other_files(prepared, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mine.mp4").touch()
    for force in (False, True):
        with pytest.raises(ValueError, match=r"contains other files \(and no dataset\.json\)"):
            prepare_motion(tmp_path, **SMALL, force=force)
    (tmp_path / "dataset.json").write_text('{"name": "other"}')
    with pytest.raises(ValueError, match="contains the dataset 'other'"):
        prepare_motion(tmp_path, **SMALL, force=True)
    with pytest.raises(ValueError, match="contains other files"):
        prepare_motion(tmp_path / "clips" / "mine.mp4", **SMALL)
    assert (tmp_path / "clips" / "mine.mp4").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 8}, "size must be at least 16, got 8"),
        ({"size": 65}, "size must be even, .* got 65"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        *(({name: 0}, f"{name} must be at least 1, got 0") for name in ("frames", "fps", "test_per_class", "workers")),
    ],
)
def test_invalid_settings(setting, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare_motion(tmp_path / "motion", **{**SMALL, **setting})
    assert not (tmp_path / "motion").exists()


def test_missing_recordings(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'art-kernels\[motion\]'"):
        prepare_motion(tmp_path / "motion", **SMALL)
    assert not (tmp_path / "motion").exists()
