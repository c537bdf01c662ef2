import json

import pytest

from art.data.datasets.finegym import subaction_ids
from art.data.datasets.registry import dataset_entry, open_dataset, required_files

GYM = "-_LtLS9_rO-"  # an id may hold both and begin with either
TURN = f"{GYM}_E_002407_002435_A_0003_0005"
VAULT = "0LtLS9wROrk_E_000147_000152_A_0000_0005"
LEAP = f"{GYM}_E_002407_002435_A_0010_0012"
VAL = "A0xAXXysHUo_E_002184_002237_A_0035_0036"
CATEGORIES = """Clabel:   0; set:  1; Glabel:   1; (VT) round-off, flic-flac with 0.5 turn on, 0.5 turn to salto off
Clabel:   1; set: 22; Glabel: 170; (FX) 1 turn in back attitude, knee of free leg at horizontal
Clabel:   2; set: 21; Glabel: 121; (FX) switch leap (leap forward with leg change to cross split)
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    files = {
        "gym99_categories.txt": CATEGORIES,
        "set_categories.txt": "set: 1; VT\nset: 21; FX_leap_jump_hop\nset: 22; FX_turns\n",
        "gym99_train_element_v1.1.txt": f"{TURN} 1\n{VAULT} 0\n{LEAP} 2\n",
        "gym99_train_element_v1.0.txt": f"{TURN} 1\n",
        "gym99_val_element.txt": f"{VAL} 2\n",
    }
    for name, text in files.items():
        (tmp_path / "annotations" / name).write_text(text)
    write_times(tmp_path, TIMES)
    return tmp_path


TIMES = {
    GYM: {
        "E_002407_002435": {
            "event": 2,
            "segments": {
                "A_0003_0005": {"stages": 1, "timestamps": [[3.45, 5.64]]},
                "A_0010_0012": {"stages": 1, "timestamps": [[10.5, 12.25]]},
            },
            "timestamps": [[2407.32, 2435.28]],
        },
        "E_003000_003010": {"event": 3, "segments": None, "timestamps": [[3000.0, 3010.0]]},
    },
    "0LtLS9wROrk": {
        "E_000147_000152": {
            "event": 1,
            "segments": {"A_0000_0005": {"stages": 3, "timestamps": [[0.25, 1.5], [1.5, 2.75], [2.75, 5.0]]}},
            "timestamps": [[147.0, 152.5]],
        }
    },
}


def write_times(root, times):
    (root / "annotations/finegym_annotation_info_v1.1.json").write_text(json.dumps(times))


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def clips(root, split="train", name="finegym99"):
    clip_set = open_dataset(name, root, split)
    return [(clip_set.relative_path(i), clip.label, clip.start, clip.end) for i, clip in enumerate(clip_set)]


def test_a_file_for_each_sub_action(root):
    touch(root, f"subactions/{TURN}.mp4", f"subactions/{VAULT}.mkv", f"rawframes/{LEAP}/img_00001.jpg")
    assert clips(root) == [
        (f"subactions/{TURN}.mp4", 1, None, None),
        (f"subactions/{VAULT}.mkv", 0, None, None),
        (f"rawframes/{LEAP}", 2, None, None),
    ]


def test_whole_videos_are_cut(root):
    touch(root, f"videos/{GYM}.mp4", "videos/0LtLS9wROrk.webm")
    turn, vault, leap = clips(root)
    assert turn == (f"videos/{GYM}.mp4", 1, pytest.approx(2410.77), pytest.approx(2412.96))
    assert vault == ("videos/0LtLS9wROrk.webm", 0, 147.25, 152.0), "a vault spans its three stages"
    assert leap == (f"videos/{GYM}.mp4", 2, pytest.approx(2417.82), pytest.approx(2419.57))


def test_events_are_cut_and_the_shortest_file_counts(root):
    touch(root, f"videos/{GYM}.mp4", f"events/{GYM}_E_002407_002435.mp4", f"subactions/{LEAP}.mp4")
    assert clips(root) == [
        (f"events/{GYM}_E_002407_002435.mp4", 1, 3.45, 5.64),
        (f"subactions/{VAULT}.mp4", 0, None, None),
        (f"subactions/{LEAP}.mp4", 2, None, None),
    ]


def test_what_is_missing_stays_in_the_set(root):
    (root / "annotations/finegym_annotation_info_v1.1.json").unlink()
    assert clips(root, "val") == [(f"subactions/{VAL}.mp4", 2, None, None)]
    touch(root, "clips/other.mp4")
    assert clips(root, "val") == [(f"clips/{VAL}.mp4", 2, None, None)]
    touch(root, f"{GYM}.mp4")
    with pytest.raises(FileNotFoundError, match=r"finegym_annotation_info_v1\.1\.json is not there; .* https://sdol"):
        clips(root)


def test_classes_prompts_groups_and_mirror(root):
    train = open_dataset("finegym99", root, "train")
    assert (train.name, train.split) == ("finegym99", "train")
    assert train.class_names[1] == "(FX) 1 turn in back attitude, knee of free leg at horizontal"
    assert train.prompts == (
        "round-off, flic-flac with 0.5 turn on, 0.5 turn to salto off, vault",
        "1 turn in back attitude, knee of free leg at horizontal, floor exercise, turns",
        "switch leap (leap forward with leg change to cross split), floor exercise, leap jump hop",
    )
    assert train.groups == ("VT", "FX_turns", "FX_leap_jump_hop")
    assert train.mirror == (0, 1, 2)
    assert open_dataset("finegym99", root, "val").class_names == train.class_names


def test_one_description_in_two_sets(root):
    (root / "annotations/set_categories.txt").write_text("set: 33; BB_flight_salto\nset: 35; BB_dismounts\n")
    (root / "annotations/gym99_categories.txt").write_text(
        "Clabel: 1; set: 35; Glabel: 2; (BB) salto tucked\nClabel: 0; set: 33; Glabel: 1; (BB) salto tucked\n"
        "Clabel: 2; set: 33; Glabel: 3; (UB) salto tucked\n"
    )
    val = open_dataset("finegym99", root, "val")
    assert val.class_names == (
        "(BB) salto tucked [BB_flight_salto]",
        "(BB) salto tucked [BB_dismounts]",
        "(UB) salto tucked",
    )
    assert val.prompts[1] == "salto tucked, balance beam, dismounts"


def test_other_lists(root):
    assert len(clips(root, name="finegym99_v1.0")) == 1
    for name in ("gym288_train_element_v1.1.txt", "gym288_val_element.txt"):
        (root / "annotations" / name).write_text(f"{VAL} 0\n")
    with pytest.raises(FileNotFoundError, match=r"gym288_categories\.txt is not there"):
        clips(root, name="finegym288")
    (root / "annotations/gym288_categories.txt").write_text(CATEGORIES)
    assert len(clips(root, name="finegym288")) == 1
    with pytest.raises(FileNotFoundError, match=r"gym288_train_element_v1\.0\.txt is not there"):
        clips(root, name="finegym288_v1.0")


def test_ids_name_the_files_to_be_cut(root):
    assert subaction_ids(root, "train") == (TURN, VAULT, LEAP)


def test_what_is_known_before_reading(root):
    (root / "annotations/gym99_val_element.txt").unlink()
    files = {file.path.name: file for file in required_files("finegym99", root)}
    assert {name: (file.found, file.splits) for name, file in files.items()} == {
        "gym99_train_element_v1.1.txt": (True, ("train",)),
        "gym99_val_element.txt": (False, ("val",)),
        "gym99_categories.txt": (True, ("train", "val")),
        "set_categories.txt": (True, ("train", "val")),
        "finegym_annotation_info_v1.1.json": (True, ()),
    }
    assert files["gym99_val_element.txt"].source.startswith("https://sdolivia.github.io/FineGym/")
    assert "99 classes" in dataset_entry("finegym99").description


WRONG = [
    ("gym99_train_element_v1.1.txt", "", r"v1\.1\.txt is empty"),
    ("gym99_train_element_v1.1.txt", f"{TURN} 3\n", r"v1\.1\.txt:1: label 3 is out of range, expected 0 to 2"),
    ("gym99_train_element_v1.1.txt", f"{TURN} x\n", r"v1\.1\.txt:1: label is 'x'; expected a whole number, 0 to 2"),
    ("gym99_train_element_v1.1.txt", f"{TURN} 1\n{TURN[:-3]} 1\n", r"v1\.1\.txt:2: is '.*_0 1'; expected the id of"),
    ("gym99_train_element_v1.1.txt", f"{TURN}\n", r"v1\.1\.txt:1: is '.*'; expected the id of a sub-action and its"),
    ("gym99_train_element_v1.1.txt", f"{TURN} 1\n\n{TURN} 1\n", r"v1\.1\.txt:3: .* is there already, in .*1\.txt:1"),
    ("gym99_categories.txt", "", r"class 0 is missing"),
    ("gym99_categories.txt", CATEGORIES[:-30] + "\nClabel: 4; set", r"categories\.txt:4: is 'Clabel: 4; set'"),
    ("gym99_categories.txt", "Clabel: 1; set: 1; Glabel: 1; (VT) x\n", r"class 0 is missing; expected classes from 0"),
    ("gym99_categories.txt", CATEGORIES + CATEGORIES, r"categories\.txt:4: class 0 is there already"),
    ("gym99_categories.txt", "Clabel: 0; set: 5; Glabel: 1; (VT) x\n", r"txt:1: set 5 is not in .*set_categories\.txt"),
    ("set_categories.txt", "22 FX_turns\n", r"set_categories\.txt:1: is '22 FX_turns'; expected a set, such as"),
    ("finegym_annotation_info_v1.1.json", '{"0LtLS9wROrk": {"E_', r"info_v1\.1\.json:1: is no JSON.*downloaded whole"),
    ("finegym_annotation_info_v1.1.json", "[]", r"info_v1\.1\.json holds \[\]; expected an object"),
    ("finegym_annotation_info_v1.1.json", "{}", r"json: has no event .*_E_002407_002435, which .*v1\.1\.txt:1 lists"),
]


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_a_wrong_file_is_named_with_its_line(name, text, message, root):
    touch(root, f"videos/{GYM}.mp4")
    (root / "annotations" / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        clips(root)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"segments": None, "timestamps": [[1, 2]]}, "E_002407_002435 has no segment A_0003_0005, which .*txt:1 lists"),
        ({"segments": {"A_0003_0005": {"timestamps": []}}}, r"of .*A_0003_0005 are \[\]; expected pairs of seconds"),
        ({"segments": {"A_0003_0005": {"timestamps": [[3, 3]]}}}, r"lasts from 3\.0 s to 3\.0 s; expected 0 <= start"),
        ({"segments": {"A_0003_0005": {"timestamps": [[1, 2]]}}}, "timestamps of .*E_002407_002435 are None"),
    ],
)
def test_a_wrong_entry_is_named(event, message, root):
    touch(root, f"videos/{GYM}.mp4")
    write_times(root, {GYM: {"E_002407_002435": event}})
    with pytest.raises(ValueError, match=message):
        clips(root)
