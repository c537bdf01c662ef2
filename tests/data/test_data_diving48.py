import json

import pytest

from art.data.datasets.diving48 import spelled_out
from art.data.datasets.registry import open_dataset, required_files

VOCABULARY = [
    ["Back", "15som", "05Twis", "FREE"],
    ["Back", "Dive", "NoTwis", "PIKE"],
    ["Inward", "1som", "1Twis", "STR"],
]


def entry(name, label, **more):
    return {"vid_name": name, "label": label, "start_frame": 0, "end_frame": 48, **more}


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "Diving48_vocab.json", VOCABULARY)
    write(tmp_path, "Diving48_V2_train.json", [entry("-mmq0PT-u8k_00155", 0), entry("_8Vy3dlHg2w_00000", 2)])
    write(tmp_path, "Diving48_V2_test.json", [entry("01Me6s6OnSk_00012", 1)])
    return tmp_path


def write(root, name, content):
    (root / name).write_text(json.dumps(content))


def paths(clip_set):
    return [clip_set.relative_path(i) for i in range(len(clip_set))]


@pytest.mark.parametrize("folder", ["rgb", "videos"])
def test_a_split(folder, root):
    (root / folder).mkdir()
    (root / folder / "-mmq0PT-u8k_00155.webm").touch()
    train, test = open_dataset("diving48", root, "train"), open_dataset("diving48", root, "test")
    assert paths(train) == [f"{folder}/-mmq0PT-u8k_00155.webm", f"{folder}/_8Vy3dlHg2w_00000.mp4"]
    assert train.labels == (0, 2)
    assert all(clip.start is None and clip.end is None for clip in train), "the frame numbers are not of this file"
    assert (paths(test), test.labels) == ([f"{folder}/01Me6s6OnSk_00012.mp4"], (1,))
    assert train.class_names == test.class_names == (
        "Back 15som 05Twis FREE", "Back Dive NoTwis PIKE", "Inward 1som 1Twis STR"
    )  # fmt: skip
    assert train.prompts == (
        "back dive, 1.5 somersaults, 0.5 twist, free position",
        "back dive, pike position",
        "inward dive, 1 somersault, 1 twist, straight position",
    )
    assert train.mirror == (0, 1, 2)
    assert train.groups == ()


def test_annotations_may_have_a_folder_and_clips_be_frames(root):
    (root / "annotations").mkdir()
    for path in list(root.glob("*.json")):
        path.rename(root / "annotations" / path.name)
    (root / "rawframes/_8Vy3dlHg2w_00000").mkdir(parents=True)
    assert paths(open_dataset("diving48", root, "train"))[1] == "rawframes/_8Vy3dlHg2w_00000"
    assert [file.found for file in required_files("diving48", root)] == [True] * 3


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (("Forward", "45som", "NoTwis", "TUCK"), "forward dive, 4.5 somersaults, tuck position"),
        (("Reverse", "25som", "15Twis", "PIKE"), "reverse dive, 2.5 somersaults, 1.5 twists, pike position"),
        (("Back", "3som", "NoTwis", "PIKE"), "back dive, 3 somersaults, pike position"),
        (("Forward", "15som", "2Twis", "FREE"), "forward dive, 1.5 somersaults, 2 twists, free position"),
        (("Forward", "Dive", "NoTwis", "STR"), "forward dive, straight position"),
    ],
)
def test_tokens_are_spelled_out(tokens, text):
    assert spelled_out(tokens) == text


LIST, WORDS = "Diving48_V2_train.json", "Diving48_vocab.json"
WRONG = [
    (LIST, '[{"vid_name": "-mm', r"train\.json:1: is no JSON: .*downloaded whole"),
    (LIST, "{}", r"train\.json holds \{\}; expected a list"),
    (LIST, json.dumps([entry("-mmq0PT-u8k_00155", 3)]), r"entry 0 \(-mmq0PT-u8k_00155\): label 3 is out of range"),
    (LIST, '[{"vid_name": "-mmq0PT-u8k_00155"}]', r"entry 0 \(-mmq0PT-u8k_00155\): label is None; expected"),
    (LIST, json.dumps([entry("short_00155", 0)]), r"train\.json: entry 0 is .*; expected a video and its label"),
    (LIST, "[3]", r"train\.json: entry 0 is 3; expected"),
    (LIST, json.dumps([entry("-mmq0PT-u8k_00155", 0)] * 2), r"entry 1: -mmq0PT-u8k_00155 is there already"),
    (WORDS, '[["Back", "15som"]]', r"vocab\.json: class 0 is \['Back', '15som'\]; expected four tokens"),
    (WORDS, '[["Up", "15som", "NoTwis", "FREE"]]', r"class 0: take-off is 'Up'; expected one of Back, Forward, Inward"),
    (WORDS, '[["Back", "155som", "NoTwis", "FREE"]]', r"class 0: somersaults are '155som'; expected Dive or a number"),
    (WORDS, '[["Back", "Dive", "05twis", "FREE"]]', r"class 0: twists are '05twis'; expected NoTwis or a number"),
    (WORDS, '[["Back", "Dive", "NoTwis", "free"]]', r"class 0: position is 'free'; expected one of PIKE, TUCK, FREE"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_a_wrong_file_is_named_with_its_entry(name, text, message, root):
    (root / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset("diving48", root, "train")
