"""Annotation files, Kinetics, NTU RGB+D and Something-Something."""

import json
import logging

import pytest

from art.data.datasets.annotations import (
    AnnotationFile,
    class_index,
    find_videos,
    read_json,
    read_lines,
)
from art.data.datasets.base import open_dataset, required_files
from art.data.datasets.ntu import CLASS_NAMES, XSUB60_TRAIN, XSUB120_TRAIN, Recording, class_prompt, parse_name
from art.data.datasets.something import mirror_classes, strip_brackets

FILE = AnnotationFile(("list_v2.txt", "list.txt"), "https://example.org", ("train",))


def test_annotation_file(tmp_path, write_files):
    with pytest.raises(
        FileNotFoundError,
        match=rf"list_v2\.txt not found; expected in {tmp_path} or {tmp_path}/annotations\. Download it from https://ex",
    ):
        FILE.path(tmp_path)
    missing = FILE.required(tmp_path)
    assert (missing.path, missing.found, missing.source, missing.splits) == (
        tmp_path / "list_v2.txt", False, "https://example.org", ("train",)
    )  # fmt: skip
    for name in ("annotations/list.txt", "list.txt", "annotations/list_v2.txt", "list_v2.txt"):
        write_files(name)
        assert FILE.path(tmp_path) == FILE.required(tmp_path).path == tmp_path / name
        assert FILE.required(tmp_path).found
    with pytest.raises(FileNotFoundError, match=r"root .*nowhere does not exist"):
        FILE.path(tmp_path / "nowhere")


def test_find_videos(tmp_path, write_files):
    write_files("a/one.mp4", "a/one.webm", "a/one.txt", "a/-_two.WEBM", "a/other.mp4", "b/one.mp4")
    write_files("b/three/00001.jpg", "b/three.mp4", "b/four/1.jpg", "b/deep/five.avi")
    names = ["one", "-_two", "three", "four", "five", "six"]
    expected = {"one": "a/one.mp4", "-_two": "a/-_two.WEBM", "three": "b/three.mp4", "four": "b/four"}
    assert find_videos(tmp_path, ("none", "a", "b"), names) == {k: tmp_path / path for k, path in expected.items()}
    assert find_videos(tmp_path, ("b",), names, depth=2)["five"] == tmp_path / "b/deep/five.avi"


def test_invalid_json(tmp_path, write_files):
    path = write_files({"x.json": '[\n{"a": 1},\n{"b"'}) / "x.json"
    with pytest.raises(ValueError, match=r"x\.json:3: invalid JSON: .*; check that the download is complete"):
        read_json(path, list)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"x\.json holds \{'a': 1\}; expected a list"):
        read_json(path, list)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"x\.json holds \[\]; expected an object"):
        read_json(path, dict)


