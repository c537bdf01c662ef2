import csv
import json

import numpy as np
import pytest

pytest.importorskip("pybullet_data", reason="the recordings and the renderer are inside the package pybullet")

from art.data.decoding.video import read_frames
from art.data.motion.classes import CLASSES
from art.data.motion.filming import Filming
from art.data.motion.joints import read_joints
from art.data.motion.prepare import prepare_motion
from art.data.motion.render import TRACKED

SMALL = {"size": 64, "frames": 4, "train_per_class": 1, "test_per_class": 1, "workers": 1, "progress": False}
COUNT = 2 * len(CLASSES)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "motion"
    prepare_motion(root, **SMALL)
    return root


@pytest.fixture
def filmed(monkeypatch):
    """The paths of the clips that are rendered in this process from now on."""
    paths, film = [], Filming.film

    def note(self, stage, job):
        film(self, stage, job)
        paths.append(job.path)

    monkeypatch.setattr(Filming, "film", note)
    return paths


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows(root, split):
    with (root / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_in_the_folder(prepared):
    names = set(contents(prepared))
    clips = {name for name in names if name.startswith("clips/")}
    assert names - clips == {"train.csv", "test.csv", "classes.txt", "joints.json", "dataset.json"}
    expected = {f"clips/{split}/{c:02d}_000.mp4" for split in ("train", "test") for c in range(len(CLASSES))}
    assert clips == expected
    assert (prepared / "classes.txt").read_text().splitlines() == [motion_class.name for motion_class in CLASSES]
    assert not (prepared / "joints").exists()


def test_every_clip_has_its_frames_and_joints(prepared):
    joints = read_joints(prepared)
    assert joints.names == TRACKED
    for split in ("train", "test"):
        for row in rows(prepared, split):
            assert read_frames(prepared / row["path"]).shape == (4, 3, 64, 64)
            assert joints.of(row["path"]).shape == (4, len(TRACKED), 2)


def test_the_tables_tell_how_each_clip_was_filmed(prepared):
    for split in ("train", "test"):
        table = rows(prepared, split)
        assert [int(row["label"]) for row in table] == list(range(len(CLASSES)))
        for row, motion_class in zip(table, CLASSES, strict=True):
            assert (row["class"], row["take"]) == (motion_class.name, motion_class.action.take)
            assert -70 <= float(row["yaw"]) <= 70
            assert 0.85 <= float(row["speed"]) <= 1.2
            assert {"pitch", "distance", "field_of_view", "start", "body_hue", "floor_hue", "light_x"} <= row.keys()


def test_train_and_test_share_no_yaw_and_no_hue(prepared):
    for column, span, bins in (("yaw", 140.0, 10), ("body_hue", 1.0, 12), ("floor_hue", 1.0, 12)):
        train, test = (np.array([float(row[column]) for row in rows(prepared, split)]) for split in ("train", "test"))
        assert np.abs(train[:, None] - test[None]).min() > 0.19 * span / bins


def test_a_finished_one_is_left_alone(prepared, filmed):
    before = contents(prepared)
    prepare_motion(prepared, **SMALL)
    assert filmed == []
    assert contents(prepared) == before


def test_only_what_is_missing_is_made_again(prepared, filmed):
    before = contents(prepared)
    (prepared / "clips/test/01_000.mp4").unlink()
    (prepared / "train.csv").unlink()
    prepare_motion(prepared, **SMALL)
    assert filmed == ["clips/test/01_000.mp4"]
    assert contents(prepared) == before


def test_an_interrupted_one_is_continued(prepared, filmed, tmp_path, monkeypatch):
    root, film = tmp_path / "motion", Filming.film

    def stop_after_five(self, stage, job):
        if len(filmed) == 5:
            raise KeyboardInterrupt
        film(self, stage, job)

    with monkeypatch.context() as patch:
        patch.setattr(Filming, "film", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            prepare_motion(root, **SMALL)
    assert len(filmed) == 5
    assert len(list(root.rglob("*.mp4"))) == len(list(root.rglob("*.npy"))) == 5
    assert not list(root.rglob("*.partial"))
    (root / "clips/train/00_000.mp4.partial").write_text("left by a process that was killed")
    (root / "clips/train/00_000.mp4").unlink()
    prepare_motion(root, **SMALL)
    assert len(filmed) == COUNT + 1
    assert len(set(filmed)) == COUNT
    assert contents(root) == contents(prepared), "however it came about, the result is the same"


def test_several_workers_make_the_same(prepared, tmp_path, filmed):
    prepare_motion(tmp_path / "motion", **{**SMALL, "workers": 2})
    assert filmed == [], "the work is done elsewhere"
    assert contents(tmp_path / "motion") == contents(prepared)


def test_other_settings_need_another_root_or_force(prepared, filmed, tmp_path):
    root = tmp_path / "motion"
    prepare_motion(root, **SMALL)
    with pytest.raises(ValueError, match=r"prepared with other settings: seed is 0, asked for is 1\. Choose") as caught:
        prepare_motion(root, **SMALL, seed=1)
    assert str(caught.value).endswith("Choose another root, or make it again with --force (force=True)")
    with pytest.raises(ValueError, match="frames is 4, asked for is 5"):
        prepare_motion(root, **{**SMALL, "frames": 5})
    assert contents(root) == contents(prepared), "a refusal must not touch anything"
    (root / "notes.md").write_text("mine")
    filmed.clear()
    prepare_motion(root, **SMALL, seed=1, force=True)
    assert len(filmed) == COUNT
    assert json.loads((root / "dataset.json").read_text())["seed"] == 1
    assert (root / "notes.md").read_text() == "mine"
    changed = [name for name, content in contents(prepared).items() if contents(root)[name] != content]
    assert len(changed) >= COUNT


def test_another_version_of_classes_or_views_is_noticed(prepared, tmp_path):
    settings = json.loads((prepared / "dataset.json").read_text())
    root = tmp_path / "motion"
    root.mkdir()
    (root / "dataset.json").write_text(json.dumps({**settings, "fingerprint": "0"}))
    with pytest.raises(ValueError, match="views or poses were drawn by another version"):
        prepare_motion(root, **SMALL)
    (root / "dataset.json").write_text(json.dumps({**settings, "classes": ["walk"]}))
    with pytest.raises(ValueError, match="it has other classes"):
        prepare_motion(root, **SMALL)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mine.mp4").touch()
    for force in (False, True):
        with pytest.raises(ValueError, match=r"holds something else \(there is no dataset\.json\)"):
            prepare_motion(tmp_path, **SMALL, force=force)
    (tmp_path / "dataset.json").write_text('{"name": "other"}')
    with pytest.raises(ValueError, match="holds the data set 'other'"):
        prepare_motion(tmp_path, **SMALL, force=True)
    with pytest.raises(ValueError, match="holds something else"):
        prepare_motion(tmp_path / "clips" / "mine.mp4", **SMALL)
    assert (tmp_path / "clips" / "mine.mp4").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 8}, "size must be at least 16, got 8"),
        ({"size": 65}, "size must be even, .* got 65"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"fps": 0}, "fps must be at least 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"train_per_class": 0}, "train_per_class must be at least 1"),
        ({"test_per_class": 0}, "test_per_class must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_impossible_settings(setting, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare_motion(tmp_path / "motion", **{**SMALL, **setting})
    assert not (tmp_path / "motion").exists()


def test_without_the_recordings_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'art-kernels\[motion\]'"):
        prepare_motion(tmp_path / "motion", **SMALL)
    assert not (tmp_path / "motion").exists()
