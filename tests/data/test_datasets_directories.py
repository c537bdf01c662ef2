"""Custom datasets in class directories, the split that is made for them, and checks across splits."""

import logging
import os

import pytest

from art.data.datasets.base import Clip, ClipSet
from art.data.datasets.directories import directory_splits, open_directory, split_directory
from art.data.datasets.splits import check_splits, find_split, read_splits, split_clips, write_splits


@pytest.fixture
def directory(write_files):
    train = ("train/run/b.mp4", "train/run/a.AVI", "train/long_jump/c.webm")
    return write_files(*train, "test/run/d.mkv", "test/throw/e.mov")


def test_class_directories(directory, relative_paths):
    train, test = open_directory(directory, "train"), open_directory(directory, "test")
    assert train.class_names == test.class_names == ("long_jump", "run", "throw")
    assert train.prompts == ("long jump", "run", "throw")
    assert relative_paths(train) == ["train/long_jump/c.webm", "train/run/a.AVI", "train/run/b.mp4"]
    assert relative_paths(test) == ["test/run/d.mkv", "test/throw/e.mov"]
    assert (train.labels, test.labels) == ((0, 1, 1), (1, 2))
    assert (train.name, train.split, train.root, train.mirror) == ("folder", "train", directory, None)


def test_class_directories_with_classes_and_mirror(directory, write_files):
    write_files({"classes.txt": "throw\nrun\nlong_jump\n\n"})
    assert open_directory(directory, "train").class_names == ("throw", "run", "long_jump")
    assert open_directory(directory, "train").labels == (2, 1, 1)
    write_files({"mirror.csv": "class,mirror\nrun,throw\n"})
    assert open_directory(directory, "train").mirror == (1, 0, 2)
    write_files({"mirror.csv": "class,mirror\nrun,throw\nlong_jump,throw\n"})
    with pytest.raises(ValueError, match="mirror must be its own inverse"):
        open_directory(directory, "train")
    write_files({"classes.txt": "throw\nrun\nlong_jumps\n"})
    with pytest.raises(ValueError, match=r"train/long_jump: 'long_jump' is not in .*did you mean 'long_jumps'\?"):
        open_directory(directory, "train")


def test_other_files_and_hidden_files(directory, write_files, caplog):
    write_files("train/run/.DS_Store", "train/run/notes.txt", ".cache/x", "classes.md")
    with caplog.at_level(logging.WARNING):
        assert len(open_directory(directory, "train")) == 3
    assert "skipping 1 file in" in caplog.text
    assert "notes.txt" in caplog.text
    assert directory_splits(directory) == ("test", "train")


def test_directories_of_frames_are_clips(directory, write_files, relative_paths):
    write_files("train/run/c/00001.jpg", "train/run/c/00002.jpg", "train/throw/d/img_00001.PNG")
    train = open_directory(directory, "train")
    assert relative_paths(train)[1:] == ["train/run/a.AVI", "train/run/b.mp4", "train/run/c", "train/throw/d"]
    assert train.labels == (0, 1, 1, 1, 2)


