import pytest

from art.data import registry
from art.data.clips import Clip, ClipSet
from art.data.registry import dataset_names, open_dataset, register_dataset


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_openers", dict(registry._openers))


def opener(root, split):
    return ClipSet("mine", split, root, (Clip(root / "a.mp4", 0),), ("a",))


def test_a_registered_data_set_opens(tmp_path):
    assert register_dataset("mine")(opener) is opener
    clip_set = open_dataset("mine", str(tmp_path), "train")
    assert clip_set.root == tmp_path
    assert clip_set.split == "train"
    assert dataset_names() == ("csv", "folder", "mine", "motion")


def test_built_in_ones_need_no_import(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\na.mp4,x\n")
    assert open_dataset("csv", tmp_path, "train").class_names == ("x",)
    (tmp_path / "train" / "x").mkdir(parents=True)
    (tmp_path / "train" / "x" / "a.mp4").touch()
    assert len(open_dataset("folder", tmp_path, "train")) == 1


def test_an_unknown_name_leads_to_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"data set 'foldr' is unknown; did you mean 'folder'\?"):
        open_dataset("foldr", tmp_path, "train")
    with pytest.raises(ValueError, match="data set 'xyz' is unknown; expected one of csv, folder, motion"):
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
