import unicodedata

import numpy as np
import pytest
import torch

from art.eval.metrics import (
    ClassMismatch,
    accuracy_table,
    average_views,
    bank_similarities,
    check_same_classes,
    compute_metrics,
    quantiles,
)
from art.model.semantics import SemanticsBank
from art.terminal import text_columns

NAMES = ("walk", "run", "jump")


def evaluation():
    """Five clips: of three walks, one is predicted as run; of two runs, one as jump; jump has no clips."""
    probabilities = np.array(
        [[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.0, 0.9, 0.1]], dtype=np.float32
    )
    return compute_metrics(probabilities, np.array([0, 0, 0, 1, 1]), np.array([4, 3, 2, 1, 0]), NAMES)


def test_counts_and_accuracies():
    result = evaluation()
    assert (result.total, result.correct_top1, result.correct_top5) == (5, 3, 5)
    assert (result.top1, result.top5) == (3 / 5, 1.0)
    assert result.mean_class_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert result.confusion.dtype == np.int64
    summary = result.summary()
    assert summary["clips"] == 5 and type(summary["correct_top1"]) is int
    assert summary["per_class"][1] == {"name": "run", "clips": 2, "correct": 1}
    assert summary["per_class"][2] == {"name": "jump", "clips": 0, "correct": 0}
    assert summary["per_group"] == [] and summary["relinked"] is None


def test_top5_and_ties():
    names = [f"class {i}" for i in range(7)]
    ascending = np.arange(7, dtype=np.float32)[None] / 21  # the five most probable: 6, 5, 4, 3, 2
    correct = [compute_metrics(ascending, np.array([y]), np.array([0]), names).correct_top5 for y in (2, 1)]
    assert correct == [1, 0]
    equal = np.full((2, 3), 1 / 3, dtype=np.float32)
    result = compute_metrics(equal, np.array([0, 1]), np.array([0, 1]), NAMES)
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]], "ties go to the smallest index"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # Two clips of three frames and two tracklets: of eight links, two switch, in the first clip.
        ([[[0, 1], [1, 0], [1, 0]], [[0, 1], [0, 1], [0, 1]]], 2 / 8),
        ([[[0, 1, 2]] * 4], 0),
        ([[[0, 1]]], None),
    ],
)
def test_relinked(order, expected):
    probabilities, zeros = np.ones((len(order), 1), np.float32), np.zeros(len(order), np.int64)
    result = compute_metrics(probabilities, zeros, zeros, ["only"], np.array(order))
    assert result.relinked == expected and result.summary()["relinked"] == expected


def test_relinked_over_several_views():
    probabilities, labels = np.ones((2, 1), np.float32), np.zeros(2, np.int64)
    order = np.array([[[0, 1], [0, 1]]] * 3 + [[[0, 1], [1, 0]]])
    assert compute_metrics(probabilities, labels, np.arange(2), ["only"], order).relinked == 2 / 8
    for rows in (0, 1, 3):
        with pytest.raises(ValueError, match=rf"order: got shape \({rows}, 3, 2\), expected \(2, T, K\) or a multiple"):
            compute_metrics(probabilities, labels, np.arange(2), ["only"], np.zeros((rows, 3, 2), np.int64))


def test_accuracy_per_group():
    names = ("flip", "twist", "leap", "hop", "beam")
    pairs = [(0, 0), (0, 0), (0, 1), (1, 2), (2, 2), (2, 0)]  # true and predicted class; hop and beam have no clips
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    probabilities = np.eye(5, dtype=np.float32)[predicted]
    result = compute_metrics(probabilities, labels, np.arange(6), names, groups=("VT", "VT", "FX", "FX", "BB"))
    vault, floor, beam = result.per_group
    assert (vault.name, vault.classes, vault.clips, vault.correct, vault.top1) == ("VT", 2, 4, 2, 2 / 4)
    assert vault.mean_class_accuracy == pytest.approx((2 / 3 + 0) / 2)
    assert (floor.name, floor.clips, floor.correct, floor.mean_class_accuracy) == ("FX", 2, 1, 1 / 2)
    assert (beam.clips, beam.top1, beam.mean_class_accuracy) == (0, None, None)
    groups = result.summary()["per_group"]
    assert groups[1] == {
        "name": "FX", "classes": 2, "clips": 2, "correct": 1, "mean_class_accuracy": 0.5, "top1": 0.5,
    }  # fmt: skip
    assert sum(group["correct"] for group in groups) == result.correct_top1
    with pytest.raises(ValueError, match="groups: got 1 names, expected one for each of 5 classes"):
        compute_metrics(probabilities, labels, np.arange(6), names, groups=("VT",))