@pytest.mark.parametrize("clips", [3, 30])
def test_number_of_system_calls_is_independent_of_the_clips(clips, write_files, monkeypatch):
    root = write_files(*(name for i in range(clips) for name in (f"train/a/{i}.mp4", f"train/b/{i}/00001.jpg")))
    calls = []
    for name in ("scandir", "stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *path, real=real, **more: calls.append(path) or real(*path, **more))
    assert len(open_directory(root, "train")) == 2 * clips
    # The root and the split twice (splits; classes of all), each class once, and the first directory of frames.
    assert len([path for path in calls if "train" in str(path)]) <= 7
    assert len(calls) <= 12


def test_invalid_class_directories(directory, write_files):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_directory(directory / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"d\.mkv is not a directory"):
        open_directory(directory / "test/run/d.mkv", "train")
    with pytest.raises(ValueError, match=r"has no split 'val'; found: test, train; expected .*/val/<class>/<clip>"):
        open_directory(directory, "val")
    write_files("none/run/readme.txt")
    with pytest.raises(ValueError, match=r"none has no clips in 1 class directories \(1 other files\)"):
        open_directory(directory, "none")


def test_subdirectories_of_classes_at_any_depth(write_files, relative_paths):
    videos = [f"train/run/{name}" for name in ("1.mp4", "anna/1.mp4", "ben/day 2/2.MTS", "ben/day 2/3.m4v")]
    frames = [f"train/walk/{name}" for name in ("anna/clip1", "anna/clip2", "ben/clip1")]
    root = write_files(*videos, *(f"{clip}/{n}.jpg" for clip in frames for n in (1, 2)), "train/walk/anna/notes.txt")
    write_files("train/walk/carl/.DS_Store", "train/walk/ben/clip1/._1.jpg", "train/run/anna/thumb.jpg")
    (root / "train/run/ben/all").symlink_to(root / "train/run")
    train = open_directory(root, "train")
    assert relative_paths(train) == [*videos, *frames]
    assert train.labels == (0, 0, 0, 0, 1, 1, 1)


def test_system_files_are_no_clips_and_not_reported(write_files, relative_paths, caplog):
    junk = ["Thumbs.db", "train/run/Thumbs.db", "train/run/desktop.ini", "train/run/._1.mp4", ".cache/run/1.mp4"]
    root = write_files("train/run/1.mp4", *junk, "__MACOSX/train/run/1.mp4", "@eaDir/run/1.mp4", "train/__MACOSX/1.mp4")
    assert directory_splits(root) == ("train",)
    assert relative_paths(open_directory(root, "train")) == ["train/run/1.mp4"]
    assert caplog.text == ""


@pytest.mark.parametrize("spelled", [("Train", "Test"), ("TRAINING", "testing"), ("train", "val"), ("Training", "Dev")])
def test_spelling_of_splits(spelled, write_files, relative_paths):
    first, second = (f"{name}/run/{i}.mp4" for i, name in enumerate(spelled))
    root = write_files(first, second)
    other = "val" if spelled[1].lower() in ("val", "dev") else "test"
    assert directory_splits(root) == tuple(sorted(("train", other)))
    assert relative_paths(open_directory(root, "train")) == [first]
    test = open_directory(root, "test")
    assert (relative_paths(test), test.split) == ([second], other), "val without a test split"
    assert open_directory(root, spelled[1]).split == spelled[1]
    write_files(f"{spelled[0].swapcase()}/run/3.mp4")
    with pytest.raises(ValueError, match=r"are both the split 'train'; move them together"):
        open_directory(root, "train")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train_set", "test_set"), ("trainset", "testset"), ("TrainSet", "ValSet"), ("training-data", "Test Data"),
        ("01_train", "02_validation"), ("train.videos", "test.videos"), ("TRAIN_CLIPS", "dev"), ("data_train", "test"),
    ],
)  # fmt: skip
def test_variants_of_split_directories(train, test, write_files, relative_paths):
    root = write_files(*(f"{split}/{name}/1.mp4" for split in (train, test) for name in ("a", "b")))
    assert len(directory_splits(root)) == 2 and "train" in directory_splits(root)
    for split, directory in (("train", train), ("test", test), (train, train)):
        clips = open_directory(root, split)
        assert clips.class_names == ("a", "b")
        assert relative_paths(clips) == [f"{directory}/a/1.mp4", f"{directory}/b/1.mp4"]


@pytest.mark.parametrize(
    "names", [("test_fold1", "train_fold1"), ("ucf_train", "ucf_val"), ("test1", "train1", "train2")]
)
def test_unrecognized_names_of_split_directories(names, write_files):
    root = write_files(*(f"{split}/{name}/1.mp4" for split in names for name in ("a", "b")))
    for read in (directory_splits, lambda root: open_directory(root, "train")):
        with pytest.raises(ValueError, match=rf"{names[0]}, .*{names[-1]} .*rename them to train, val or test"):
            read(root)
    write_files({"classes.txt": "\n".join(names)})  # they are classes, with directories of persons
    assert open_directory(root, "train").class_names == names


