import pytest

from art.data.datasets.ntu import CLASS_NAMES, XSUB60_TRAIN, XSUB120_TRAIN, Recording, parse_name, prompt_of
from art.data.datasets.registry import open_dataset


def video(setup=1, camera=1, performer=1, replication=1, action=1):
    return f"S{setup:03d}C{camera:03d}P{performer:03d}R{replication:03d}A{action:03d}_rgb.avi"


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def names(clip_set):
    return {clip.path.name: clip.label for clip in clip_set}


def test_published_facts():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 120
    for action, name in {
        1: "drink water",
        60: "walking apart from each other",
        61: "put on headphone",
        120: "finger",
    }.items():
        assert CLASS_NAMES[action - 1].startswith(name)
    assert (len(XSUB60_TRAIN), len(XSUB120_TRAIN)) == (20, 53), "half of the performers train"
    assert max(XSUB60_TRAIN) == 38
    assert max(XSUB120_TRAIN) == 103
    assert {p for p in XSUB120_TRAIN if p <= 40} == XSUB60_TRAIN


def test_prompts():
    assert prompt_of("standing up (from sitting position).") == "standing up"
    assert prompt_of("use a fan (with hand or paper)/feeling warm. .") == "use a fan/feeling warm"
    assert (
        prompt_of("support somebody with one's hand (someone is sick, help him)") == "support somebody with one's hand"
    )
    prompts = [prompt_of(name) for name in CLASS_NAMES]
    assert len(set(prompts)) == 120
    assert not any(mark in prompt for prompt in prompts for mark in "().")


def test_a_name():
    assert parse_name("S001C002P003R002A013_rgb") == parse_name("S001C002P003R002A013") == Recording(1, 2, 3, 2, 13)
    for other in ("S001C002P003R002A13_rgb", "S001C002P003R002A013_ir", "xS001C002P003R002A013"):
        assert parse_name(other) is None


@pytest.mark.parametrize("folder", ["nturgb+d_rgb", "rgb", "videos", "."])
def test_protocols_of_60(folder, tmp_path):
    touch(
        tmp_path / folder,
        video(1, 1, 1, 1, 13), video(2, 2, 3, 2, 60), video(17, 3, 38, 1, 1), video(18, 2, 45, 1, 61), "notes.txt"
    )  # fmt: skip
    train, test = open_dataset("ntu60_xsub", tmp_path, "train"), open_dataset("ntu60_xsub", tmp_path, "test")
    assert names(train) == {video(1, 1, 1, 1, 13): 12, video(17, 3, 38, 1, 1): 0}
    assert names(test) == {video(2, 2, 3, 2, 60): 59}
    assert names(open_dataset("ntu60_xview", tmp_path, "train")) == {
        video(2, 2, 3, 2, 60): 59,
        video(17, 3, 38, 1, 1): 0,
    }
    assert names(open_dataset("ntu60_xview", tmp_path, "test")) == {video(1, 1, 1, 1, 13): 12}
    assert train.class_names == CLASS_NAMES[:60]
    assert train.prompts[8] == "standing up"
    assert train.mirror == tuple(range(60))


def test_protocols_of_120(tmp_path):
    touch(
        tmp_path,
        video(1, performer=1),
        video(2, performer=3),
        video(31, performer=100),
        video(32, performer=106, action=120),
    )
    assert names(open_dataset("ntu120_xsub", tmp_path, "train")) == {
        video(1, performer=1): 0,
        video(31, performer=100): 0,
    }
    assert len(open_dataset("ntu120_xsub", tmp_path, "test")) == 2
    assert names(open_dataset("ntu120_xset", tmp_path, "train")) == {
        video(2, performer=3): 0, video(32, performer=106, action=120): 119
    }  # fmt: skip
    assert len(open_dataset("ntu120_xset", tmp_path, "test")) == 2
    assert open_dataset("ntu120_xset", tmp_path, "test").class_names == CLASS_NAMES


def test_other_suffixes_and_frames(tmp_path):
    touch(tmp_path / "rgb", "S001C001P001R001A001.mp4")
    touch(tmp_path / "rgb" / "S001C001P001R002A001", "00001.jpg")
    assert set(names(open_dataset("ntu60_xsub", tmp_path, "train"))) == {
        "S001C001P001R001A001.mp4",
        "S001C001P001R002A001",
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no video of NTU RGB"),
        (
            ["S001C002P003R002A013_ir.avi"],
            r"A013_ir\.avi: is no name of NTU RGB\+D; expected such as S001C002P003R002A013",
        ),
        (["x.mp4"], r"x\.mp4: is no name of NTU"),
        ([video(action=61)], r"A061_rgb\.avi: action is 61; expected 1 to 60 in ntu60_xsub"),
        ([video(action=0)], "action is 0; expected 1 to 60"),
        ([video(performer=41)], "performer is 41; expected 1 to 40"),
        ([video(camera=4)], "camera is 4; expected 1 to 3"),
        ([video(replication=3)], "replication is 3; expected 1 to 2"),
        (
            [video(), "S001C001P001R001A001.mp4"],
            r"A001_rgb\.avi: is there already, as S001C001P001R001A001\.mp4; remove one",
        ),
    ],
)
def test_what_does_not_fit_is_named(files, message, tmp_path):
    touch(tmp_path / "rgb", *files)
    with pytest.raises(ValueError, match=message):
        open_dataset("ntu60_xsub", tmp_path, "train")
