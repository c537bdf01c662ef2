import numpy as np
import pytest

from art.experiments.ablation_chart import ablation_figure

TABLES = [
    {"title": "Parts", "rows": [{"title": "none", "run": "a"}, {"title": "all", "run": "b"}]},
    {"title": "K", "rows": [{"title": "K = 1", "run": "c"}, {"title": "K = 2", "run": "b"}]},
]
RUNS = [
    {"run": name, "seed": seed, "top1": share + 0.02 * seed}
    for name, share in (("a", 0.4), ("b", 0.6), ("c", 0.5))
    for seed in (0, 1)
]


def test_a_panel_for_each_table_with_a_dot_for_each_run():
    figure = ablation_figure(TABLES, RUNS)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["none", "all"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["K = 1", "K = 2"]
    dots = [np.asarray(collection.get_offsets()) for collection in first.collections[::2]]
    assert np.allclose(dots[0], [[40, 0], [42, 0]]) and np.allclose(dots[1], [[60, 1], [62, 1]])
    assert [text.get_text() for text in second.texts] == ["51.0", "61.0"]
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim()[0] > first.get_ylim()[1], "the first row is at the top"


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="tables is empty"):
        ablation_figure([], RUNS)
    with pytest.raises(ValueError, match="runs lacks 'c'"):
        ablation_figure(TABLES, RUNS[:4])