@pytest.mark.parametrize(
    "names", [("train_station", "bus"), ("test_tube", "train_ride"), ("contest", "latest", "trainers")]
)
def test_classes_with_a_split_in_their_names(names, write_files):
    root = write_files(*(f"{name}/{i}.mp4" for name in names for i in range(2)))
    assert open_directory(root, "train").class_names == tuple(sorted(names))


def test_directories_next_to_splits(write_files):
    root = write_files("train/run/1.mp4", "test/run/2.mp4", "unseen/run/3.mp4", "metadata/2024/x.json")
    assert directory_splits(root) == ("test", "train", "unseen")
    assert open_directory(root, "train").class_names == ("run",)
    root = write_files("vehicles/bus/1.mp4", "vehicles/bus/2.mp4", "vehicles/train/3.mp4", "vehicles/train/4.mp4")
    assert open_directory(root / "vehicles", "train").class_names == ("bus", "train"), "a class may be called train"
    write_files("only/train/run/1.mp4")
    with pytest.raises(ValueError, match=r"no split 'test'; found: train; .*hold out .*use .*/only/train as the root"):
        open_directory(root / "only", "test")


def test_directories_with_other_names_are_splits_if_requested(write_files):
    root = write_files("fold1/run/1.mp4", "fold2/run/2.mp4", "fold2/walk/3.mp4")
    clips = open_directory(root, "fold2")
    assert (clips.split, len(clips), clips.class_names) == ("fold2", 2, ("run", "walk"))


def made(root, **options):
    """The paths for training and for the test."""
    parts = [open_directory(root, split, **options) for split in ("train", "test")]
    assert parts[0].class_names == parts[1].class_names
    return [[part.relative_path(i) for i in range(len(part))] for part in parts]


def test_a_split_is_stratified_and_depends_on_the_names_only(write_files):
    counts = {"run": 50, "jump": 10, "sit": 2, "fall": 1}
    root = write_files(*(f"{name}/{i}.mp4" for name, count in counts.items() for i in range(count)))
    assert directory_splits(root) == ("test", "train")
    train, test = made(root)
    assert {name: sum(path.startswith(name) for path in test) for name in counts} == {
        "run": 10, "jump": 2, "sit": 1, "fall": 0,
    }  # fmt: skip
    assert len(train) + len(test) == 63 and not set(train) & set(test)
    assert made(root) == [train, test] != made(root, seed=1)
    assert len(made(root, test_fraction=0.5)[1]) == 31
    for path in root.rglob("*.mp4"):
        path.rename(path.with_suffix(".AVI"))
    assert made(root) == [[path.replace("mp4", "AVI") for path in part] for part in (train, test)]
    notes = split_directory(root).notes
    assert notes[0].startswith("no split directories: ") and "50 for training and 13 for the test" in notes[0]
    assert notes[1].startswith("1 of 4 classes have no test clips, such as 'fall'")


def test_a_split_keeps_subdirectories_together(write_files):
    people = ("anna", "ben", "carl", "dora", "emil")
    names = [f"{c}/{p if c == 'run' else p.title()}/{s}/{i}.mp4" for c in ("run", "walk") for p in people for s in "ab"
             for i in range(3)]  # fmt: skip
    root = write_files(*names, "walk/1.mp4", "walk/2.mp4")
    train, test = ({path.lower().split("/")[1] for path in part if path.count("/") > 1} for part in made(root))
    assert train | test == set(people) and not train & test
    assert len(test) == 1
    assert "clips of 5 subdirectories kept together" in split_directory(root).notes[0]


def test_subdirectories_are_ignored_if_each_class_has_one_only(write_files):
    root = write_files(*(f"{name}/{person}/{i}.mp4" for name, person in (("a", "x"), ("b", "y")) for i in range(5)))
    train, test = made(root)
    assert (len(train), len(test)) == (8, 2)
    assert "2 subdirectories, such as 'x', are in both train and test" in " ".join(split_directory(root).notes)


