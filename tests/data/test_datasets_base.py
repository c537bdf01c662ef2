"""Clips, clip sets, and the registry of datasets."""

import time
from pathlib import Path

import pytest

from art.data.datasets import base
from art.data.datasets.base import (
    Clip,
    ClipSet,
    RequiredFile,
    dataset_entry,
    dataset_names,
    dataset_splits,
    mirror_by_words,
    open_dataset,
    register_dataset,
    required_files,
    suggest,
)
from art.data.datasets.custom import read_classes
from art.eval.metrics import ClassMismatch, check_same_classes
from art.model.pretrained import check_class_names

A = Path("root/a.mp4")


def make_clip_set(**changes):
    values = {"name": "set", "split": "train", "root": Path("root"), "class_names": ("one", "two")}
    return ClipSet(**{**values, "clips": (Clip(A, 0), Clip(Path("root/b.mp4"), 1)), **changes})


def test_defaults_and_properties():
    first, second = Clip(Path("root/x/a.mp4"), 0, 0.0, 1.0), Clip(Path("/else/b.mp4"), 1)
    clip_set = make_clip_set(clips=(first, second, Clip(first.path, 1, 1.0, 2.0)))  # two parts of one file
    assert len(clip_set) == 3
    assert [c.label for c in clip_set] == list(clip_set.labels) == [0, 1, 1]
    assert (clip_set.relative_path(0), clip_set.relative_path(1)) == ("x/a.mp4", "/else/b.mp4")
    assert (clip_set.prompts, clip_set.groups) == (("one", "two"), ())
    changed = make_clip_set(prompts=("a one", "a two"), groups=("a", "a"))
    assert (changed.prompts, changed.groups) == (("a one", "a two"), ("a", "a"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ()}, "class_names is empty"),
        ({"class_names": ("one", " ")}, "class 1 has a blank name"),
        ({"class_names": ("one", "one")}, "'one' appear more than once"),
        ({"prompts": ("only one",)}, "prompts has 1 entries, expected one for each of 2 classes"),
        ({"groups": ("a",)}, "groups has 1 entries, expected one for each of 2 classes"),
        ({"groups": ("a", "")}, "the group of 'two' is blank"),
        ({"mirror": (0,)}, "mirror must hold a class index for each of 2"),
        ({"mirror": (0, 2)}, "mirror must hold a class index"),
        ({"mirror": (1, 1)}, "mirror must be its own inverse, but is not for 'one'"),
        ({"clips": ()}, "no clips found in root"),
        ({"clips": (Clip(A, 2),)}, r"clip 0 \(root/a.mp4\) has label 2, expected 0 to 1"),
        ({"clips": (Clip(A, -1),)}, "has label -1"),
        ({"clips": (Clip(A, 0), Clip(A, 1))}, "root/a.mp4 is listed twice"),
        ({"clips": (Clip(A, 0, 2.0, 2.0),)}, r"\[2..2 s\]\) has no duration"),
        ({"clips": (Clip(A, 0, -1.0),)}, "expected 0 <= start < end"),
    ],
)
def test_invalid_clip_set(changes, message):
    with pytest.raises(ValueError, match=message):
        make_clip_set(**changes)


def test_mirror_by_words():
    names = ("run", "kick with the right leg", "kick with the left leg", "leftover")
    assert mirror_by_words(names) == (0, 2, 1, 3)
    assert mirror_by_words(("up", "down"), [("up", "down")]) == (1, 0)
    with pytest.raises(ValueError, match="no class 'turn right'"):
        mirror_by_words(("turn left", "run"))


@pytest.fixture
def opener():
    """A function to register as the dataset "mine", which is removed after the test."""

    def open_mine(root, split):
        return ClipSet("mine", split, root, (Clip(root / "a.mp4", 0),), ("a",))

    yield open_mine
    base._entries.pop("mine", None)


def test_register_dataset(opener, tmp_path):
    assert register_dataset("mine")(opener) is opener
    clip_set = open_dataset("mine", str(tmp_path), "train")
    assert (clip_set.root, clip_set.split) == (tmp_path, "train")
    assert "mine" in dataset_names()
    assert list(dataset_names()) == sorted(dataset_names())


PUBLISHED = {
    **dict.fromkeys(("finegym99", "finegym288", "finegym99_v1.0", "finegym288_v1.0"), ("train", "val")),
    "diving48": ("train", "test"),
    **dict.fromkeys(("ntu60_xsub", "ntu60_xview", "ntu120_xsub", "ntu120_xset"), ("train", "test")),
    **dict.fromkeys(("kinetics400", "kinetics600"), ("train", "val", "test")),
    "something_v1": ("train", "val"),
    "something_v2": ("train", "val", "test"),
    "motion": ("train", "test"),
}


