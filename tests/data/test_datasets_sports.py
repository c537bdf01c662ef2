"""FineGym and Diving48."""

import json

import pytest

from art.data.datasets.base import dataset_entry, open_dataset, required_files
from art.data.datasets.sports import dive_prompt, subaction_ids

GYM = "-_LtLS9_rO-"  # an id may contain both '-' and '_' and start with either
TURN = f"{GYM}_E_002407_002435_A_0003_0005"
VAULT = "0LtLS9wROrk_E_000147_000152_A_0000_0005"
LEAP = f"{GYM}_E_002407_002435_A_0010_0012"
VAL = "A0xAXXysHUo_E_002184_002237_A_0035_0036"
CATEGORIES = """Clabel:   0; set:  1; Glabel:   1; (VT) round-off, flic-flac with 0.5 turn on, 0.5 turn to salto off
Clabel:   1; set: 22; Glabel: 170; (FX) 1 turn in back attitude, knee of free leg at horizontal
Clabel:   2; set: 21; Glabel: 121; (FX) switch leap (leap forward with leg change to cross split)
"""


@pytest.fixture
def gym(write_files):
    """FineGym's annotation files."""
    files = {
        "gym99_categories.txt": CATEGORIES,
        "set_categories.txt": "set: 1; VT\nset: 21; FX_leap_jump_hop\nset: 22; FX_turns\n",
        "gym99_train_element_v1.1.txt": f"{TURN} 1\n{VAULT} 0\n{LEAP} 2\n",
        "gym99_train_element_v1.0.txt": f"{TURN} 1\n",
        "gym99_val_element.txt": f"{VAL} 2\n",
        "finegym_annotation_info_v1.1.json": json.dumps(TIMES),
    }
    return write_files({f"annotations/{name}": text for name, text in files.items()})


TIMES = {
    GYM: {
        "E_002407_002435": {
            "segments": {
                "A_0003_0005": {"stages": 1, "timestamps": [[3.45, 5.64]]},
                "A_0010_0012": {"stages": 1, "timestamps": [[10.5, 12.25]]},
            },
            "timestamps": [[2407.32, 2435.28]],
        },
        "E_003000_003010": {"segments": None, "timestamps": [[3000.0, 3010.0]]},
    },
    "0LtLS9wROrk": {
        "E_000147_000152": {
            "segments": {"A_0000_0005": {"stages": 3, "timestamps": [[0.25, 1.5], [1.5, 2.75], [2.75, 5.0]]}},
            "timestamps": [[147.0, 152.5]],
        }
    },
}


def clips(root, split="train", name="finegym99"):
    clip_set = open_dataset(name, root, split)
    return [(clip_set.relative_path(i), clip.label, clip.start, clip.end) for i, clip in enumerate(clip_set)]


def test_gym_files_of_sub_actions(gym, write_files):
    write_files(f"subactions/{TURN}.mp4", f"subactions/{VAULT}.mkv", f"rawframes/{LEAP}/img_00001.jpg")
    assert clips(gym) == [
        (f"subactions/{TURN}.mp4", 1, None, None),
        (f"subactions/{VAULT}.mkv", 0, None, None),
        (f"rawframes/{LEAP}", 2, None, None),
    ]


def test_gym_clips_of_full_videos(gym, write_files):
    write_files(f"videos/{GYM}.mp4", "videos/0LtLS9wROrk.webm")
    turn, vault, leap = clips(gym)
    assert turn == (f"videos/{GYM}.mp4", 1, pytest.approx(2410.77), pytest.approx(2412.96))
    assert vault == ("videos/0LtLS9wROrk.webm", 0, 147.25, 152.0), "a vault spans all three stages"
    assert leap == (f"videos/{GYM}.mp4", 2, pytest.approx(2417.82), pytest.approx(2419.57))


def test_gym_uses_the_shortest_file(gym, write_files):
    write_files(f"videos/{GYM}.mp4", f"events/{GYM}_E_002407_002435.mp4", f"subactions/{LEAP}.mp4")
    assert clips(gym) == [
        (f"events/{GYM}_E_002407_002435.mp4", 1, 3.45, 5.64),
        (f"subactions/{VAULT}.mp4", 0, None, None),
        (f"subactions/{LEAP}.mp4", 2, None, None),
    ]


def test_gym_missing_files(gym, write_files):
    (gym / "annotations/finegym_annotation_info_v1.1.json").unlink()
    assert clips(gym, "val") == [(f"subactions/{VAL}.mp4", 2, None, None)]
    write_files("clips/other.mp4")
    assert clips(gym, "val") == [(f"clips/{VAL}.mp4", 2, None, None)]
    write_files(f"{GYM}.mp4")
    with pytest.raises(FileNotFoundError, match=r"finegym_annotation_info_v1\.1\.json not found; .* https://sdol"):
        clips(gym)


