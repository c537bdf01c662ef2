import logging

import pytest

from art.data.folder import open_csv, open_folder, read_classes, read_mirror


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


def test_what_is_wrong_with_a_folder(folder):
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        open_folder(folder / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"d\.mkv is no folder"):
        open_folder(folder / "test/run/d.mkv", "train")
    with pytest.raises(ValueError, match=r"has no split 'val': there are test, train; expected .*/val/<class>/<clip>"):
        open_folder(folder, "val")
    touch(folder, "frames/run/clip/001.jpg", "none/run/readme.txt")
    with pytest.raises(ValueError, match=r"frames/run/clip is a folder; expected video files \(\.mp4"):
        open_folder(folder, "frames")
    with pytest.raises(ValueError, match="none has no clips in its 1 class folders and 1 other files"):
        open_folder(folder, "none")


def test_a_table(tmp_path):
    write(
        tmp_path,
        train__csv='\ufeffpath,label,remark\na.mp4,run,x\n\n"b, c.mp4", jump ,\n/abs/d.mp4,run,\n',
        test__csv="label,path\nwalk,e.mp4\n",
    )
    train, test = open_csv(tmp_path, "train"), open_csv(tmp_path, "test")
    assert train.class_names == test.class_names == ("jump", "run", "walk")
    assert [clip.path.as_posix() for clip in train] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b, c.mp4", "/abs/d.mp4"]
    assert train.labels == (1, 0, 1)
    assert test.labels == (2,)
    assert (train.name, train.mirror) == ("csv", None)


def test_other_tables_do_not_matter(tmp_path):
    write(tmp_path, train__csv="path,label\na.mp4,x\n", cameras__csv="camera;place\n1;left\n")
    assert open_csv(tmp_path, "train").class_names == ("x",)


def test_labels_as_numbers(tmp_path):
    write(tmp_path, train__csv="path,label\na.mp4,0\nb.mp4,2\n", test__csv="path,label\nc.mp4,3\n")
    assert open_csv(tmp_path, "train").class_names == ("0", "1", "2", "3")
    write(tmp_path, classes__txt="w\nx\ny\nz\n", test__csv="path,label\nc.mp4,3\nd.mp4,x\n")
    assert open_csv(tmp_path, "train").class_names == ("w", "x", "y", "z")
    assert open_csv(tmp_path, "test").labels == (3, 1)


def test_a_class_may_be_called_a_number(tmp_path):
    write(tmp_path, classes__txt="7\n1\n0\n", train__csv="path,label\na.mp4,0\nb.mp4,2\n")
    assert open_csv(tmp_path, "train").labels == (2, 2)


def test_parts_of_files(tmp_path):
    write(tmp_path, train__csv="path,label,time_start,time_end\na.mp4,x,,2.5\na.mp4,y,2.5,4\nb.mp4,x,,\n")
    assert [(clip.start, clip.end) for clip in open_csv(tmp_path, "train")] == [(None, 2.5), (2.5, 4.0), (None, None)]


WRONG_TABLES = [
    ("", r"train\.csv is empty; expected the header 'path,label'"),
    ("path,label\n", r"train\.csv lists no clips"),
    ("path;label\na.mp4;x\n", r"train\.csv:1: the header is 'path;label'; expected 'path,label', separated by commas"),
    ("a.mp4,x\n", r"train\.csv:1: the header is 'a\.mp4,x'"),
    ("path,label\na.mp4,x\n\nb.mp4\n", r"train\.csv:4: has 1 values, expected 2 \(path,label\)"),
    ("path,label\na,b.mp4,x\n", r"train\.csv:2: has 3 values, expected 2"),
    ("path,label\na.mp4,\n", r"train\.csv:2: label is empty"),
    ("path,label\n,x\n", r"train\.csv:2: path is empty"),
    ("path,label\na.mp4,x\nb.mp4,y\na.mp4,y\n", r"train\.csv:4: clip a\.mp4 is there already, in line 2"),
    ("path,label\na.mp4,x\nb.mp4,3\n", r"train\.csv:3: label 3 is an index, but .*train\.csv:2 has the name 'x'"),
    ("path,label,time_start\na.mp4,x,soon\n", r"train\.csv:2: time_start is 'soon'; expected seconds"),
    ("path,label,time_start,time_end\na.mp4,x,3,2\n", r"train\.csv:2: the clip from 3\.0 s to 2\.0 s has no duration"),
    ('path,label\n"a.mp4,x\n', r"train\.csv:2: is no line of a CSV table"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_TABLES)
def test_a_wrong_table_names_file_and_line(text, message, tmp_path):
    write(tmp_path, train__csv=text)
    with pytest.raises(ValueError, match=message):
        open_csv(tmp_path, "train")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2", r"train\.csv:2: label 2 is out of range, expected 0 to 1"),
        ("-1", r"train\.csv:2: label -1 is out of range"),
        ("runing", r"train\.csv:2: label 'runing' is no class; did you mean 'running'\?"),
        ("zzz", r"is no class; expected one of running, jumping"),
    ],
)
def test_a_label_that_is_no_class(label, message, tmp_path):
    write(tmp_path, classes__txt="running\njumping\n", train__csv=f"path,label\na.mp4,{label}\n")
    with pytest.raises(ValueError, match=message):
        open_csv(tmp_path, "train")


def test_what_is_wrong_with_the_root_of_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        open_csv(tmp_path / "nowhere", "train")
    write(tmp_path, test__csv="path,label\na.mp4,x\n", mirror__csv="class,mirror\n")
    with pytest.raises(ValueError, match=r"has no split 'train': there are test; expected .*/train\.csv"):
        open_csv(tmp_path, "train")
    (tmp_path / "bad.csv").write_bytes(b"path,label\n\xff.mp4,x\n")
    with pytest.raises(ValueError, match=r"bad\.csv is not UTF-8 text: .* at byte 11"):
        open_csv(tmp_path, "bad")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"classes\.txt is empty"),
        ("a\n\nb\n", r"classes\.txt:2: is blank"),
        ("a\nb\na\n", r"classes\.txt:3: class 'a' is there already, in line 1"),
    ],
)
def test_a_wrong_class_list(text, message, tmp_path):
    write(tmp_path, classes__txt=text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path)


def test_a_declared_mirror(folder):
    names = ("turn left", "turn right", "run")
    assert read_mirror(folder, names) is None
    write(folder, mirror__csv="class,mirror\n")
    assert read_mirror(folder, names) == (0, 1, 2)
    write(folder, mirror__csv="class,mirror\nturn right,turn left\n")
    assert read_mirror(folder, names) == (1, 0, 2)
    write(folder, mirror__csv="class,mirror\nturn right,turn lft\n")
    with pytest.raises(ValueError, match=r"mirror\.csv:2: 'turn lft' is no class; did you mean 'turn left'\?"):
        read_mirror(folder, names)
    write(folder, mirror__csv="class,mirror\nrun,throw\n")
    assert open_folder(folder, "train").mirror == (0, 2, 1)
    write(folder, mirror__csv="class,mirror\nrun,throw\nlong_jump,throw\n")
    with pytest.raises(ValueError, match="flipping twice must lead back"):
        open_folder(folder, "train")
