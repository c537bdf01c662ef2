import math

import numpy as np
import pytest

from art.eval.report.curves import _running_mean, charts, comparison_figure, read_series, training_curves


def names(history):
    return [[series.name for series in members] for members in charts(history)]


def test_series_contain_finite_numbers_only():
    history = [
        {"event": "step", "epoch": 1, "step": 1, "loss/total": 2.0, "fine": True},
        {"event": "step", "epoch": 1, "step": 2, "loss/total": math.nan},
        {"event": "step", "epoch": 2, "step": 3, "loss/total": 1, "loss/video": None},
        {"event": "step", "epoch": 2, "step": 4, "loss/total": math.inf},
    ]
    (series,) = read_series(history)
    assert (series.name, series.group, series.short_name) == ("loss/total", "loss", "total")
    assert series.values.tolist() == [2.0, 1.0]
    assert training_curves([]) == training_curves(history[1:2]) == {}


def test_time_is_epoch_step_or_record():
    history = []
    for epoch in (1, 2, 3):
        history += [{"epoch": epoch, "step": 10 * epoch + i, "loss/total": 1.0} for i in range(4)]
        history.append({"epoch": epoch, "step": 10 * epoch + 9, "top1/test": 0.5})
    by_name = {series.name: series for series in read_series(history)}
    assert by_name["top1/test"].unit == "epoch" and by_name["top1/test"].times.tolist() == [1, 2, 3]
    assert by_name["loss/total"].unit == "step" and len(by_name["loss/total"].times) == 12
    (series,) = read_series([{"loss": 3.0}, {}, {"loss": 2.0}])
    assert series.unit == "record" and series.times.tolist() == [0, 2]


def test_resumed_run_replaces_repeated_values():
    history = [{"epoch": e, "top1": v} for e, v in ((1, 0.1), (2, 0.2), (2, 0.25), (3, 0.3))]
    (series,) = read_series(history)
    assert series.times.tolist() == [1, 2, 3] and series.values.tolist() == [0.1, 0.25, 0.3]


def test_groups_of_similar_magnitude_share_a_chart():
    assert names([{"epoch": 1, "top1/train": 0.9, "top1/test": 0.5}]) == [["top1/train", "top1/test"]]
    assert names([{"epoch": 1, "loss/total": 9.0, "loss/spatial": 0.1}]) == [["loss/total"], ["loss/spatial"]]
    assert names([{"epoch": 1, **{f"loss/{i}": 1.0 for i in range(5)}}]) == [[f"loss/{i}"] for i in range(5)]
    assert names([{"epoch": 1, "lr": 0.1, "top1": 0.5}]) == [["lr"], ["top1"]]


def test_training_curves():
    history = [{"epoch": e, "top1/train": e / 10, "top1/test": e / 20, "lr": 10.0**-e} for e in range(1, 5)]
    figures = training_curves(history)
    assert list(figures) == ["top1", "lr"]
    assert figures["lr"].axes[0].get_yscale() == "log"
    assert figures["top1"].axes[0].get_yscale() == "linear"
    (line,) = training_curves([{"epoch": 1, "top1": 0.5}])["top1"].axes[0].get_lines()
    assert line.get_marker() == "o", "a single value is visible"


def test_noise_is_smoothed_and_a_schedule_is_not():
    noise = np.random.default_rng(0).random(400)
    history = [{"step": i, "loss": 1 + noise[i], "lr": 0.1 if i < 200 else 0.01} for i in range(400)]
    figures = training_curves(history)
    raw, smooth = figures["loss"].axes[0].get_lines()
    assert np.std(smooth.get_ydata()) < np.std(raw.get_ydata())
    (schedule,) = figures["lr"].axes[0].get_lines()
    assert set(schedule.get_ydata().tolist()) == {0.1, 0.01}


def test_running_mean_keeps_the_ends_and_straight_lines():
    line = np.linspace(3, 7, 501)
    np.testing.assert_allclose(_running_mean(line), line)
    values = np.random.default_rng(1).random(300)
    smooth = _running_mean(values)
    assert smooth[0] == pytest.approx(values[0]) and smooth[-1] == pytest.approx(values[-1])
    assert smooth[100] == pytest.approx(values[97:104].mean())


def test_comparison_figure():
    top1 = {"art": [0.8, 0.9], "backbone": [0.6, 0.7, 0.8]}
    runs = [{"kind": kind, "seed": s, "top1": v} for kind, values in top1.items() for s, v in enumerate(values)]
    axes = comparison_figure(runs).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["backbone\n3 seeds", "art\n2 seeds"]
    assert [text.get_text() for text in axes.texts] == ["70.0", "85.0"]
    lines = sorted(sorted(line.get_ydata()) for line in axes.get_lines())
    assert lines == [pytest.approx([60, 80]), pytest.approx([70, 90])], "only seeds that both have"


def test_comparison_figure_of_another_key():
    runs = [{"optim.lr": lr, "seed": 0, "top1": 0.5} for lr in ("10", "2", "1")]
    axes = comparison_figure(runs, key="optim.lr", base="2").axes[0]
    assert [label.get_text().split()[0] for label in axes.get_xticklabels()] == ["2", "10", "1"]
    assert axes.get_xlabel() == "optim.lr"


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "runs is empty"),
        ([{"kind": "art", "seed": 0}], r"runs\[0\] lacks top1"),
        ([{"kind": "art", "seed": 0, "top1": 0.5}] * 2, "twice"),
    ],
)
def test_comparison_figure_of_invalid_runs(runs, message):
    with pytest.raises(ValueError, match=message):
        comparison_figure(runs)