def test_a_class_keeps_training_clips_if_groups_are_large():
    groups = ["p", "p", "q", "q", "q", "r", "r", "r"]
    labels = [0, 1, 0, 0, 1, 1, 1, 2]
    assigned = split_clips([str(i) for i in range(8)], labels, groups, seed=0, test_fraction=0.2)
    train = {label for label, split in zip(labels, assigned, strict=True) if split == "train"}
    test = {group for group, split in zip(groups, assigned, strict=True) if split == "test"}
    assert train == {0, 1, 2}
    assert len(test) == 1 and "r" not in test, "all clips of class 2 are in r"
    with pytest.raises(ValueError, match="test_fraction must be above 0 and below 1, got 1"):
        split_clips(["a", "b"], [0, 0], [None, None], seed=0, test_fraction=1)


def test_a_saved_split_is_used_again(write_files, tmp_path):
    root = write_files(*(f"{name}/{i}.mp4" for name in ("run", "wálk") for i in range(5)), "wálk/ 6.mp4")
    split = split_directory(root, seed=3)
    table = tmp_path / "run.csv"
    write_splits(table, split.splits)
    assert read_splits(table) == split.splits
    before = made(root, table=table)
    assert before == made(root, seed=3)
    (root / "run/0.mp4").unlink()
    write_files("run/new.mp4")
    assert made(root, table=table) == before, "a removed clip is reported when it is read"
    notes = split_directory(root, table=table).notes
    assert "1 of 11 clips in" in notes[0] and "not used: 1 clip, such as run/new.mp4" in notes[1]
    (root / "splits.csv").write_bytes(table.read_bytes())
    assert made(root) == before
    (root / "splits.csv").unlink()
    other = write_files("other/a/1.mp4", "other/a/2.mp4", "other/b/1.mp4") / "other"
    assert made(other, table=table) == made(other), "the table belongs to other clips"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"splits\.csv is empty; expected the header 'split,path'"),
        ("split,path\n", r"splits\.csv lists no clips"),
        ("split,path\ntrain,\n", r"splits\.csv:2: path is empty"),
        ("split,path\nfold1,run/1.mp4\n", r"splits\.csv:2: split is 'fold1'; expected train or test"),
        ("split,path\ntrain,run/1.mp4\ntest,run//1.mp4\n", r"splits\.csv:3: 'run/1\.mp4' is already listed"),
        ("split,path\ntrain,../run/1.mp4\n", r"splits\.csv: path is '\.\./run/1\.mp4'; expected <class>/<clip>"),
        (
            "split,path\ntrain,run/1.mp4\n",
            r"no clips for the split 'test'; expected splits\.csv with rows of this split",
        ),
    ],
)
def test_invalid_saved_split(text, message, write_files):
    root = write_files("run/1.mp4", "run/2.mp4", "walk/1.mp4", {"splits.csv": text})
    with pytest.raises(ValueError, match=message):
        open_directory(root, "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["x/1.mp4", "train.csv"], r"only one class with clips, 'x'; .*train\.csv, use .*data\.name=csv"),
        (["1.mp4", "val.txt"], r"no clips in 0 directories; .* for the clips in val\.txt, use .*data\.name=list"),
        (["1.mp4"], r"has no clips in 0 directories; expected .*/<class>/<clip> or .*/<split>/<class>/<clip>"),
        (["run/a.txt", "walk/b.txt"], "has no clips in 2 directories"),
        (["run/1.mp4", "walk/b.txt"], "has only one class with clips, 'run'"),
        (["mine/run/1.mp4", "mine/walk/1.mp4"], r"with clips, 'mine'; .*; if .*/mine contains the classes"),
        (["run/train/1.mp4", "run/test/2.mp4", "walk/train/3.mp4"], r"contain directories of splits \(test, train\)"),
        (["run/1.mp4", "walk/2.mp4"], "no clips for the split 'test'; expected a class with at least two clips"),
        (["run/1.mp4", "run/2.mp4", "walk/2.mp4", "classes.txt"], r"walk: 'walk' is not in .*classes\.txt"),
    ],
)
def test_class_directories_that_cannot_be_split(files, message, write_files):
    root = write_files(*({name: "run\n"} if name == "classes.txt" else name for name in files))
    with pytest.raises(ValueError, match=message):
        open_directory(root, "train")


