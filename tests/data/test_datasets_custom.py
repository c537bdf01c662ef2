"""Custom datasets: class directories, tables and path lists."""

import logging
import os

import pytest

from art.data.datasets.custom import (
    directory_splits,
    list_splits,
    open_csv,
    open_directory,
    open_list,
    read_classes,
    read_mirror,
    table_splits,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"classes\.txt is empty"),
        ("a\n\nb\n", r"classes\.txt:2: blank line"),
        ("a\nb\na\n", r"classes\.txt:3: class 'a' is already listed in line 1"),
    ],
)
def test_invalid_classes_txt(text, message, write_files):
    with pytest.raises(ValueError, match=message):
        read_classes(write_files({"classes.txt": text}))


def test_mirror_csv(tmp_path, write_files):
    names = ("turn left", "turn right", "run")
    assert read_mirror(tmp_path, names) is None
    assert read_mirror(write_files({"mirror.csv": "class,mirror\n"}), names) == (0, 1, 2)
    assert read_mirror(write_files({"mirror.csv": "class,mirror\nturn right,turn left\n"}), names) == (1, 0, 2)
    write_files({"mirror.csv": "class,mirror\nturn right,turn lft\n"})
    with pytest.raises(ValueError, match=r"mirror\.csv:2: unknown class 'turn lft'; did you mean 'turn left'\?"):
        read_mirror(tmp_path, names)


@pytest.fixture
def directory(write_files):
    train = ("train/run/b.mp4", "train/run/a.AVI", "train/long_jump/c.webm")
    return write_files(*train, "test/run/d.mkv", "test/throw/e.mov")


def test_class_directories(directory, relative_paths):
    train, test = open_directory(directory, "train"), open_directory(directory, "test")
    assert train.class_names == test.class_names == ("long_jump", "run", "throw")
    assert train.prompts == ("long jump", "run", "throw")
    assert relative_paths(train) == ["train/long_jump/c.webm", "train/run/a.AVI", "train/run/b.mp4"]
    assert relative_paths(test) == ["test/run/d.mkv", "test/throw/e.mov"]
    assert (train.labels, test.labels) == ((0, 1, 1), (1, 2))
    assert (train.name, train.split, train.root, train.mirror) == ("folder", "train", directory, None)


def test_class_directories_with_classes_and_mirror(directory, write_files):
    write_files({"classes.txt": "throw\nrun\nlong_jump\n\n"})
    assert open_directory(directory, "train").class_names == ("throw", "run", "long_jump")
    assert open_directory(directory, "train").labels == (2, 1, 1)
    write_files({"mirror.csv": "class,mirror\nrun,throw\n"})
    assert open_directory(directory, "train").mirror == (1, 0, 2)
    write_files({"mirror.csv": "class,mirror\nrun,throw\nlong_jump,throw\n"})
    with pytest.raises(ValueError, match="mirror must be its own inverse"):
        open_directory(directory, "train")
    write_files({"classes.txt": "throw\nrun\nlong_jumps\n"})
    with pytest.raises(ValueError, match=r"train/long_jump: 'long_jump' is not in .*did you mean 'long_jumps'\?"):
        open_directory(directory, "train")


def test_other_files_and_hidden_files(directory, write_files, caplog):
    write_files("train/run/.DS_Store", "train/run/notes.txt", ".cache/x", "classes.md")
    with caplog.at_level(logging.WARNING):
        assert len(open_directory(directory, "train")) == 3
    assert "skipping 1 files" in caplog.text
    assert "notes.txt" in caplog.text
    assert directory_splits(directory) == ("test", "train")


def test_directories_of_frames_are_clips(directory, write_files, relative_paths):
    write_files("train/run/c/00001.jpg", "train/run/c/00002.jpg", "train/throw/d/img_00001.PNG")
    train = open_directory(directory, "train")
    assert relative_paths(train)[1:] == ["train/run/a.AVI", "train/run/b.mp4", "train/run/c", "train/throw/d"]
    assert train.labels == (0, 1, 1, 1, 2)


