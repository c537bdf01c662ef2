from pathlib import Path

import pytest

from art.data.datasets import registry
from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import (
    RequiredFile,
    dataset_entry,
    dataset_names,
    dataset_splits,
    nearest,
    open_dataset,
    register_dataset,
    required_files,
)


@pytest.fixture(autouse=True)
def own_registry():
    yield
    registry._entries.pop("mine", None)


def opener(root, split):
    return ClipSet("mine", split, root, (Clip(root / "a.mp4", 0),), ("a",))


def test_a_registered_data_set_opens(tmp_path):
    assert register_dataset("mine")(opener) is opener
    clip_set = open_dataset("mine", str(tmp_path), "train")
    assert clip_set.root == tmp_path
    assert clip_set.split == "train"
    assert "mine" in dataset_names()
    assert list(dataset_names()) == sorted(dataset_names())


def test_built_in_ones_need_no_import(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\na.mp4,x\n")
    assert open_dataset("csv", tmp_path, "train").class_names == ("x",)
    (tmp_path / "train" / "x").mkdir(parents=True)
    (tmp_path / "train" / "x" / "a.mp4").touch()
    assert len(open_dataset("folder", tmp_path, "train")) == 1


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
def test_every_built_in_data_set_is_known_by_name(name, tmp_path):
    entry = dataset_entry(name)
    assert entry.name == name
    assert entry.description
    assert "\n" not in entry.description
    assert dataset_splits(name, tmp_path) == PUBLISHED.get(name, ())
    files = required_files(name, tmp_path)
    assert all(not file.found and file.source.startswith("http") for file in files)
    assert all(set(file.splits) <= set(PUBLISHED[name]) for file in files)
    if name in PUBLISHED:
        with pytest.raises(ValueError, match=f"data set '{name}' has no split 'x'; expected one of train, "):
            open_dataset(name, tmp_path, "x")
        with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
            open_dataset(name, tmp_path, "train")
    assert set(PUBLISHED) | {"folder", "csv", "list"} <= set(dataset_names())


def test_the_documentation_names_every_data_set():
    text = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    assert [name for name in (*PUBLISHED, "folder", "csv", "list") if f"`{name}`" not in text] == []


def test_many_known_words_are_cut_short():
    assert nearest("abcd", ("abce", "x")) == "; did you mean 'abce'?"
    assert nearest("!", ("a", "b")) == "; expected one of a, b"
    assert nearest("!", tuple(f"word {i}" for i in range(174))).endswith(", word 19 and 154 more")


def test_an_unknown_name_leads_to_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"data set 'foldr' is unknown; did you mean 'folder'\?"):
        open_dataset("foldr", tmp_path, "train")
    with pytest.raises(ValueError, match="data set 'xyz' is unknown; expected one of csv, diving48, "):
        open_dataset("xyz", tmp_path, "train")


@pytest.mark.parametrize("name", ["mine", "csv"])
def test_a_name_is_given_once(name):
    if name == "mine":
        register_dataset(name)(opener)
        register_dataset(name)(opener)  # the same one again, as when a module is reloaded

    def another(root, split):
        return opener(root, split)

    with pytest.raises(ValueError, match=f"name '{name}' is taken by another data set"):
        register_dataset(name)(another)


def test_what_is_known_of_a_data_set_before_it_is_read(tmp_path):
    def files(root):
        return (RequiredFile(root / "list.txt", (root / "list.txt").exists(), "https://example.org", ("train",)),)

    register_dataset("mine", description="a line", splits=("train", "val"), required_files=files)(opener)
    entry = dataset_entry("mine")
    assert (entry.name, entry.description, entry.opener) == ("mine", "a line", opener)
    assert dataset_splits("mine", tmp_path) == ("train", "val")
    assert [file.found for file in required_files("mine", tmp_path)] == [False]
    (tmp_path / "list.txt").touch()
    assert [file.found for file in required_files("mine", tmp_path)] == [True]
    with pytest.raises(ValueError, match="data set 'mine' has no split 'test'; expected one of train, val"):
        open_dataset("mine", tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        required_files("mine", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        dataset_splits("mine", tmp_path / "nowhere")


def test_splits_may_depend_on_the_root(tmp_path):
    register_dataset("mine", splits=lambda root: tuple(sorted(path.name for path in root.iterdir())))(opener)
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    assert dataset_splits("mine", tmp_path) == ("a", "b")
    assert open_dataset("mine", tmp_path, "c").split == "c"  # the opener's own business
    assert required_files("mine", tmp_path) == ()
