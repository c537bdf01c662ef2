import pytest

from art.data.datasets.registry import open_dataset, required_files

HEADER = "label,youtube_id,time_start,time_end,split"
TRAIN = f'{HEADER},is_cc\n"air drumming",_dbcJuKJQNs,40,50,train,0\nabseiling,-3B32lodo2M,59,69,train,1\n'
VAL = f"{HEADER}\nair drumming,--6bmFAPQaA,7,17,validate\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "val.csv").write_text(VAL)
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\n--6bmFAPQaB,7,17,test\n")
    return tmp_path


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def paths(clip_set):
    return [clip_set.relative_path(i) for i in range(len(clip_set))]


DRUMS, ABSEIL = "_dbcJuKJQNs_000040_000050.mp4", "-3B32lodo2M_000059_000069.mp4"


@pytest.mark.parametrize(
    ("folder", "drums", "abseil"),
    [
        ("train", "", ""),
        ("train", "air drumming/", "abseiling/"),
        ("videos_train", "air_drumming/", "abseiling/"),
        ("train", "class 2/", "class 1/"),
        ("kinetics-400_train", "", ""),
        ("videos", "", ""),
    ],
)
def test_where_videos_lie(folder, drums, abseil, root):
    files = [f"{folder}/{drums}{DRUMS}", f"{folder}/{abseil}{ABSEIL}".replace(".mp4", ".mkv")]
    touch(root, *files)
    train = open_dataset("kinetics400", root, "train")
    assert paths(train) == files
    assert train.labels == (1, 0), "the classes are sorted"


def test_every_split_has_the_classes_of_training(root):
    touch(root, "validate/x.txt")
    val = open_dataset("kinetics400", root, "val")
    assert val.class_names == open_dataset("kinetics400", root, "train").class_names == ("abseiling", "air drumming")
    assert (val.name, val.split, val.labels, val.prompts) == ("kinetics400", "val", (1,), val.class_names)
    assert val.mirror == (0, 1)
    assert all(clip.start is None for clip in val)
    with pytest.raises(FileNotFoundError, match=r"train\.csv is not there"):
        (root / "train.csv").unlink()
        open_dataset("kinetics400", root, "val")


def test_missing_videos_are_expected_beside_the_others(root):
    assert paths(open_dataset("kinetics600", root, "val"))[0].startswith("val/")
    touch(root, "train/air_drumming/x.mp4")
    assert paths(open_dataset("kinetics600", root, "train")) == [f"train/air_drumming/{DRUMS}", f"train/{ABSEIL}"]


def test_tables_in_annotations_and_of_other_names(root):
    (root / "annotations").mkdir()
    (root / "train.csv").rename(root / "annotations/kinetics-600_train.csv")
    (root / "val.csv").rename(root / "annotations/validate.txt")
    assert len(open_dataset("kinetics600", root, "val")) == 1
    found = {file.splits: (file.found, file.path.name) for file in required_files("kinetics600", root)}
    assert found == {
        ("train", "val", "test"): (True, "kinetics-600_train.csv"),
        ("val",): (True, "validate.txt"),
        ("test",): (True, "test.csv"),
    }


def test_the_test_table_has_no_labels(root):
    with pytest.raises(ValueError, match=r"test\.csv has no column 'label', and a clip without .* use another split"):
        open_dataset("kinetics400", root, "test")
    (root / "test.csv").write_text(VAL)
    assert open_dataset("kinetics400", root, "test").labels == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"val\.csv is empty; expected the header 'youtube_id,time_start,time_end'"),
        (f"{HEADER}\n", r"val\.csv lists no clips"),
        ("label;youtube_id\n", r"val\.csv:1: the header is 'label;youtube_id'"),
        (f"{HEADER}\nair drumming,--6bmFAPQaA,7\n", r"val\.csv:2: has 3 values, expected 5"),
        (
            f"{HEADER}\nair druming,--6bmFAPQaA,7,17,val\n",
            r"val\.csv:2: label 'air druming' is no class of .*train\.csv; did you",
        ),
        (f"{HEADER}\n,--6bmFAPQaA,7,17,val\n", r"val\.csv:2: label is empty"),
        (f"{HEADER}\nabseiling,--6bmFAP,7,17,val\n", r"val\.csv:2: youtube_id is '--6bmFAP'; expected 11 letters"),
        (f"{HEADER}\nabseiling,--6bmFAPQaA,7.5,17,val\n", r"val\.csv:2: time_start is '7\.5'; expected whole seconds"),
        (f"{HEADER}\nabseiling,--6bmFAPQaA,7,,val\n", r"val\.csv:2: time_end is ''; expected whole seconds"),
        (f"{HEADER}\nabseiling,--6bmFAPQaA,17,7,val\n", r"val\.csv:2: the clip from 17 s to 7 s has no duration"),
        (VAL + VAL[len(HEADER) + 1 :], r"val\.csv:3: --6bmFAPQaA_000007_000017 is there already, in .*val\.csv:2"),
    ],
)
def test_a_wrong_line_is_named(text, message, root):
    (root / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset("kinetics400", root, "val")