def test_gym_classes(gym):
    train = open_dataset("finegym99", gym, "train")
    assert (train.name, train.split) == ("finegym99", "train")
    assert train.class_names[1] == "(FX) 1 turn in back attitude, knee of free leg at horizontal"
    assert train.prompts == (
        "round-off, flic-flac with 0.5 turn on, 0.5 turn to salto off, vault",
        "1 turn in back attitude, knee of free leg at horizontal, floor exercise, turns",
        "switch leap (leap forward with leg change to cross split), floor exercise, leap jump hop",
    )
    assert train.groups == ("VT", "FX_turns", "FX_leap_jump_hop")
    assert train.mirror == (0, 1, 2)
    assert open_dataset("finegym99", gym, "val").class_names == train.class_names
    assert subaction_ids(gym, "train") == (TURN, VAULT, LEAP)


def test_gym_description_in_two_sets(gym, write_files):
    write_files({"annotations/set_categories.txt": "set: 33; BB_flight_salto\nset: 35; BB_dismounts\n"})
    lines = ["Clabel: 1; set: 35; Glabel: 2; (BB) tucked", "Clabel: 0; set: 33; Glabel: 1; (BB) tucked"]
    lines.append("Clabel: 2; set: 33; Glabel: 3; (UB) tucked")
    write_files({"annotations/gym99_categories.txt": "\n".join(lines)})
    val = open_dataset("finegym99", gym, "val")
    assert val.class_names == ("(BB) tucked [BB_flight_salto]", "(BB) tucked [BB_dismounts]", "(UB) tucked")
    assert val.prompts[1] == "tucked, balance beam, dismounts"


def test_gym_other_lists(gym):
    assert len(clips(gym, name="finegym99_v1.0")) == 1
    for name in ("gym288_train_element_v1.1.txt", "gym288_val_element.txt"):
        (gym / "annotations" / name).write_text(f"{VAL} 0\n")
    with pytest.raises(FileNotFoundError, match=r"gym288_categories\.txt not found"):
        clips(gym, name="finegym288")
    (gym / "annotations/gym288_categories.txt").write_text(CATEGORIES)
    assert len(clips(gym, name="finegym288")) == 1
    with pytest.raises(FileNotFoundError, match=r"gym288_train_element_v1\.0\.txt not found"):
        clips(gym, name="finegym288_v1.0")


def test_gym_required_files(gym):
    (gym / "annotations/gym99_val_element.txt").unlink()
    files = {file.path.name: file for file in required_files("finegym99", gym)}
    assert {name: (file.found, file.splits) for name, file in files.items()} == {
        "gym99_train_element_v1.1.txt": (True, ("train",)),
        "gym99_val_element.txt": (False, ("val",)),
        "gym99_categories.txt": (True, ("train", "val")),
        "set_categories.txt": (True, ("train", "val")),
        "finegym_annotation_info_v1.1.json": (True, ()),
    }
    assert files["gym99_val_element.txt"].source.startswith("https://sdolivia.github.io/FineGym/")
    assert "99 classes" in dataset_entry("finegym99").description


INVALID_GYM = [
    ("gym99_train_element_v1.1.txt", "", r"v1\.1\.txt is empty"),
    ("gym99_train_element_v1.1.txt", f"{TURN} 3\n", r"v1\.1\.txt:1: label 3 is out of range, expected 0 to 2"),
    ("gym99_train_element_v1.1.txt", f"{TURN} 1\n{TURN[:-3]} 1\n", r"v1\.1\.txt:2: got '.*_0 1'; expected the id of"),
    ("gym99_train_element_v1.1.txt", f"{TURN}\n", r"v1\.1\.txt:1: got '.*'; expected the id of a sub-action and its"),
    ("gym99_train_element_v1.1.txt", f"{TURN} 1\n\n{TURN} 1\n", r"v1\.1\.txt:3: .* is already listed in .*1\.txt:1"),
    ("gym99_categories.txt", "", r"class 0 is missing"),
    ("gym99_categories.txt", CATEGORIES[:-30] + "\nClabel: 4; set", r"categories\.txt:4: got 'Clabel: 4; set'"),
    ("gym99_categories.txt", "Clabel: 1; set: 1; Glabel: 1; (VT) x\n", r"class 0 is missing; expected consecutive"),
    ("gym99_categories.txt", CATEGORIES + CATEGORIES, r"categories\.txt:4: class 0 is already listed"),
    ("gym99_categories.txt", "Clabel: 0; set: 5; Glabel: 1; (VT) x\n", r"txt:1: set 5 is not in .*set_categories\.txt"),
    ("set_categories.txt", "22 FX_turns\n", r"set_categories\.txt:1: got '22 FX_turns'; expected a set, such as"),
    ("finegym_annotation_info_v1.1.json", "[]", r"info_v1\.1\.json holds \[\]; expected an object"),
    ("finegym_annotation_info_v1.1.json", "{}", r"json: no event .*_E_002407_002435, listed in .*v1\.1\.txt:1"),
]


