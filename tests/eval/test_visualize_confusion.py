import numpy as np
import pytest

from art.eval.report.confusion import _shortened, class_accuracy, confusion_figure, most_confused, row_shares
from art.eval.report.style import to_svg

MATRIX = np.array([[6, 2, 0], [1, 0, 3], [0, 0, 0]])


def test_rows_are_shares_and_an_absent_class_has_none():
    np.testing.assert_allclose(row_shares(MATRIX)[:2], [[0.75, 0.25, 0], [0.25, 0, 0.75]])
    assert np.isnan(row_shares(MATRIX)[2]).all()
    np.testing.assert_array_equal(class_accuracy(MATRIX), [0.75, 0.0, np.nan])


def test_most_confused_pairs_by_count_then_share():
    pairs = [(pair.true, pair.predicted, pair.count, pair.clips, pair.share) for pair in most_confused(MATRIX)]
    assert pairs == [(1, 2, 3, 4, 0.75), (0, 1, 2, 8, 0.25), (1, 0, 1, 4, 0.25)]
    assert len(most_confused(MATRIX, limit=1)) == 1
    assert most_confused(np.diag([3, 4])) == []


def test_small_matrix_carries_its_per_cents():
    figure = confusion_figure(MATRIX, ["a", "b", "c"])
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["25", "25", "75", "75"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  0", "b  1", "c  2"]
    right, wrong = (np.asarray(image.get_array()) for image in axes.images)
    np.testing.assert_allclose(right, np.sqrt([[0.75, 0, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(wrong, np.sqrt([[0, 0.25, 0], [0.25, 0, 0.75], [0, 0, 0]]))


@pytest.mark.parametrize(("count", "named"), [(20, 20), (110, 110), (400, 134)])
def test_large_matrix_names_what_can_be_read(count, named):
    figure = confusion_figure(np.eye(count, dtype=int), [f"class {i}" for i in range(count)])
    axes = figure.axes[0]
    labels = axes.get_yticklabels()
    assert len(labels) == named
    assert labels[0].get_fontsize() >= 5
    per_label = figure.get_size_inches()[1] * 72 / named
    assert per_label > labels[0].get_fontsize(), "labels do not overlap"
    assert (count <= 25) == bool(axes.texts)
    assert to_svg(figure, label="x", prefix="c").count("<svg") == 1


def test_long_names_keep_both_ends():
    name = "round-off, flic-flac on, stretched salto backward with 1.5 turn off"
    short = _shortened(name, 30)
    assert len(short) <= 30 and short.startswith("round-off") and short.endswith("turn off") and "…" in short
    assert _shortened("walk", 30) == "walk"


def test_refuses_what_is_no_confusion_matrix():
    with pytest.raises(ValueError, match=r"expected \[Y, Y\]"):
        confusion_figure(MATRIX, ["a", "b"])
    with pytest.raises(ValueError, match="negative"):
        confusion_figure(np.array([[-1]]), ["a"])
