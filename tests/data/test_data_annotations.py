import pytest

from art.data.datasets.annotations import AnnotationFile, class_index, find_videos, first_folder, read_json, read_lines

FILE = AnnotationFile(("list_v2.txt", "list.txt"), "https://example.org", ("train",))


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_an_annotation_file_lies_in_the_root_or_in_annotations(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=rf"list_v2\.txt is not there; expected in {tmp_path} or {tmp_path}/annotations\. Get it from https://ex",
    ):
        FILE.path(tmp_path)
    missing = FILE.required(tmp_path)
    assert (missing.path, missing.found, missing.source, missing.splits) == (
        tmp_path / "list_v2.txt", False, "https://example.org", ("train",)
    )  # fmt: skip
    for place in ("annotations/list.txt", "list.txt", "annotations/list_v2.txt", "list_v2.txt"):
        touch(tmp_path, place)
        assert FILE.path(tmp_path) == FILE.required(tmp_path).path == tmp_path / place
        assert FILE.required(tmp_path).found
    with pytest.raises(FileNotFoundError, match=r"root .*nowhere is not there"):
        FILE.path(tmp_path / "nowhere")


def test_videos_by_name(tmp_path):
    touch(
        tmp_path,
        "a/one.mp4", "a/one.txt", "a/-_two.WEBM", "a/other.mp4", "b/one.mp4", "b/three/00001.jpg", "b/deep/four.avi"
    )  # fmt: skip
    names = ["one", "-_two", "three", "four", "five"]
    assert find_videos(tmp_path, ("none", "a", "b"), names) == {
        "one": tmp_path / "a/one.mp4",
        "-_two": tmp_path / "a/-_two.WEBM",
        "three": tmp_path / "b/three",
    }
    assert find_videos(tmp_path, ("b",), names, depth=2)["four"] == tmp_path / "b/deep/four.avi"


def test_a_video_there_is_twice(tmp_path):
    touch(tmp_path, "a/one.webm", "a/one.mp4", "a/two/1.jpg", "a/two.mp4")
    expected = {"one": tmp_path / "a/one.mp4", "two": tmp_path / "a/two.mp4"}
    assert find_videos(tmp_path, ("a",), {"one", "two"}) == expected


def test_where_a_missing_video_is_expected(tmp_path):
    assert first_folder(tmp_path, ("a", "b")) == tmp_path / "a"
    (tmp_path / "b").mkdir()
    assert first_folder(tmp_path, ("a", "b")) == tmp_path / "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"b"', r"x\.json:3: is no JSON: .*; was it downloaded whole\?"),
        ('{"a": 1}', r"x\.json holds \{'a': 1\}; expected a list"),
    ],
)
def test_json_that_is_not_what_it_should_be(text, message, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json", list)


def test_lines_have_numbers(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone \r\n\r\n two\n")
    assert read_lines(tmp_path / "x.txt") == [(1, "one"), (3, "two")]


def test_labels_come_as_numbers_or_text():
    assert class_index(3, "here", 4) == class_index("3", "here", 4) == 3
    for value, message in [
        (4, "here: label 4 is out of range, expected 0 to 3: there are 4 classes"),
        ("-1", "here: label -1 is out of range"),
        ("x", "here: label is 'x'; expected a whole number, 0 to 3"),
        (1.0, r"here: label is 1\.0; expected"),
        (True, "here: label is True; expected"),
        (None, "here: label is None; expected"),
        ("y" * 500, r"here: label is 'y{76}\.\.\.; expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            class_index(value, "here", 4)
