import pytest

from art.data.datasets.table import open_csv, table_splits


def write(root, **files):
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")


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


def test_the_splits_are_the_tables_of_clips(tmp_path):
    header = "path,label\na.mp4,x\n"
    write(
        tmp_path,
        train__csv=header,
        val__csv=header,
        cameras__csv="camera;place\n1;left\n",
        mirror__csv="class,mirror\n",
    )
    assert table_splits(tmp_path) == ("train", "val")


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
