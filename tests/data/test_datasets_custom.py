"""Custom datasets: tables and path lists."""

import random
import unicodedata
from pathlib import Path

import pytest

from art.data.datasets.base import open_dataset
from art.data.datasets.custom import (
    list_splits,
    open_csv,
    open_list,
    read_classes,
    read_mirror,
    table_splits,
)
from art.data.inputs import open_inputs


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


def test_comments(tmp_path, write_files):
    write_files("#1.mp4", "#2 x.mp4", "a.mp4")
    write_files(
        {
            "classes.txt": "# names of the classes\n#1\nrun\n#old\n",
            "train.csv": '# written, by "me\npath,label\n#1.mp4,run\n#b.mp4,run\n# c.mp4,#1\na.mp4,#1\n',
            "val.csv": "label,path\n#1,gone.mp4\n",
            "mirror.csv": "# pairs\nclass,mirror\n",
            "train.txt": "# clips 1\n#1.mp4 1\n#2 x.mp4 0\n#3.mp4 0\na.mp4 0\n",
        }
    )
    assert read_classes(tmp_path) == ("#1", "run")
    assert [(clip.path.name, clip.label) for clip in open_csv(tmp_path, "train")] == [("#1.mp4", 1), ("a.mp4", 0)]
    assert [(clip.path.name, clip.label) for clip in open_csv(tmp_path, "val")] == [("gone.mp4", 0)]
    expected = ["#1.mp4", "#2 x.mp4", "a.mp4"]
    assert [clip.path.name for clip in open_list(tmp_path, "train")] == expected
    for name, listed in {"train.txt": expected, "train.csv": ["#1.mp4", "a.mp4"]}.items():
        (source,) = open_inputs([tmp_path / name])
        assert [item.place.name for item in source.items] == listed
    with pytest.raises(ValueError, match=r"classes\.txt has comments only"):
        read_classes(write_files({"classes.txt": "# none\n"}))


@pytest.mark.parametrize("line", ["a.mp4 run", "a.mp4 0.0", "a.mp4,run fast", "gone.mp4\tx", "frames run", '"a.mp4" x'])
def test_labels_in_lists_that_are_no_indices(line, write_files):
    root = write_files("a.mp4", "frames/00001.jpg", {"train.txt": f"a.mp4 0\n{line}\n"})
    errors = []
    for read in (lambda: open_list(root, "train"), lambda: open_inputs([root / "train.txt"])):
        with pytest.raises(ValueError, match=r"train\.txt:2: got .*; expected a path and a class index") as caught:
            read()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_tables_with_class_indices(tmp_path, write_files):
    write_files({"train.csv": "path,label\na.mp4,0\nb.mp4,2\n", "test.csv": "path,label\nc.mp4,3\n"})
    assert open_csv(tmp_path, "train").class_names == ("0", "1", "2", "3")
    write_files({"classes.txt": "w\nx\ny\nz\n", "test.csv": "path,label\nc.mp4,3\nd.mp4,x\n"})
    assert open_csv(tmp_path, "train").class_names == ("w", "x", "y", "z")
    assert open_csv(tmp_path, "test").labels == (3, 1)
    write_files({"classes.txt": "7\n1\n0\n"})
    assert open_csv(tmp_path, "train").labels == (2, 2), "a class name takes precedence over an index"
    for label in ("\u00b2", "\u0663", "1\u00b2", "1_0", "+1", "1.0"):  # int or str.isdigit accept some of them
        write_files({"train.csv": f"path,label\na.mp4,{label}\n"})
        with pytest.raises(ValueError, match=r"train\.csv:2: unknown class"):
            open_csv(tmp_path, "train")