@pytest.mark.parametrize("name", [*PUBLISHED, "folder", "csv", "list"])
def test_built_in_dataset(name, tmp_path):
    entry = dataset_entry(name)
    assert entry.name == name and entry.name in dataset_names()
    assert entry.description and "\n" not in entry.description
    assert dataset_splits(name, tmp_path) == PUBLISHED.get(name, ())
    files = required_files(name, tmp_path)
    assert all(not file.found and file.source.startswith("http") for file in files)
    assert all(set(file.splits) <= set(PUBLISHED[name]) for file in files)
    if name in PUBLISHED:
        with pytest.raises(ValueError, match=f"dataset '{name}' has no split 'x'; expected one of train, "):
            open_dataset(name, tmp_path, "x")
        with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
            open_dataset(name, tmp_path, "train")


@pytest.mark.docs
def test_documentation_lists_every_dataset():
    text = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    assert [name for name in (*PUBLISHED, "folder", "csv", "list") if f"`{name}`" not in text] == []


def test_suggest():
    assert suggest("abcd", ("abce", "x")) == "; did you mean 'abce'?"
    assert suggest("!", ("a", "b")) == "; expected one of a, b"
    assert suggest("!", tuple(f"word {i}" for i in range(174))).endswith(", word 19 and 154 more")


def test_unknown_dataset(tmp_path):
    with pytest.raises(ValueError, match=r"unknown dataset 'foldr'; did you mean 'folder'\?"):
        open_dataset("foldr", tmp_path, "train")


@pytest.mark.parametrize("name", ["mine", "csv"])
def test_name_that_is_already_registered(name, opener):
    if name == "mine":
        register_dataset(name)(opener)
        register_dataset(name)(opener)  # the same function again, as when a module is reloaded

    def another(root, split):
        return opener(root, split)

    with pytest.raises(ValueError, match=f"dataset '{name}' is already registered"):
        register_dataset(name)(another)


def test_lookups_of_class_names_take_linear_time(tmp_path):
    names = [f"the class {i:07d}" for i in range(60_000)]
    twice = [*names, names[0]]
    (tmp_path / "classes.txt").write_text("\n".join(twice))
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{i}\n" for i in range(9000)) + "z.mp4,z\n")
    start = time.process_time()
    with pytest.raises(ValueError, match=r"classes\.txt:60001: .* already listed in line 1"):
        read_classes(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"label 0 is an index, but .*csv:9002 has the name 'z'"):
        open_dataset("csv", tmp_path, "train")
    with pytest.raises(ValueError, match="'the class 0000000' appear more than once"):
        ClipSet("mine", "train", tmp_path, (Clip(Path("a"), 0),), tuple(twice))
    with pytest.raises(ValueError, match="'the class 0000000' more than once"):
        check_class_names(twice)
    with pytest.raises(ClassMismatch, match=r"missing in the data: 'the class 0000000', .* and 59995 more"):
        check_same_classes(names, [f"{name}." for name in names])
    assert "and 59980 more" in suggest("the class 0000000.", names)
    assert len(suggest("x" * 10**6, ["y" * 10**6])) < 200
    assert time.process_time() - start < 5


def test_splits_and_required_files(opener, tmp_path):
    def files(root):
        return (RequiredFile(root / "list.txt", (root / "list.txt").exists(), "https://example.org", ("train",)),)

    register_dataset("mine", description="a line", splits=("train", "val"), required_files=files)(opener)
    entry = dataset_entry("mine")
    assert (entry.name, entry.description, entry.opener) == ("mine", "a line", opener)
    assert dataset_splits("mine", tmp_path) == ("train", "val")
    assert [file.found for file in required_files("mine", tmp_path)] == [False]
    (tmp_path / "list.txt").touch()
    assert [file.found for file in required_files("mine", tmp_path)] == [True]
    with pytest.raises(ValueError, match="dataset 'mine' has no split 'test'; expected one of train, val"):
        open_dataset("mine", tmp_path, "test")
    for function in (required_files, dataset_splits):
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            function("mine", tmp_path / "nowhere")


def test_splits_that_depend_on_the_root(opener, write_files):
    register_dataset("mine", splits=lambda root: tuple(sorted(path.name for path in root.iterdir())))(opener)
    root = write_files("b", "a")
    assert dataset_splits("mine", root) == ("a", "b")
    assert open_dataset("mine", root, "c").split == "c", "the opener checks the split"
    assert required_files("mine", root) == ()