def test_find_split():
    assert find_split("train", ["Training", "test"]) == "Training"
    assert find_split("validation", ["train", "val"]) == "val"
    assert find_split("test", ["train", "val"]) == "val"
    assert find_split("val", ["train", "test"]) is None
    assert find_split("fold1", ["train", "test"]) is None


def clip_sets(train, test, names=("run", "walk"), root=None):
    """Clip sets of (path, label, start, end)."""
    return [
        ClipSet("mine", split, root, tuple(Clip(root / name, *rest) for name, *rest in clips), names)
        for split, clips in (("train", train), ("test", test))
    ]


def test_clips_in_both_splits(tmp_path):
    train = [("a.mp4", 0), ("b.mp4", 1, 0.0, 2.0), ("b.mp4", 1, 5.0, 6.0), ("c.mp4", 1)]
    test = [("x/../a.mp4", 0), ("b.mp4", 1, 2.0, 5.0), ("b.mp4", 1, 5.5, None), ("c.mp4", 1, 3.0, None), ("d.mp4", 1)]
    (problem,) = check_splits(*clip_sets(train, test, root=tmp_path))
    assert problem.startswith("3 of 5 clips are in both 'train' and 'test', such as x/../a.mp4, b.mp4, c.mp4: ")
    assert check_splits(*clip_sets(train, test[4:], root=tmp_path)) == []


def test_copies_in_both_splits(tmp_path):
    big = bytes(200_000)
    contents = {"a.mp4": b"same", "b.mp4": b"diff", "c.mp4": big, "d.mp4": b"", "e.mp4": b"same", "f.mp4": b"DIFF",
                "g.mp4": big[:-1] + b"1", "h.mp4": b"", "i.mp4": big}  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    train = [(name, i % 2) for i, name in enumerate("abcd")]
    sets = clip_sets([(f"{n}.mp4", label) for n, label in train], [(f"{n}.mp4", 0) for n in "efghi"], root=tmp_path)
    (problem,) = check_splits(*sets)
    assert problem.startswith("2 files are in both 'train' and 'test' with the same content, such as ")
    assert "a.mp4 and " in problem and "i.mp4: " in problem


def test_classes_without_training_clips(tmp_path):
    train, test = clip_sets([("a.mp4", 1)], [("b.mp4", 0), ("c.mp4", 0)], names=("Run", "run", "fly"), root=tmp_path)
    (problem,) = check_splits(train, test)
    expected = "2 of 3 classes have no training clips: 'Run' (2 in 'test'), 'fly' (0 in 'test')"
    assert problem == f"{expected}; 'train' has 'run', which differs in capitals or spaces"
    (problem,) = check_splits(*clip_sets([("a.mp4", 1), ("b.mp4", 2)], [("c.mp4", 1)], ("0", "1", "2"), tmp_path))
    assert problem.startswith("labels start at 1: class '0' has no clips in 'train' and 'test'")


@pytest.mark.skipif(os.sep == "\\", reason="a backslash separates directories")
def test_a_backslash_in_the_name_of_a_class_stays_in_the_saved_split(write_files, tmp_path):
    root = write_files(*(rf"{name}/{i}.mp4" for name in (r"$\frac{1}{2}$ turn", "walk") for i in range(5)))
    split = split_directory(root, seed=0)
    write_splits(tmp_path / "run.csv", split.splits)
    assert read_splits(tmp_path / "run.csv") == split.splits
    assert made(root, table=tmp_path / "run.csv") == made(root, seed=0)


def test_paths_written_on_windows_are_read_from_a_split(write_files):
    root = write_files("run/1.mp4", "run/2.mp4", "walk/1.mp4", "walk/2.mp4")
    rows = ["split,path", r"train,run\1.mp4", r"test,run\2.mp4", r"train,walk\1.mp4", r"test,walk\2.mp4"]
    (root / "splits.csv").write_text("\n".join(rows))
    assert read_splits(root / "splits.csv")["run/2.mp4"] == "test"