def test_read_lines(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone \r\n\r\n two\n")
    assert read_lines(tmp_path / "x.txt") == [(1, "one"), (3, "two")]


def test_class_index():
    assert class_index(3, "here", 4) == class_index("3", "here", 4) == 3
    for value, message in [
        (4, "here: label 4 is out of range, expected 0 to 3: there are 4 classes"),
        ("-1", "here: label -1 is out of range"),
        ("x", "here: label is 'x'; expected an integer, 0 to 3"),
        (1.0, r"here: label is 1\.0; expected"),
        (True, "here: label is True; expected"),
        (None, "here: label is None; expected"),
        ("y" * 500, r"here: label is 'y{76}\.\.\.; expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            class_index(value, "here", 4)


HEADER = "label,youtube_id,time_start,time_end,split"
TRAIN = f'{HEADER},is_cc\n"air drumming",_dbcJuKJQNs,40,50,train,0\nabseiling,-3B32lodo2M,59,69,train,1\n'
VAL = f"{HEADER}\nair drumming,--6bmFAPQaA,7,17,validate\n"


@pytest.fixture
def kinetics(write_files):
    """The tables of Kinetics."""
    test = "youtube_id,time_start,time_end,split\n--6bmFAPQaB,7,17,test\n"
    return write_files({"train.csv": TRAIN, "val.csv": VAL, "test.csv": test})


DRUMS, ABSEIL = "_dbcJuKJQNs_000040_000050.mp4", "-3B32lodo2M_000059_000069.mp4"


@pytest.mark.parametrize(
    ("directory", "drums", "abseil"),
    [
        ("train", "", ""),
        ("train", "air drumming/", "abseiling/"),
        ("videos_train", "air_drumming/", "abseiling/"),
        ("train", "class 2/", "class 1/"),
        ("kinetics-400_train", "", ""),
        ("videos", "", ""),
    ],
)
def test_kinetics_video_directories(directory, drums, abseil, kinetics, write_files, relative_paths):
    files = [f"{directory}/{drums}{DRUMS}", f"{directory}/{abseil}{ABSEIL}".replace(".mp4", ".mkv")]
    write_files(*files)
    train = open_dataset("kinetics400", kinetics, "train")
    assert relative_paths(train) == files
    assert train.labels == (1, 0), "the classes are sorted"


def test_kinetics_classes_of_all_splits(kinetics, write_files):
    write_files("validate/x.txt")
    train, val = open_dataset("kinetics400", kinetics, "train"), open_dataset("kinetics400", kinetics, "val")
    assert val.class_names == train.class_names == ("abseiling", "air drumming")
    assert (val.name, val.split, val.labels, val.prompts) == ("kinetics400", "val", (1,), val.class_names)
    assert val.mirror == (0, 1)
    assert all(clip.start is None for clip in val)
    with pytest.raises(FileNotFoundError, match=r"train\.csv not found"):
        (kinetics / "train.csv").unlink()
        open_dataset("kinetics400", kinetics, "val")


def test_kinetics_missing_videos(kinetics, write_files, relative_paths):
    assert relative_paths(open_dataset("kinetics600", kinetics, "val"))[0].startswith("val/")
    write_files("train/air_drumming/x.mp4")
    train = open_dataset("kinetics600", kinetics, "train")
    assert relative_paths(train) == [f"train/air_drumming/{DRUMS}", f"train/{ABSEIL}"]


def test_kinetics_names_of_tables(kinetics):
    (kinetics / "annotations").mkdir()
    (kinetics / "train.csv").rename(kinetics / "annotations/kinetics-600_train.csv")
    (kinetics / "val.csv").rename(kinetics / "annotations/validate.txt")
    assert len(open_dataset("kinetics600", kinetics, "val")) == 1
    found = {file.splits: (file.found, file.path.name) for file in required_files("kinetics600", kinetics)}
    assert found == {
        ("train", "val", "test"): (True, "kinetics-600_train.csv"),
        ("val",): (True, "validate.txt"),
        ("test",): (True, "test.csv"),
    }


def test_kinetics_test_table_without_labels(kinetics):
    with pytest.raises(ValueError, match=r"test\.csv has no column 'label', which .* require; use another split"):
        open_dataset("kinetics400", kinetics, "test")
    (kinetics / "test.csv").write_text(VAL)
    assert open_dataset("kinetics400", kinetics, "test").labels == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"val\.csv is empty; expected the header 'youtube_id,time_start,time_end'"),
        (f"{HEADER}\n", r"val\.csv lists no clips"),
        (f"{HEADER}\nabseilin,--6bmFAPQaA,7,17,val\n", r"csv:2: label 'abseilin' is not a class in .*train\.csv; did"),
        (f"{HEADER}\n,--6bmFAPQaA,7,17,val\n", r"val\.csv:2: label is empty"),
        (f"{HEADER}\nabseiling,--6bmFAP,7,17,val\n", r"val\.csv:2: youtube_id is '--6bmFAP'; expected 11 letters"),
        (f"{HEADER}\nabseiling,--6bmFAPQaA,7.5,17,val\n", r"val\.csv:2: time_start is '7\.5'; expected whole seconds"),
        (f"{HEADER}\nabseiling,--6bmFAPQaA,7,,val\n", r"val\.csv:2: time_end is ''; expected whole seconds"),
        (f"{HEADER}\nabseiling,--6bmFAPQaA,17,7,val\n", r"val\.csv:2: the clip from 17 s to 7 s has no duration"),
        (VAL + VAL[len(HEADER) + 1 :], r"val\.csv:3: --6bmFAPQaA_000007_000017 is already listed in .*val\.csv:2"),
    ],
)
def test_kinetics_invalid_table(text, message, kinetics):
    (kinetics / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset("kinetics400", kinetics, "val")


def video(setup=1, camera=1, performer=1, replication=1, action=1):
    return f"S{setup:03d}C{camera:03d}P{performer:03d}R{replication:03d}A{action:03d}_rgb.avi"


def touch(directory, *names):
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).touch()


def ntu(name, root, split):
    return {clip.path.name: clip.label for clip in open_dataset(name, root, split)}


def test_ntu_published_constants():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 120
    assert (len(XSUB60_TRAIN), len(XSUB120_TRAIN)) == (20, 53), "half of the performers are in training"
    assert {p for p in XSUB120_TRAIN if p <= 40} == XSUB60_TRAIN


