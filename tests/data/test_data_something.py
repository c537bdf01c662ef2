import json
import logging

import pytest

from art.data.datasets.registry import open_dataset, required_files
from art.data.datasets.something import mirror_of, without_brackets

NAMES = [
    "Holding something",
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Putting number of something onto something",
]
TEMPLATES = {
    "Holding [something]": 0,
    "Pushing [something] from left to right": 1,
    "Pushing [something] from right to left": 2,
    "Putting [number of] [something] onto [something]": 3,
}


def entry(id, template):
    return {"id": id, "label": "putting 2 red pens onto a book", "template": template, "placeholders": ["2 red pens"]}


@pytest.fixture
def v1(tmp_path):
    front = "something-something-v1"
    (tmp_path / f"{front}-labels.csv").write_text("\n".join(NAMES) + "\n")
    (tmp_path / f"{front}-train.csv").write_text(f"100218;{NAMES[3]}\n24413;{NAMES[1]}\n")
    (tmp_path / f"{front}-validation.csv").write_text(f"7;{NAMES[0]}\n")
    return tmp_path


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "labels").mkdir()
    files = {
        "labels.json": {without_brackets(template): str(label) for template, label in reversed(TEMPLATES.items())},
        "train.json": [
            entry("41775", "Putting [number of] [something] onto [something]"),
            entry("5", "Holding [something]"),
        ],
        "validation.json": [entry("6", "Pushing [something] from right to left")],
    }
    for name, content in files.items():
        (tmp_path / "labels" / name).write_text(json.dumps(content))
    (tmp_path / "labels/test-answers.csv").write_text(f"8;{NAMES[2]}\n")
    return tmp_path


def paths(clip_set):
    return [clip_set.relative_path(i) for i in range(len(clip_set))]


@pytest.mark.parametrize("folder", ["20bn-something-something-v1", "videos/20bn-something-something-v1", "rawframes"])
def test_v1_is_folders_of_frames(folder, v1):
    (v1 / folder / "100218").mkdir(parents=True)
    (v1 / folder / "100218/00001.jpg").touch()
    train, val = open_dataset("something_v1", v1, "train"), open_dataset("something_v1", v1, "val")
    assert paths(train) == [f"{folder}/100218", f"{folder}/24413"]
    assert (train.labels, val.labels) == ((3, 1), (0,))
    assert train.class_names == train.prompts == val.class_names == tuple(NAMES)
    assert train.mirror == (0, 2, 1, 3)
    assert len(required_files("something_v1", v1)) == 3


def test_v2_is_videos_with_templates(v2):
    (v2 / "20bn-something-something-v2").mkdir()
    (v2 / "20bn-something-something-v2/41775.webm").touch()
    train = open_dataset("something_v2", v2, "train")
    assert paths(train) == ["20bn-something-something-v2/41775.webm", "20bn-something-something-v2/5.webm"]
    assert train.labels == (3, 0)
    assert train.class_names == train.prompts == tuple(NAMES), "never the label, which names the objects"
    assert train.mirror == (0, 2, 1, 3)
    assert open_dataset("something_v2", v2, "val").labels == open_dataset("something_v2", v2, "test").labels == (2,)
    assert [file.found for file in required_files("something_v2", v2)] == [True] * 4


def test_v2_under_other_names_and_as_mp4(v2):
    (v2 / "labels").rename(v2 / "annotations")
    for name in ("labels.json", "train.json"):
        (v2 / "annotations" / name).rename(v2 / "annotations" / f"something-something-v2-{name}")
    (v2 / "videos").mkdir()
    (v2 / "videos/41775.mp4").touch()
    assert paths(open_dataset("something_v2", v2, "train")) == ["videos/41775.mp4", "videos/5.webm"]


def test_brackets_and_sides(caplog):
    assert without_brackets("Poking a hole into [some substance]") == "Poking a hole into some substance"
    assert without_brackets("Putting [something], [something] and [something] on the table").count("something") == 3
    assert mirror_of(("Turning the camera left", "Turning the camera right", "Leftovers")) == (1, 0, 2)
    with caplog.at_level(logging.WARNING):
        assert mirror_of(("Turning the camera left", "Holding something")) is None
    assert "clips cannot be flipped: class 'Turning the camera left' has no mirror image" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels", "", r"labels\.csv is empty; expected a class a line"),
        ("labels", "a\nb\na\n", r"labels\.csv:3: class 'a' is there already, in line 1"),
        (
            "train",
            "1;Holdin something\n",
            r"train\.csv:1: 'Holdin something' is no class; did you mean 'Holding something'\?",
        ),
        (
            "train",
            "1;Holding something\n\nx;Holding something\n",
            r"train\.csv:3: is 'x;Holding something'; expected an id",
        ),
        ("train", "1\n", r"train\.csv:1: is '1'; expected an id and its class, such as '41775;Closing something'"),
        ("train", "1;Holding something\n1;Holding something\n", r"train\.csv:2: clip 1 is there already"),
    ],
)
def test_a_wrong_line_of_v1_is_named(name, text, message, v1):
    (v1 / f"something-something-v1-{name}.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset("something_v1", v1, "train")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels", "{}", r"labels\.json is empty; expected templates and their indices"),
        ("labels", '{"a": "0", "b": "2"}', r"labels\.json: 'b': label 2 is out of range, expected 0 to 1"),
        ("labels", '{"a": "0", "b": "0"}', r"labels\.json: 'b' has index 0, as 'a' has; expected one each"),
        ("labels", '{"a": "zero"}', r"labels\.json: 'a': label is 'zero'; expected a whole number"),
        ("labels", "[]", r"labels\.json holds \[\]; expected an object"),
        ("train", '[{"id": "41775", "label": "moving', r"train\.json:1: is no JSON: .*downloaded whole"),
        ("train", '[{"id": "41775"}]', r"train\.json: entry 0 is .*; expected an id and a template"),
        ("train", '[{"id": "x", "template": "Holding [something]"}]', r"train\.json: entry 0 is "),
        (
            "train",
            '[{"id": "1", "template": "Holding [nothing]"}]',
            r"entry 0: 'Holding nothing' is no class; did you mean",
        ),
        (
            "train",
            json.dumps([entry("5", "Holding [something]")] * 2),
            r"train\.json: entry 1: clip 5 is there already",
        ),
    ],
)
def test_a_wrong_entry_of_v2_is_named(name, text, message, v2):
    (v2 / f"labels/{name}.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset("something_v2", v2, "train")