@pytest.mark.parametrize("clips", [3, 30])
def test_number_of_system_calls_is_independent_of_the_clips(clips, write_files, monkeypatch):
    root = write_files(*(name for i in range(clips) for name in (f"train/a/{i}.mp4", f"train/b/{i}/00001.jpg")))
    calls = []
    for name in ("scandir", "stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *path, real=real, **more: calls.append(path) or real(*path, **more))
    assert len(open_directory(root, "train")) == 2 * clips
    # The root and the split twice (splits; classes of all), each class once, and the first directory of frames.
    assert len([path for path in calls if "train" in str(path)]) <= 7
    assert len(calls) <= 12


def test_invalid_class_directories(directory, write_files):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_directory(directory / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"d\.mkv is not a directory"):
        open_directory(directory / "test/run/d.mkv", "train")
    with pytest.raises(ValueError, match=r"has no split 'val'; found: test, train; expected .*/val/<class>/<clip>"):
        open_directory(directory, "val")
    write_files("deep/run/more/a.mp4", "none/run/readme.txt")
    with pytest.raises(ValueError, match=r"deep/run/more is a directory without frames \(\.jpg.*expected video files"):
        open_directory(directory, "deep")
    with pytest.raises(ValueError, match=r"none has no clips in 1 class directories \(1 other files\)"):
        open_directory(directory, "none")


def test_tables(write_files):
    root = write_files(
        {
            "train.csv": '\ufeffpath,label,remark\na.mp4,run,x\n\n"b, c.mp4", jump ,\n/abs/d.mp4,run,\n',
            "test.csv": "label,path,time_start,time_end\nwalk,e.mp4,,2.5\nrun,e.mp4,2.5,4\nrun,f.mp4,,\n",
            "cameras.csv": "camera;place\n1;left\n",
            "mirror.csv": "class,mirror\n",
        }
    )
    train, test = open_csv(root, "train"), open_csv(root, "test")
    assert train.class_names == test.class_names == ("jump", "run", "walk")
    assert [clip.path.as_posix() for clip in train] == [f"{root}/a.mp4", f"{root}/b, c.mp4", "/abs/d.mp4"]
    assert (train.labels, test.labels) == ((1, 0, 1), (2, 1, 1))
    assert [(clip.start, clip.end) for clip in test] == [(None, 2.5), (2.5, 4.0), (None, None)]
    assert (train.name, train.mirror) == ("csv", (0, 1, 2))
    assert table_splits(root) == ("test", "train")


def test_tables_with_class_indices(tmp_path, write_files):
    write_files({"train.csv": "path,label\na.mp4,0\nb.mp4,2\n", "test.csv": "path,label\nc.mp4,3\n"})
    assert open_csv(tmp_path, "train").class_names == ("0", "1", "2", "3")
    write_files({"classes.txt": "w\nx\ny\nz\n", "test.csv": "path,label\nc.mp4,3\nd.mp4,x\n"})
    assert open_csv(tmp_path, "train").class_names == ("w", "x", "y", "z")
    assert open_csv(tmp_path, "test").labels == (3, 1)
    write_files({"classes.txt": "7\n1\n0\n"})
    assert open_csv(tmp_path, "train").labels == (2, 2), "a class name takes precedence over an index"


INVALID_TABLES = [
    ("", r"train\.csv is empty; expected the header 'path,label'"),
    ("path,label\n", r"train\.csv lists no clips"),
    ("path;label\na.mp4;x\n", r"train\.csv:1: the header is 'path;label'; expected 'path,label', separated by commas"),
    ("a.mp4,x\n", r"train\.csv:1: the header is 'a\.mp4,x'"),
    ("path,label\na.mp4,x\n\nb.mp4\n", r"train\.csv:4: has 1 values, expected 2 \(path,label\)"),
    ("path,label\na,b.mp4,x\n", r"train\.csv:2: has 3 values, expected 2"),
    ("path,label\na.mp4,\n", r"train\.csv:2: label is empty"),
    ("path,label\n,x\n", r"train\.csv:2: path is empty"),
    ("path,label\na.mp4,x\nb.mp4,y\na.mp4,y\n", r"train\.csv:4: clip a\.mp4 is already listed in line 2"),
    ("path,label\na.mp4,x\nb.mp4,3\n", r"train\.csv:3: label 3 is an index, but .*train\.csv:2 has the name 'x'"),
    ("path,label,time_start\na.mp4,x,soon\n", r"train\.csv:2: time_start is 'soon'; expected seconds"),
    ("path,label,time_start,time_end\na.mp4,x,3,2\n", r"train\.csv:2: the clip from 3\.0 s to 2\.0 s has no duration"),
    ('path,label\n"a.mp4,x\n', r"train\.csv:2: invalid CSV"),
]


@pytest.mark.parametrize(("text", "message"), INVALID_TABLES)
def test_invalid_table(text, message, write_files):
    with pytest.raises(ValueError, match=message):
        open_csv(write_files({"train.csv": text}), "train")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2", r"train\.csv:2: label 2 is out of range, expected 0 to 1"),
        ("-1", r"train\.csv:2: label -1 is out of range"),
        ("runing", r"train\.csv:2: unknown class 'runing'; did you mean 'running'\?"),
    ],
)
def test_invalid_label(label, message, write_files):
    root = write_files({"classes.txt": "running\njumping\n", "train.csv": f"path,label\na.mp4,{label}\n"})
    with pytest.raises(ValueError, match=message):
        open_csv(root, "train")