def test_average_views():
    views = np.array([[0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]], dtype=np.float32)
    probabilities, labels, indices = average_views(views, np.array([1, 0, 1, 0]), np.array([7, 2, 7, 2]))
    np.testing.assert_allclose(probabilities, [[0.55, 0.45], [0.3, 0.7]], rtol=1e-6)
    assert probabilities.dtype == np.float32
    assert (labels.tolist(), indices.tolist()) == ([1, 0], [7, 2])
    single = average_views(views, np.arange(4), np.array([3, 1, 2, 0]))
    assert np.array_equal(single[0], views) and single[2].tolist() == [3, 1, 2, 0], "a single view is unchanged"
    with pytest.raises(ValueError, match="clip 2 has 1 views and clip 7 has 2, expected the same number"):
        average_views(views[:3], np.array([1, 0, 1]), np.array([7, 2, 7]))


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64), "got no clips"),
        (np.zeros((1, 2), np.float32), np.zeros(1, np.int64), r"shape \(1, 2\), expected \[n, 3\]"),
        (np.zeros((2, 3), np.float32), np.zeros(1, np.int64), "labels and indices"),
        (np.zeros((1, 3), np.float32), np.array([3]), r"got 3\.\.3, expected 0\.\.2"),
        (np.array([[0.5, np.nan, 0.5]], np.float32), np.array([0]), "not finite for 1 clip, the first with index 0"),
    ],
)
def test_invalid_arguments(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(probabilities, labels, np.arange(len(labels)), NAMES)


@pytest.mark.parametrize(
    ("data_names", "messages"),
    [
        (("walk", "run"), ["missing in the data: 'jump'", "checkpoint has 3 classes, the data 2"]),
        (("walk", "run", "jump", "hop"), ["unknown to the checkpoint: 'hop'"]),
        (("walk", "hop", "jump"), ["missing in the data: 'run'", "unknown to the checkpoint: 'hop'"]),
        (("run", "walk", "jump"), ["another order", "0: 'walk' in the checkpoint, 'run' in the data"]),
    ],
)
def test_class_mismatch(data_names, messages):
    check_same_classes(list(NAMES), NAMES)
    check_same_classes(["\u00fcbung"], ["u\u0308bung"])  # composed and decomposed
    with pytest.raises(ClassMismatch) as error:
        check_same_classes(NAMES, data_names)
    assert all(message in str(error.value) for message in messages), str(error.value)


def test_class_mismatch_of_many_classes_is_truncated():
    names = [f"class {i}" for i in range(20)]
    with pytest.raises(ClassMismatch, match="and 13 more"):
        check_same_classes(names, names[:2])


@pytest.mark.parametrize("groups", [(), ("VT " * 60, "VT " * 60, "走る" * 60, "a\nb")])
def test_accuracy_table_of_any_names(groups):
    """Rows are aligned by the columns of a terminal and fit in 120, and a name cannot move the cursor."""
    names = ("走る" * 80, "e\u0301" * 200, "\x1b[2J\u202e<b>$x$", "x" * 4000)
    probabilities = np.eye(4, dtype=np.float32)
    result = compute_metrics(probabilities, np.arange(4), np.arange(4), names, groups=groups)
    lines = accuracy_table(result).splitlines()
    rows = [line for line in lines if " of 1 " in line or " of 2 " in line]
    assert len(rows) == 4 + len(set(groups)) and len(lines) == (13 if groups else 8)
    assert len({text_columns(row[: row.index(" of ")]) for row in rows}) == 1
    assert max(map(text_columns, lines)) <= 120
    assert all(unicodedata.category(letter) not in ("Cc", "Cf") for line in lines for letter in line)
    assert r"\x1b[2J\u202e<b>$x$" in lines[2]


@pytest.mark.parametrize("groups", [(), ("VT", "VT", "FX_leap", "BB")])
def test_accuracy_table(groups):
    names = ("flip with a rather long name", "twist", "leap", "hop")
    labels, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 3, 2])
    probabilities = np.eye(4, dtype=np.float32)[predicted]
    text = accuracy_table(compute_metrics(probabilities, labels, np.arange(5), names, groups=groups)).splitlines()
    lines = [" ".join(line.split()) for line in text]
    assert lines[:4] == [
        "flip with a rather long name 2 of 3 66.67 %",
        "twist 0 of 1 0.00 %",
        "leap 1 of 1 100.00 %",
        "hop 0 of 0 -",
    ]
    assert lines[-3:] == [
        "all clips, top-1 3 of 5 60.00 %",
        "all clips, top-5 5 of 5 100.00 %",
        "mean over classes 55.56 %",
    ]
    if groups:
        assert lines[5:9] == [
            "group of classes top-1 mean over its classes",
            "VT (2 classes) 2 of 4 50.00 % 33.33 %",
            "FX_leap (1 class) 1 of 1 100.00 % 100.00 %",
            "BB (1 class) 0 of 0 - -",
        ]
        assert len({len(line) for line in text[5:9]}) == 1, "columns are aligned"
    else:
        assert len(lines) == 4 + 1 + 3


def test_bank_similarities():
    """Two prompts of three classes along the axes of the latent space; the second prompt of class 2 is along axis 3."""
    semantics = torch.zeros(2, 3, 4)
    for label in range(3):
        semantics[:, label, label] = 1.0 + label
    semantics[1, 2] = torch.tensor([0.0, 0.0, 0.0, 5.0])
    bank = SemanticsBank(semantics, 4, momentum=0.9)
    with torch.no_grad():
        bank.projection.weight.copy_(torch.eye(4))
        bank.projection.bias.zero_()
    video = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    result = bank_similarities(bank, video, torch.tensor([1, 2]))
    np.testing.assert_allclose(result["similarity_own_class"], [0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(result["similarity_other_classes"], [0.6, 0.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(result["similarity_between_classes"], [0.0, 0.0, 0.0], atol=1e-7)
    with torch.no_grad():
        bank.bank[:, 0] = bank.bank[:, 1]
    result = bank_similarities(bank, video, torch.tensor([1, 2]))
    assert result["similarity_between_classes"].max() == pytest.approx(1)


def test_quantiles():
    result = quantiles({"some": np.linspace(0, 1, 101, dtype=np.float32)})
    assert result == pytest.approx({"some/p05": 0.05, "some/p50": 0.5, "some/p95": 0.95})
