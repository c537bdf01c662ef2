import pytest

from art.data.datasets.path_list import list_splits, open_list


def write(root, **files):
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")


def paths(clip_set):
    return [clip_set.relative_path(i) for i in range(len(clip_set))]


def test_spaces_and_commas(tmp_path):
    write(tmp_path, train__txt="a.mp4 0\n\nair drumming/b.mp4 2\nc.mp4,1\nd, e.mp4,  3\n/abs/f.mp4\t0\n")
    train = open_list(tmp_path, "train")
    assert paths(train) == ["a.mp4", "air drumming/b.mp4", "c.mp4", "d, e.mp4", "/abs/f.mp4"]
    assert train.labels == (0, 2, 1, 3, 0)
    assert (train.name, train.split, train.mirror) == ("list", "train", None)


def test_folders_of_frames_with_their_number(tmp_path):
    write(tmp_path, train__txt="frames/182040 58 3\nframes/7 0\nframes/my 9 1\nframes/clip.mp4 9 1\n")
    (tmp_path / "frames/my 9").mkdir(parents=True)
    assert paths(open_list(tmp_path, "train")) == ["frames/182040", "frames/7", "frames/my 9", "frames/clip.mp4"]


def test_names_of_lists(tmp_path):
    write(tmp_path, k400_train_list_videos__txt="a.mp4 0\n", val__csv="b.mp4,1\n", kinetics_val_list__txt="c.mp4 1\n")
    assert list_splits(tmp_path) == ("train", "val")
    assert paths(open_list(tmp_path, "train")) == ["a.mp4"]
    assert paths(open_list(tmp_path, "val")) == ["b.mp4"], "the exact name counts"
    with pytest.raises(ValueError, match=r"lists of split 'test': none; expected test\.txt, or one with 'test' in its"):
        open_list(tmp_path, "test")
    write(tmp_path, sthv2_train_list__txt="a.mp4 0\n")
    with pytest.raises(ValueError, match=r"k400_train_list_videos\.txt, sthv2_train_list\.txt; expected train\.txt"):
        open_list(tmp_path, "train")


def test_class_names(tmp_path):
    write(tmp_path, train__txt="a.mp4 1\n", val__txt="b.mp4 3\n")
    assert open_list(tmp_path, "train").class_names == ("0", "1", "2", "3"), "every split agrees"
    write(tmp_path, labels__csv='id,name\n1,"b, c"\n0,a\n2,d\n3,e\n')
    assert open_list(tmp_path, "train").class_names == ("a", "b, c", "d", "e")
    write(tmp_path, classes__txt="w\nx\ny\nz\n", mirror__csv="class,mirror\nw,x\n")
    train = open_list(tmp_path, "train")
    assert train.class_names == ("w", "x", "y", "z")
    assert train.mirror == (1, 0, 2, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train__txt": ""}, r"train\.txt is empty"),
        ({"train__txt": "a.mp4 0\nb.mp4\n"}, r"train\.txt:2: is 'b\.mp4'; expected a path and a class index, such as"),
        ({"train__txt": "path,label\n"}, r"train\.txt:1: is 'path,label'; .* are the data set 'csv'"),
        ({"train__txt": "a.mp4 -1\n"}, r"train\.txt:1: label -1 is out of range, expected 0 to 0"),
        (
            {"train__txt": "a.mp4 2\n", "classes__txt": "x\ny\n"},
            r"train\.txt:1: label 2 is out of range, expected 0 to 1",
        ),
        ({"train__txt": "a.mp4 0\nb.mp4 0\na.mp4 1\n"}, r"train\.txt:3: a\.mp4 is there already, in line 1"),
        (
            {"train__txt": "a.mp4 0\n", "x__csv": "id,name\n1,a\n"},
            r"x\.csv:2: label 1 is out of range, expected 0 to 0",
        ),
        ({"train__txt": "a.mp4 0\n", "x__csv": "id,name\n0,a\n0,b\n"}, r"x\.csv:3: class 0 is there already, as 'a'"),
        ({"train__txt": "a 0\n", "x__csv": "id,name\n0,a\n", "y__csv": "id,name\n0,a\n"}, "x.csv, y.csv; expected one"),
    ],
)
def test_what_is_wrong_is_named(files, message, tmp_path):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        open_list(tmp_path, "train")