INVALID_TABLES = [
    ("", r"train\.csv is empty; expected the header 'path,label'"),
    ("path,label\n", r"train\.csv lists no clips"),
    ("file;label\na.mp4;x\n", r"train\.csv:1: the header is 'file;label'; expected 'path,label', separated by commas"),
    ("a.mp4,x,1\n", r"train\.csv:1: the header is 'a\.mp4,x,1'"),
    ("a.mp4 0\n", r"train\.csv:1: the header is 'a\.mp4 0'; .* use the dataset 'list'"),
    ("path,label,Path\na.mp4,x,b.mp4\n", r"train\.csv: the header has two columns 'path'"),
    ("path\tlabel\na.mp4\n", r"train\.csv:2: has 1 values, .*; quote values that contain a tab"),
    ("path,label\na\0.mp4,x\n", r"train\.csv:2: contains a null byte"),
    ("path,label\na.mp4,x\n\nb.mp4\n", r"train\.csv:4: has 1 values, expected 2 \(path,label\)"),
    ("path,label\na,b.mp4,x\n", r"train\.csv:2: has 3 values, expected 2"),
    ("path,label\na.mp4,\n", r"train\.csv:2: label is empty"),
    ("path,label\n,x\n", r"train\.csv:2: path is empty"),
    ("path,label\na.mp4,x\nb.mp4,y\na.mp4,y\n", r"train\.csv:4: clip a\.mp4 is already listed in line 2; remove one$"),
    ("path,label\na.mp4,x\nc/../a.mp4,x\na.mp4,x\n", r"train\.csv:3: .* in line 2; remove one \(2 rows of this table"),
    ("path,label\na.mp4,0\nb.mp4,99999\n", r"train\.csv:3: label 99999 is too large for 2 clips"),
    ("path,label,time_start\na.mp4,x,nan\n", r"train\.csv:2: time_start is 'nan'; expected seconds"),
    ("path,label,time_end\na.mp4,x,1e999\n", r"train\.csv:2: time_end is '1e999'; expected seconds"),
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


TABLE = "path,label,time_end\na.mp4,run,\n'b, c.mp4',walk,2.5\n".replace("'", '"')
DIALECTS = {
    "semicolon": TABLE.replace(",", ";").replace("b; c", "b, c"),
    "tab": TABLE.replace(",", "\t").replace("b\t c", "b, c"),
    "vertical bar": TABLE.replace(",", "|").replace("b| c", "b, c"),
    "Excel": "sep=;\r\n" + TABLE.replace(",", ";").replace("b; c", "b, c").replace("\n", "\r\n"),
    "capitals and quotes": TABLE.replace("path,label,time_end", '"Path", "LABEL", Time_End '),
    "mark and CRLF": "\ufeff" + TABLE.replace("\n", "\r\n"),
    "CR": TABLE.replace("\n", "\r"),
    "empty columns": TABLE.replace("\n", ",,\n"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_dialects_of_tables(dialect, encoding, tmp_path):
    (tmp_path / "train.csv").write_bytes(DIALECTS[dialect].encode(encoding))
    train = open_csv(tmp_path, "train")
    assert [(clip.path.name, clip.label, clip.end) for clip in train] == [("a.mp4", 0, None), ("b, c.mp4", 1, 2.5)]
    assert train.class_names == ("run", "walk")
    (source,) = open_inputs([tmp_path / "train.csv"])
    assert [(item.place, item.end) for item in source.items] == [(clip.path, clip.end) for clip in train]


@pytest.mark.parametrize(
    "text", ["a.mp4,run\nb.mp4,walk\n", "\n a.mp4 ; run \nb.mp4;walk\n", "frames\trun\nb.mp4\twalk\n"]
)
def test_tables_without_header(text, write_files, relative_paths):
    (write_files({"train.csv": text}) / "frames").mkdir()
    root = write_files({"prices.csv": "a.mp4,3\n"})
    train = open_csv(root, "train")
    assert relative_paths(train)[1] == "b.mp4" and relative_paths(train)[0] in text
    assert train.class_names == ("run", "walk")
    assert table_splits(root) == ("train",), "only a table with the name of a split may have no header"


def test_every_table_with_the_name_of_a_split_is_one(write_files):
    root = write_files({"train.csv": "path,label\na.mp4,run\n", "Validation.csv": "file,class\nb.mp4,run\n"})
    assert table_splits(root) == ("train", "val")
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"Validation\.csv:1: the header is 'file,class'; expected 'path,label'"):
            open_csv(root, split)


@pytest.mark.parametrize("name", ["Validation.csv", "VAL.CSV", "valid.tsv", "dev.csv"])
def test_spelling_of_tables(name, write_files):
    root = write_files({"Training.csv": "path,label\na.mp4,run\n", name: "path,label\nb.mp4,run\n"})
    assert table_splits(root) == ("train", "val")
    assert open_csv(root, "train").clips[0].path.name == "a.mp4"
    for split in ("val", "validation", "test"):
        clips = open_csv(root, split)
        assert clips.clips[0].path.name == "b.mp4"
        assert clips.split in ("val", Path(name).stem), "without a test table"


@pytest.mark.parametrize("name", ["csv", "list"])
def test_paths_of_other_systems(name, tmp_path, write_files, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    stored, listed = (unicodedata.normalize(form, "über/é.mp4") for form in ("NFD", "NFC"))
    write_files("sub/a.mp4", stored, "home/clips/b.mp4", "back\\slash.mp4")
    texts = ["sub\\a.mp4", listed, "~/clips/b.mp4", "~\\clips\\gone.mp4", "back\\slash.mp4", "gone\\c.mp4"]
    expected = ["sub/a.mp4", stored, "home/clips/b.mp4", "home/clips/gone.mp4", "back\\slash.mp4", "gone/c.mp4"]
    rows = "".join(f"{text}{',' if name == 'csv' else ' '}0\n" for text in texts)
    file = "train.csv" if name == "csv" else "train.txt"
    root = write_files({file: ("path,label\n" if name == "csv" else "") + rows})
    assert [clip.path for clip in open_dataset(name, root, "train")] == [root / path for path in expected]
    (source,) = open_inputs([root / file])
    assert [item.place for item in source.items] == [root / path for path in expected]


def test_composed_and_decomposed_classes_are_the_same(write_files):
    composed, decomposed = (unicodedata.normalize(form, "übung") for form in ("NFC", "NFD"))
    root = write_files(
        {"train.csv": f"path,label\na.mp4,{composed}\n", "test.csv": f"path,label\nb.mp4,{decomposed}\n"}
    )
    assert open_csv(root, "test").class_names == (composed,)
    write_files({"classes.txt": f"{decomposed}\n", "mirror.csv": f"class,mirror\n{decomposed},{composed}\n"})
    assert (open_csv(root, "train").class_names, open_csv(root, "train").mirror) == ((composed,), (0,))


def test_damaged_tables_and_lists_are_read_or_refused_with_their_name(tmp_path):
    generator = random.Random(0)
    pieces = [
        b",",
        b";",
        b"\t",
        b'"',
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b" ",
        b"-1",
        b"9" * 20,
        b"nan",
        b"../",
        b"~/",
        b"\\",
    ]
    table = "path,label,time_start\na.mp4,run,0.5\n'b, c.mp4',walk,\nü.mp4,run,1\n".replace("'", '"').encode()
    lines = "a.mp4 0\nb c.mp4 1\nframes/1 58 1\nü.mp4,0\n".encode()
    counts = {True: 0, False: 0}
    for seed in range(150):
        for name, content in {"train.csv": table, "train.txt": lines}.items():
            at, root = generator.randrange(len(content)), tmp_path / f"{name}{seed}"
            root.mkdir()
            (root / name).write_bytes(content[:at] + generator.choice(pieces) + content[at + generator.randrange(4) :])
            for read in (
                lambda root=root, name=name: open_dataset("csv" if name == "train.csv" else "list", root, "train"),
                lambda root=root, name=name: open_inputs([root / name]),
            ):
                try:
                    counts[len(read()) > 0] += 1
                except ValueError as error:
                    counts[False] += 1
                    assert str(root / name) in str(error) and "\n" not in str(error), str(error)
    assert min(counts.values()) > 100


def test_lookups_are_linear(write_files):
    count = 20_000
    names = "".join(f"class number {i}\n" for i in range(count))
    rows = "".join(f"{i}.mp4,class number {i}\n" for i in range(count))
    root = write_files({"classes.txt": names, "train.csv": f"path,label\n{rows}", "bad/classes.txt": names})
    assert len(open_csv(root, "train")) == count
    write_files({"bad/train.csv": "path,label\na.mp4,clas number 3\n"})
    with pytest.raises(
        ValueError, match=r"unknown class 'clas number 3'; expected one of class number 0, .* and 19980 more"
    ):
        open_csv(root / "bad", "train")
    write_files({"mixed/train.csv": "path,label\n" + "".join(f"{i}.mp4,{i}\n" for i in range(count)) + "x.mp4,run\n"})
    with pytest.raises(ValueError, match=r"train\.csv:20002 has the name 'run'"):
        open_csv(root / "mixed", "train")


def test_list_with_spaces_and_commas(write_files, relative_paths):
    text = "a.mp4 0\n\nair drumming/b.mp4 2\nc.mp4,1\nd, e.mp4,  3\n/abs/f.mp4\t0\n'g 1.mp4' 1\nh.mp4;2\n".replace(
        "'", '"'
    )
    train = open_list(write_files({"train.txt": text}), "train")
    expected = ["a.mp4", "air drumming/b.mp4", "c.mp4", "d, e.mp4", "/abs/f.mp4", "g 1.mp4", "h.mp4"]
    assert relative_paths(train) == expected
    assert train.labels == (0, 2, 1, 3, 0, 1, 2)
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
    assert open_list(root, "test").split == "val", "without a test list"
    with pytest.raises(ValueError, match=r"lists of split 'fold': none; expected fold\.txt, or one file with 'fold'"):
        open_list(root, "fold")
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