def test_ntu_prompts():
    assert class_prompt("use a fan (with hand or paper)/feeling warm. .") == "use a fan/feeling warm"
    prompts = [class_prompt(name) for name in CLASS_NAMES]
    assert len(set(prompts)) == 120 and not any(mark in prompt for prompt in prompts for mark in "().")


def test_ntu_file_names():
    assert parse_name("S001C002P003R002A013_rgb") == parse_name("S001C002P003R002A013") == Recording(1, 2, 3, 2, 13)
    for other in ("S001C002P003R002A13_rgb", "S001C002P003R002A013_ir", "xS001C002P003R002A013"):
        assert parse_name(other) is None


@pytest.mark.parametrize("directory", ["nturgb+d_rgb", "rgb", "videos", "."])
def test_ntu60_protocols(directory, tmp_path):
    first, second, third = video(1, 1, 1, 1, 13), video(2, 2, 3, 2, 60), video(17, 3, 38, 1, 1)
    touch(tmp_path / directory, first, second, third, video(18, 2, 45, 1, 61), "notes.txt")
    assert ntu("ntu60_xsub", tmp_path, "train") == {first: 12, third: 0}
    assert ntu("ntu60_xsub", tmp_path, "test") == {second: 59}
    assert ntu("ntu60_xview", tmp_path, "train") == {second: 59, third: 0}
    assert ntu("ntu60_xview", tmp_path, "test") == {first: 12}
    train = open_dataset("ntu60_xsub", tmp_path, "train")
    assert (train.class_names, train.prompts[8]) == (CLASS_NAMES[:60], "standing up")
    assert train.mirror == tuple(range(60))


def test_ntu120_protocols(tmp_path):
    names = [video(1), video(2, performer=3), video(31, performer=100), video(32, performer=106, action=120)]
    touch(tmp_path, *names)
    assert ntu("ntu120_xsub", tmp_path, "train") == {names[0]: 0, names[2]: 0}
    assert ntu("ntu120_xsub", tmp_path, "test") == {names[1]: 0, names[3]: 119}
    assert ntu("ntu120_xset", tmp_path, "train") == {names[1]: 0, names[3]: 119}
    assert ntu("ntu120_xset", tmp_path, "test") == {names[0]: 0, names[2]: 0}
    assert open_dataset("ntu120_xset", tmp_path, "test").class_names == CLASS_NAMES


def test_ntu_other_suffixes_and_frames(tmp_path):
    touch(tmp_path / "rgb", "S001C001P001R001A001.mp4")
    touch(tmp_path / "rgb" / "S001C001P001R002A001", "00001.jpg")
    assert list(ntu("ntu60_xsub", tmp_path, "train")) == ["S001C001P001R001A001.mp4", "S001C001P001R002A001"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "contains no NTU RGB"),
        (["S001C002P003R002A013_ir.avi"], r"A013_ir\.avi: not an NTU RGB\+D file name; expected one such as S001C0"),
        ([video(action=61)], r"A061_rgb\.avi: action is 61; expected 1 to 60 in ntu60_xsub"),
        ([video(action=0)], "action is 0; expected 1 to 60"),
        ([video(performer=41)], "performer is 41; expected 1 to 40"),
        ([video(camera=4)], "camera is 4; expected 1 to 3"),
        ([video(replication=3)], "replication is 3; expected 1 to 2"),
        ([video(), "S001C001P001R001A001.mp4"], r"A001_rgb\.avi: the same recording as S001C.*\.mp4; remove one"),
    ],
)
def test_ntu_invalid_files(files, message, tmp_path):
    touch(tmp_path / "rgb", *files)
    with pytest.raises(ValueError, match=message):
        open_dataset("ntu60_xsub", tmp_path, "train")


TEMPLATES = [
    "Holding [something]",
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
    "Putting [number of] [something] onto [something]",
]
NAMES = [strip_brackets(template) for template in TEMPLATES]


def entry(id, template):
    return {"id": id, "label": "putting 2 red pens onto a book", "template": template, "placeholders": ["2 red pens"]}


@pytest.fixture
def v1(write_files):
    train = f"100218;{NAMES[3]}\n24413;{NAMES[1]}\n"
    files = {"labels": "\n".join(NAMES), "train": train, "validation": f"7;{NAMES[0]}"}
    return write_files({f"something-something-v1-{name}.csv": text for name, text in files.items()})


@pytest.fixture
def v2(write_files):
    files = {
        "labels.json": {name: str(label) for label, name in reversed(list(enumerate(NAMES)))},
        "train.json": [entry("41775", TEMPLATES[3]), entry("5", TEMPLATES[0])],
        "validation.json": [entry("6", TEMPLATES[2])],
    }
    texts = {f"labels/{name}": json.dumps(content) for name, content in files.items()}
    return write_files(texts, {"labels/test-answers.csv": f"8;{NAMES[2]}\n"})


