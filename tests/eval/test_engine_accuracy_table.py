import numpy as np

from art.eval.accuracy_table import table
from art.eval.metrics import measure

NAMES = ("flip with a rather long name", "twist", "leap", "hop")


def evaluation(groups=()):
    labels, answers = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 3, 2])
    return measure(np.eye(4, dtype=np.float32)[answers], labels, np.arange(5), NAMES, groups=groups)


def test_every_class_and_the_totals():
    lines = [" ".join(line.split()) for line in table(evaluation()).splitlines()]
    assert lines[:4] == [
        "flip with a rather long name 2 of 3 66.67 %",
        "twist 0 of 1 0.00 %",
        "leap 1 of 1 100.00 %",
        "hop 0 of 0 -",
    ]
    assert lines[5:] == [
        "all clips, top-1 3 of 5 60.00 %",
        "all clips, top-5 5 of 5 100.00 %",
        "mean over classes 55.56 %",
    ]


def test_groups_stand_between():
    text = table(evaluation(("VT", "VT", "FX_leap", "BB"))).splitlines()
    lines = [" ".join(line.split()) for line in text]
    assert lines[5:9] == [
        "group of classes top-1 mean over its classes",
        "VT (2 classes) 2 of 4 50.00 % 33.33 %",
        "FX_leap (1 class) 1 of 1 100.00 % 100.00 %",
        "BB (1 class) 0 of 0 - -",
    ]
    assert len({len(line) for line in text[5:9]}) == 1, "the columns stand below each other"
