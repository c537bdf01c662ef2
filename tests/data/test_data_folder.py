import logging
import os

import pytest

from art.data.datasets.folder import folder_splits, open_folder


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(root, **files):
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    touch(
        tmp_path, "train/run/b.mp4", "train/run/a.AVI", "train/long_jump/c.webm", "test/run/d.mkv", "test/throw/e.mov"
    )
    return tmp_path


def test_a_folder_for_each_class(folder):
    train, test = open_folder(folder, "train"), open_folder(folder, "test")
    assert train.class_names == test.class_names == ("long_jump", "run", "throw")
    assert train.prompts == ("long jump", "run", "throw")
    assert [(train.relative_path(i), clip.label) for i, clip in enumerate(train)] == [
        ("train/long_jump/c.webm", 0),
        ("train/run/a.AVI", 1),
        ("train/run/b.mp4", 1),
    ]
    assert [(test.relative_path(i), clip.label) for i, clip in enumerate(test)] == [
        ("test/run/d.mkv", 1),
        ("test/throw/e.mov", 2),
    ]
    assert train.mirror is None
    assert (train.name, train.split, train.root) == ("folder", "train", folder)


def test_classes_txt_gives_the_order(folder):
    write(folder, classes__txt="throw\nrun\nlong_jump\n\n")
    assert open_folder(folder, "train").class_names == ("throw", "run", "long_jump")
    assert open_folder(folder, "train").labels == (2, 1, 1)
    write(folder, classes__txt="throw\nrun\nlong_jumps\n")
    with pytest.raises(ValueError, match=r"train/long_jump: 'long_jump' is not in .*did you mean 'long_jumps'\?"):
        open_folder(folder, "train")


def test_other_files_are_named_and_hidden_ones_ignored(folder, caplog):
    touch(folder, "train/run/.DS_Store", "train/run/notes.txt", ".cache/x")
    with caplog.at_level(logging.WARNING):
        assert len(open_folder(folder, "train")) == 3
    assert caplog.text.count("1 files below") == 1
    assert "notes.txt" in caplog.text


def test_folders_of_frames_are_clips(folder):
    touch(folder, "train/run/c/00001.jpg", "train/run/c/00002.jpg", "train/throw/d/img_00001.PNG")
    train = open_folder(folder, "train")
    paths = [train.relative_path(i) for i in range(len(train))]
    assert paths == ["train/long_jump/c.webm", "train/run/a.AVI", "train/run/b.mp4", "train/run/c", "train/throw/d"]
    assert train.labels == (0, 1, 1, 1, 2)


def test_the_splits_are_the_folders(folder):
    touch(folder, ".cache/x", "classes.txt")
    assert folder_splits(folder) == ("test", "train")


@pytest.mark.parametrize("clips", [3, 30])
def test_many_clips_take_few_calls(clips, tmp_path, monkeypatch):
    """A folder of 100,000 clips is listed as fast as its class folders are: no clip is asked for by itself."""
    for i in range(clips):
        touch(tmp_path, f"train/a/{i}.mp4", f"train/b/{i}/00001.jpg")
    calls = []
    for name in ("scandir", "stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *path, real=real, **more: calls.append(path) or real(*path, **more))
    assert len(open_folder(tmp_path, "train")) == 2 * clips
    # The root and the split twice (splits; classes of all), each class once, and the first folder of frames.
    assert len([path for path in calls if "train" in str(path)]) <= 7
    assert len(calls) <= 12


def test_what_is_wrong_with_a_folder(folder):
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        open_folder(folder / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"d\.mkv is no folder"):
        open_folder(folder / "test/run/d.mkv", "train")
    with pytest.raises(ValueError, match=r"has no split 'val': there are test, train; expected .*/val/<class>/<clip>"):
        open_folder(folder, "val")
    touch(folder, "deep/run/more/a.mp4", "none/run/readme.txt")
    with pytest.raises(ValueError, match=r"deep/run/more is a folder without frames \(\.jpg.*expected video files"):
        open_folder(folder, "deep")
    with pytest.raises(ValueError, match="none has no clips in its 1 class folders and 1 other files"):
        open_folder(folder, "none")


def test_a_declared_mirror(folder):
    write(folder, mirror__csv="class,mirror\nrun,throw\n")
    assert open_folder(folder, "train").mirror == (0, 2, 1)
    write(folder, mirror__csv="class,mirror\nrun,throw\nlong_jump,throw\n")
    with pytest.raises(ValueError, match="flipping twice must lead back"):
        open_folder(folder, "train")