@pytest.mark.parametrize(
    "directory", ["20bn-something-something-v1", "videos/20bn-something-something-v1", "rawframes"]
)
def test_something_v1(directory, v1, write_files, relative_paths):
    write_files(f"{directory}/100218/00001.jpg")
    train, val = open_dataset("something_v1", v1, "train"), open_dataset("something_v1", v1, "val")
    assert relative_paths(train) == [f"{directory}/100218", f"{directory}/24413"]
    assert (train.labels, val.labels) == ((3, 1), (0,))
    assert train.class_names == train.prompts == val.class_names == tuple(NAMES)
    assert train.mirror == (0, 2, 1, 3)
    assert len(required_files("something_v1", v1)) == 3


def test_something_v2(v2, write_files, relative_paths):
    write_files("20bn-something-something-v2/41775.webm")
    train = open_dataset("something_v2", v2, "train")
    assert relative_paths(train) == ["20bn-something-something-v2/41775.webm", "20bn-something-something-v2/5.webm"]
    assert train.labels == (3, 0)
    assert train.class_names == train.prompts == tuple(NAMES), "not the label, which names the objects"
    assert train.mirror == (0, 2, 1, 3)
    assert open_dataset("something_v2", v2, "val").labels == open_dataset("something_v2", v2, "test").labels == (2,)
    assert [file.found for file in required_files("something_v2", v2)] == [True] * 4


def test_something_v2_other_names(v2, write_files, relative_paths):
    (v2 / "labels").rename(v2 / "annotations")
    for name in ("labels.json", "train.json"):
        (v2 / "annotations" / name).rename(v2 / "annotations" / f"something-something-v2-{name}")
    write_files("videos/41775.mp4")
    assert relative_paths(open_dataset("something_v2", v2, "train")) == ["videos/41775.mp4", "videos/5.webm"]


def test_something_brackets_and_mirror(caplog):
    assert strip_brackets("Poking a hole into [some substance]") == "Poking a hole into some substance"
    assert strip_brackets("Putting [something], [something] and [something] on the table").count("something") == 3
    assert mirror_classes(("Turning the camera left", "Turning the camera right", "Leftovers")) == (1, 0, 2)
    with caplog.at_level(logging.WARNING):
        assert mirror_classes(("Turning the camera left", "Holding something")) is None
    assert "clips cannot be flipped: class 'Turning the camera left' has no mirror image" in caplog.text


HOLD = "Holding something"
V1, V2 = "something-something-v1-", "labels/"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (f"{V1}labels.csv", "", r"labels\.csv is empty; expected one class per line"),
        (f"{V1}labels.csv", "a\nb\na\n", r"labels\.csv:3: class 'a' is already listed in line 1"),
        (f"{V1}train.csv", "1;Holdin something\n", r"csv:1: unknown class 'Holdin something'; did you mean 'Hold"),
        (f"{V1}train.csv", f"1;{HOLD}\n\nx;{HOLD}\n", r"train\.csv:3: got 'x;Holding something'; expected an id"),
        (f"{V1}train.csv", "1\n", r"train\.csv:1: got '1'; expected an id and a class, such as '5;Closing something'"),
        (f"{V1}train.csv", f"1;{HOLD}\n1;{HOLD}\n", r"train\.csv:2: clip 1 is already listed"),
        (f"{V2}labels.json", "{}", r"labels\.json is empty; expected templates and their indices"),
        (f"{V2}labels.json", '{"a": "0", "b": "2"}', r"labels\.json: 'b': label 2 is out of range, expected 0 to 1"),
        (f"{V2}labels.json", '{"a": "0", "b": "0"}', r"json: 'b' has the index 0 of 'a'; expected different ones"),
        (f"{V2}train.json", '[{"id": "41775"}]', r"train\.json: entry 0 is .*; expected an id and a template"),
        (f"{V2}train.json", '[{"id": "x", "template": "Holding [something]"}]', r"train\.json: entry 0 is "),
        (f"{V2}train.json", json.dumps([entry("1", "Holdin [it]")]), r"entry 0: unknown class 'Holdin it'; did y"),
        (f"{V2}train.json", json.dumps([entry("5", HOLD)] * 2), r"train\.json: entry 1: clip 5 is already listed"),
    ],
)
def test_something_invalid_file(file, text, message, request):
    version = "v1" if file.startswith(V1) else "v2"
    (request.getfixturevalue(version) / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset(f"something_{version}", request.getfixturevalue(version), "train")
