import numpy as np
import pytest

from art.eval.metrics import ClassMismatch, averaged_views, check_same_classes, measure

NAMES = ("walk", "run", "jump")


def evaluation():
    """Six clips: walk right, right, called run; run called jump, right; jump has no clip."""
    probabilities = np.array(
        [[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.0, 0.9, 0.1]], dtype=np.float32
    )
    return measure(probabilities, np.array([0, 0, 0, 1, 1]), np.array([4, 3, 2, 1, 0]), NAMES)


def test_counts_by_hand():
    result = evaluation()
    assert (result.total, result.correct_top1, result.correct_top5) == (5, 3, 5)
    assert result.top1 == 3 / 5
    assert result.top5 == 1.0
    assert result.mean_class_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert result.confusion.dtype == np.int64


def test_summary_is_for_json():
    summary = evaluation().summary()
    assert summary["clips"] == 5
    assert summary["per_class"][1] == {"name": "run", "clips": 2, "correct": 1}
    assert summary["per_class"][2] == {"name": "jump", "clips": 0, "correct": 0}
    assert type(summary["correct_top1"]) is int


def with_order(order):
    one = np.ones((len(order), 1), np.float32)
    zeros = np.zeros(len(order), np.int64)
    return measure(one, zeros, zeros, ["only"], np.array(order))


def test_a_link_to_another_query_is_counted_by_hand():
    # Two clips of three frames and two tracklets: eight links. They swap once in the first clip, and stay swapped.
    result = with_order([[[0, 1], [1, 0], [1, 0]], [[0, 1], [0, 1], [0, 1]]])
    assert result.relinked == 2 / 8
    assert result.summary()["relinked"] == 2 / 8
    assert with_order([[[0, 1, 2]] * 4]).relinked == 0


def test_without_links_none_is_counted():
    assert evaluation().summary()["relinked"] is None
    assert with_order([[[0, 1]]]).relinked is None


def test_an_order_of_other_clips_is_refused():
    one = np.ones((2, 1), np.float32)
    for rows in (0, 1, 3):
        with pytest.raises(ValueError, match=rf"order: got shape \({rows}, 3, 2\), expected \(2, T, K\) or a multiple"):
            measure(one, np.zeros(2, np.int64), np.arange(2), ["only"], np.zeros((rows, 3, 2), np.int64))


def test_links_are_counted_over_all_views():
    one = np.ones((2, 1), np.float32)
    order = np.array([[[0, 1], [0, 1]]] * 3 + [[[0, 1], [1, 0]]])
    assert measure(one, np.zeros(2, np.int64), np.arange(2), ["only"], order).relinked == 2 / 8


def test_accuracy_within_groups_by_hand():
    names = ("flip", "twist", "leap", "hop", "beam")
    called = [(0, 0), (0, 0), (0, 1), (1, 2), (2, 2), (2, 0)]  # true and called; hop and beam have no clip
    labels, answers = (np.array(column) for column in zip(*called, strict=True))
    probabilities = np.eye(5, dtype=np.float32)[answers]
    result = measure(probabilities, labels, np.arange(6), names, groups=("VT", "VT", "FX", "FX", "BB"))
    vault, floor, beam = result.per_group
    assert (vault.name, vault.classes, vault.clips, vault.correct, vault.top1) == ("VT", 2, 4, 2, 2 / 4)
    assert vault.mean_class_accuracy == pytest.approx((2 / 3 + 0) / 2)
    assert (floor.name, floor.clips, floor.correct, floor.mean_class_accuracy) == ("FX", 2, 1, 1 / 2)
    assert (beam.clips, beam.top1, beam.mean_class_accuracy) == (0, None, None)
    told = result.summary()["per_group"]
    assert told[1] == {
        "name": "FX", "classes": 2, "clips": 2, "correct": 1, "mean_class_accuracy": 0.5, "top1": 0.5,
    }  # fmt: skip
    assert sum(group["correct"] for group in told) == result.correct_top1
    with pytest.raises(ValueError, match="groups: got 1 names, expected one for each of 5 classes"):
        measure(probabilities, labels, np.arange(6), names, groups=("VT",))
    assert evaluation().summary()["per_group"] == []


def test_views_are_averaged_by_hand():
    views = np.array([[0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]], dtype=np.float32)
    probabilities, labels, indices = averaged_views(views, np.array([1, 0, 1, 0]), np.array([7, 2, 7, 2]))
    np.testing.assert_allclose(probabilities, [[0.55, 0.45], [0.3, 0.7]], rtol=1e-6)
    assert probabilities.dtype == np.float32
    assert (labels.tolist(), indices.tolist()) == ([1, 0], [7, 2])
    once = averaged_views(views, np.arange(4), np.array([3, 1, 2, 0]))
    assert np.array_equal(once[0], views) and once[2].tolist() == [3, 1, 2, 0], "one view stays as it is, bit for bit"
    with pytest.raises(ValueError, match="clip 2 has 1 views and clip 7 has 2, expected as many each"):
        averaged_views(views[:3], np.array([1, 0, 1]), np.array([7, 2, 7]))


def test_top5_is_the_five_most_probable():
    names = [f"class {i}" for i in range(7)]
    rising = np.arange(7, dtype=np.float32)[None] / 21  # class 6 first, then 5, 4, 3, 2
    inside = measure(rising, np.array([2]), np.array([0]), names)
    outside = measure(rising, np.array([1]), np.array([0]), names)
    assert (inside.correct_top5, outside.correct_top5) == (1, 0)


def test_between_equals_the_smaller_index_ranks_first():
    equal = np.full((2, 3), 1 / 3, dtype=np.float32)
    result = measure(equal, np.array([0, 1]), np.array([0, 1]), NAMES)
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("probabilities", "labels", "told"),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64), "got no clips"),
        (np.zeros((1, 2), np.float32), np.zeros(1, np.int64), r"shape \(1, 2\), expected \[n, 3\]"),
        (np.zeros((2, 3), np.float32), np.zeros(1, np.int64), "labels and indices"),
        (np.zeros((1, 3), np.float32), np.array([3]), r"got 3\.\.3, expected 0\.\.2"),
        (np.array([[0.5, np.nan, 0.5]], np.float32), np.array([0]), "not finite for 1 clips, the first with index 0"),
    ],
)
def test_what_cannot_be_counted_is_refused(probabilities, labels, told):
    with pytest.raises(ValueError, match=told):
        measure(probabilities, labels, np.arange(len(labels)), NAMES)


def test_equal_class_lists_pass():
    check_same_classes(list(NAMES), NAMES)


@pytest.mark.parametrize(
    ("of_data", "told"),
    [
        (("walk", "run"), ["missing in the data: 'jump'", "checkpoint has 3 classes, the data 2"]),
        (("walk", "run", "jump", "hop"), ["unknown to the checkpoint: 'hop'"]),
        (("walk", "hop", "jump"), ["missing in the data: 'run'", "unknown to the checkpoint: 'hop'"]),
        (("run", "walk", "jump"), ["another order", "0: 'walk' in the checkpoint, 'run' in the data"]),
    ],
)
def test_a_difference_of_classes_is_named(of_data, told):
    with pytest.raises(ClassMismatch) as error:
        check_same_classes(NAMES, of_data)
    assert all(part in str(error.value) for part in told), str(error.value)


def test_a_long_difference_is_cut():
    names = [f"class {i}" for i in range(20)]
    with pytest.raises(ClassMismatch, match="and 13 more"):
        check_same_classes(names, names[:2])
