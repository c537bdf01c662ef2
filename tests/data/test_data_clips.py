from pathlib import Path

import pytest

from art.data.datasets.clips import Clip, ClipSet, mirror_by_words


def make(**changes):
    root = Path("root")
    values = {
        "name": "set",
        "split": "train",
        "root": root,
        "clips": (Clip(root / "a.mp4", 0), Clip(root / "b.mp4", 1)),
        "class_names": ("one", "two"),
    }
    return ClipSet(**{**values, **changes})


def test_prompts_are_the_names_unless_given():
    assert make().prompts == ("one", "two")
    assert make(prompts=("a one", "a two")).prompts == ("a one", "a two")


def test_classes_may_share_a_group():
    assert make().groups == ()
    assert make(groups=("a", "a")).groups == ("a", "a")


def test_a_clip_set_behaves_like_its_list():
    clip_set = make(clips=(Clip(Path("root/x/a.mp4"), 0), Clip(Path("/else/b.mp4"), 1)))
    assert len(clip_set) == 2
    assert [c.label for c in clip_set] == list(clip_set.labels) == [0, 1]
    assert clip_set.relative_path(0) == "x/a.mp4"
    assert clip_set.relative_path(1) == "/else/b.mp4"


A = Path("root/a.mp4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ()}, "class_names is empty"),
        ({"class_names": ("one", " ")}, "class 1 has a blank name"),
        ({"class_names": ("one", "one")}, "'one' appear more than once"),
        ({"prompts": ("only one",)}, "prompts has 1 texts, expected one for each of 2"),
        ({"groups": ("a",)}, "groups has 1 names, expected one for each of 2 classes, or none"),
        ({"groups": ("a", "")}, "the group of 'two' is blank"),
        ({"mirror": (0,)}, "mirror must hold a class index for each of 2"),
        ({"mirror": (0, 2)}, "mirror must hold a class index"),
        ({"mirror": (1, 1)}, "flipping twice .* 'one'"),
        ({"clips": ()}, "there is no clip below root"),
        ({"clips": (Clip(A, 2),)}, r"clip 0 \(root/a.mp4\) has label 2, expected 0 to 1"),
        ({"clips": (Clip(A, -1),)}, "has label -1"),
        ({"clips": (Clip(A, 0), Clip(A, 1))}, "root/a.mp4 is listed twice"),
        ({"clips": (Clip(A, 0, 2.0, 2.0),)}, r"\[2..2 s\]\) has no duration"),
        ({"clips": (Clip(A, 0, -1.0),)}, "expected 0 <= start < end"),
    ],
)
def test_a_wrong_clip_set_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_parts_of_one_file_are_different_clips():
    assert len(make(clips=(Clip(A, 0, 0.0, 1.0), Clip(A, 1, 1.0, 2.0)))) == 2


def test_mirror_swaps_the_words_of_a_side():
    names = ("run", "kick with the right leg", "kick with the left leg", "leftover")
    assert mirror_by_words(names) == (0, 2, 1, 3)
    assert mirror_by_words(("up", "down"), [("up", "down")]) == (1, 0)


def test_mirror_needs_the_other_side():
    with pytest.raises(ValueError, match="no class 'turn right'"):
        mirror_by_words(("turn left", "run"))