def test_invalid_root_of_tables(tmp_path, write_files):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_csv(tmp_path / "nowhere", "train")
    write_files({"test.csv": "path,label\na.mp4,x\n", "mirror.csv": "class,mirror\n"})
    with pytest.raises(ValueError, match=r"has no split 'train'; found: test; expected .*/train\.csv"):
        open_csv(tmp_path, "train")
    (tmp_path / "bad.csv").write_bytes(b"path,label\n\xff.mp4,x\n")
    with pytest.raises(ValueError, match=r"bad\.csv is not UTF-8 text: .* at byte 11"):
        open_csv(tmp_path, "bad")


def test_list_with_spaces_and_commas(write_files, relative_paths):
    text = "a.mp4 0\n\nair drumming/b.mp4 2\nc.mp4,1\nd, e.mp4,  3\n/abs/f.mp4\t0\n"
    train = open_list(write_files({"train.txt": text}), "train")
    assert relative_paths(train) == ["a.mp4", "air drumming/b.mp4", "c.mp4", "d, e.mp4", "/abs/f.mp4"]
    assert train.labels == (0, 2, 1, 3, 0)
    assert (train.name, train.split, train.mirror) == ("list", "train", None)


def test_list_with_frame_counts(write_files, relative_paths):
    root = write_files({"train.txt": "frames/182040 58 3\nframes/7 0\nframes/my 9 1\nframes/clip.mp4 9 1\n"})
    (root / "frames/my 9").mkdir(parents=True)
    expected = ["frames/182040", "frames/7", "frames/my 9", "frames/clip.mp4"]
    assert relative_paths(open_list(root, "train")) == expected


def test_names_of_lists(write_files, relative_paths):
    names = {"k400_train_list_videos.txt": "a.mp4 0\n", "val.csv": "b.mp4,1\n", "kinetics_val_list.txt": "c.mp4 1\n"}
    root = write_files(names)
    assert list_splits(root) == ("train", "val")
    assert relative_paths(open_list(root, "train")) == ["a.mp4"]
    assert relative_paths(open_list(root, "val")) == ["b.mp4"], "the exact name takes precedence"
    with pytest.raises(ValueError, match=r"lists of split 'test': none; expected test\.txt, or one file with 'test'"):
        open_list(root, "test")
    write_files({"sthv2_train_list.txt": "a.mp4 0\n"})
    with pytest.raises(ValueError, match=r"k400_train_list_videos\.txt, sthv2_train_list\.txt; expected train\.txt"):
        open_list(root, "train")


def test_class_names_of_lists(tmp_path, write_files):
    write_files({"train.txt": "a.mp4 1\n", "val.txt": "b.mp4 3\n"})
    assert open_list(tmp_path, "train").class_names == ("0", "1", "2", "3"), "the same in every split"
    write_files({"labels.csv": 'id,name\n1,"b, c"\n0,a\n2,d\n3,e\n'})
    assert open_list(tmp_path, "train").class_names == ("a", "b, c", "d", "e")
    write_files({"classes.txt": "w\nx\ny\nz\n", "mirror.csv": "class,mirror\nw,x\n"})
    train = open_list(tmp_path, "train")
    assert train.class_names == ("w", "x", "y", "z")
    assert train.mirror == (1, 0, 2, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.txt": ""}, r"train\.txt is empty"),
        ({"train.txt": "a.mp4 0\nb.mp4\n"}, r"train\.txt:2: got 'b\.mp4'; expected a path and a class index, such as"),
        ({"train.txt": "path,label\n"}, r"train\.txt:1: got 'path,label'; .* use the dataset 'csv'"),
        ({"train.txt": "a.mp4 -1\n"}, r"train\.txt:1: label -1 is out of range, expected 0 to 0"),
        ({"train.txt": "a.mp4 2\n", "classes.txt": "x\ny\n"}, r"txt:1: label 2 is out of range, expected 0 to 1"),
        ({"train.txt": "a.mp4 0\nb.mp4 0\na.mp4 1\n"}, r"train\.txt:3: a\.mp4 is already listed in line 1"),
        ({"train.txt": "a.mp4 0\n", "x.csv": "id,name\n1,a\n"}, r"x\.csv:2: label 1 is out of range, expected 0 to 0"),
        ({"train.txt": "a.mp4 0\n", "x.csv": "id,name\n0,a\n0,b\n"}, r"x\.csv:3: class 0 is already listed, as 'a'"),
        ({"train.txt": "a 0\n", "x.csv": "id,name\n0,a\n", "y.csv": "id,name\n0,a\n"}, "x.csv, y.csv; expected one"),
    ],
)
def test_invalid_list(files, message, write_files):
    with pytest.raises(ValueError, match=message):
        open_list(write_files(files), "train")