@pytest.mark.parametrize(("name", "text", "message"), INVALID_GYM)
def test_gym_invalid_file(name, text, message, gym, write_files):
    write_files(f"videos/{GYM}.mp4")
    (gym / "annotations" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        clips(gym)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"segments": None, "timestamps": [[1, 2]]}, "E_002407_002435 has no segment A_0003_0005, listed in .*txt:1"),
        ({"segments": {"A_0003_0005": {"timestamps": []}}}, r"of .*A_0003_0005 are \[\]; expected pairs of seconds"),
        ({"segments": {"A_0003_0005": {"timestamps": [[3, 3]]}}}, r"is from 3\.0 s to 3\.0 s; expected 0 <= start"),
        ({"segments": {"A_0003_0005": {"timestamps": [[1, 2]]}}}, "timestamps of .*E_002407_002435 are None"),
    ],
)
def test_gym_invalid_entry(event, message, gym, write_files):
    write_files(f"videos/{GYM}.mp4")
    write_files({"annotations/finegym_annotation_info_v1.1.json": json.dumps({GYM: {"E_002407_002435": event}})})
    with pytest.raises(ValueError, match=message):
        clips(gym)


VOCABULARY = [
    ["Back", "15som", "05Twis", "FREE"],
    ["Back", "Dive", "NoTwis", "PIKE"],
    ["Inward", "1som", "1Twis", "STR"],
]


def entry(name, label, **more):
    return {"vid_name": name, "label": label, "start_frame": 0, "end_frame": 48, **more}


@pytest.fixture
def diving(write_files):
    """Diving48's annotation files."""
    files = {
        "Diving48_vocab.json": VOCABULARY,
        "Diving48_V2_train.json": [entry("-mmq0PT-u8k_00155", 0), entry("_8Vy3dlHg2w_00000", 2)],
        "Diving48_V2_test.json": [entry("01Me6s6OnSk_00012", 1)],
    }
    return write_files({name: json.dumps(content) for name, content in files.items()})


@pytest.mark.parametrize("directory", ["rgb", "videos"])
def test_diving_split(directory, diving, write_files, relative_paths):
    write_files(f"{directory}/-mmq0PT-u8k_00155.webm")
    train, test = open_dataset("diving48", diving, "train"), open_dataset("diving48", diving, "test")
    assert relative_paths(train) == [f"{directory}/-mmq0PT-u8k_00155.webm", f"{directory}/_8Vy3dlHg2w_00000.mp4"]
    assert train.labels == (0, 2)
    assert all(clip.start is None and clip.end is None for clip in train), "frame numbers refer to the broadcast"
    assert (relative_paths(test), test.labels) == ([f"{directory}/01Me6s6OnSk_00012.mp4"], (1,))
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


def test_diving_annotations_directory_and_frames(diving, relative_paths):
    (diving / "annotations").mkdir()
    for path in list(diving.glob("*.json")):
        path.rename(diving / "annotations" / path.name)
    (diving / "rawframes/_8Vy3dlHg2w_00000").mkdir(parents=True)
    assert relative_paths(open_dataset("diving48", diving, "train"))[1] == "rawframes/_8Vy3dlHg2w_00000"
    assert [file.found for file in required_files("diving48", diving)] == [True] * 3


def test_dive_prompt():
    for tokens, text in (
        (("Reverse", "25som", "15Twis", "TUCK"), "reverse dive, 2.5 somersaults, 1.5 twists, tuck position"),
        (("Forward", "3som", "2Twis", "PIKE"), "forward dive, 3 somersaults, 2 twists, pike position"),
        (("Forward", "Dive", "NoTwis", "STR"), "forward dive, straight position"),
    ):
        assert dive_prompt(tokens) == text


LIST, WORDS = "Diving48_V2_train.json", "Diving48_vocab.json"
INVALID_DIVING = [
    (LIST, "{}", r"train\.json holds \{\}; expected a list"),
    (LIST, json.dumps([entry("-mmq0PT-u8k_00155", 3)]), r"entry 0 \(-mmq0PT-u8k_00155\): label 3 is out of range"),
    (LIST, json.dumps([entry("short_00155", 0)]), r"train\.json: entry 0 is .*; expected a video and its label"),
    (LIST, "[3]", r"train\.json: entry 0 is 3; expected"),
    (LIST, json.dumps([entry("-mmq0PT-u8k_00155", 0)] * 2), r"entry 1: -mmq0PT-u8k_00155 is already listed"),
    (WORDS, '[["Back", "15som"]]', r"vocab\.json: class 0 is \['Back', '15som'\]; expected four tokens"),
    (WORDS, '[["Up", "15som", "NoTwis", "FREE"]]', r"class 0: take-off is 'Up'; expected one of Back, Forward, Inward"),
    (WORDS, '[["Back", "155som", "NoTwis", "FREE"]]', r"class 0: somersaults are '155som'; expected Dive or a number"),
    (WORDS, '[["Back", "Dive", "05twis", "FREE"]]', r"class 0: twists are '05twis'; expected NoTwis or a number"),
    (WORDS, '[["Back", "Dive", "NoTwis", "free"]]', r"class 0: position is 'free'; expected one of PIKE, TUCK, FREE"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "message"), INVALID_DIVING)
def test_diving_invalid_file(name, text, message, diving):
    (diving / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset("diving48", diving, "train")
