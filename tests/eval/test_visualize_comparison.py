import pytest

from art.eval.report.comparison import comparison_figure


def runs(**shares):
    return [{"kind": kind, "seed": seed, "top1": v} for kind, values in shares.items() for seed, v in enumerate(values)]


def test_means_stand_beside_their_kinds_the_base_first():
    figure = comparison_figure(runs(art=[0.8, 0.9], backbone=[0.6, 0.7, 0.8]))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["backbone\n3 seeds", "art\n2 seeds"]
    assert [text.get_text() for text in axes.texts] == ["70.0", "85.0"]
    joined = [sorted(line.get_ydata()) for line in axes.get_lines()]
    assert sorted(joined) == [pytest.approx([60, 80]), pytest.approx([70, 90])], "only seeds that both have"


def test_any_key_may_tell_them_apart_and_the_order_is_theirs():
    told = [{"optim.lr": lr, "seed": 0, "top1": 0.5} for lr in ("10", "2", "1")]
    axes = comparison_figure(told, key="optim.lr", base="2").axes[0]
    assert [label.get_text().split()[0] for label in axes.get_xticklabels()] == ["2", "10", "1"]
    assert axes.get_xlabel() == "optim.lr"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "runs is empty"),
        ([{"kind": "art", "seed": 0}], r"runs\[0\] lacks top1"),
        ([{"kind": "art", "seed": 0, "top1": 0.5}] * 2, "twice"),
    ],
)
def test_refuses_runs_that_cannot_be_compared(bad, message):
    with pytest.raises(ValueError, match=message):
        comparison_figure(bad)
