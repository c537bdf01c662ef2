import html
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from art.data.datasets.base import Clip, ClipSet
from art.eval.metrics import compute_metrics
from art.eval.report import style
from art.eval.report.confusion import (
    ExampleClip,
    PairExamples,
    class_accuracy,
    collect_pairs,
    confusion_figure,
    most_confused,
    pair_explorer,
    row_fractions,
)
from art.eval.report.style import name_html, png_bytes, to_svg

SMALL = np.array([[6, 2, 0], [1, 0, 3], [0, 0, 0]])


def test_row_fractions():
    np.testing.assert_allclose(row_fractions(SMALL)[:2], [[0.75, 0.25, 0], [0.25, 0, 0.75]])
    assert np.isnan(row_fractions(SMALL)[2]).all(), "a class without clips"
    np.testing.assert_array_equal(class_accuracy(SMALL), [0.75, 0.0, np.nan])


def test_most_confused_is_sorted_by_count_then_fraction():
    pairs = [(pair.true, pair.predicted, pair.count, pair.clips, pair.fraction) for pair in most_confused(SMALL)]
    assert pairs == [(1, 2, 3, 4, 0.75), (0, 1, 2, 8, 0.25), (1, 0, 1, 4, 0.25)]
    assert len(most_confused(SMALL, limit=1)) == 1
    assert most_confused(np.diag([3, 4])) == []
    with pytest.warns(DeprecationWarning, match="share is now fraction"):
        assert most_confused(SMALL)[0].share == 0.75


def test_small_matrix_shows_percentages():
    axes = confusion_figure(SMALL, ["a", "b", "c"]).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["25", "25", "75", "75"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  0", "b  1", "c  2"]
    correct, wrong = (np.asarray(image.get_array()) for image in axes.images)
    np.testing.assert_allclose(correct, np.sqrt([[0.75, 0, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(wrong, np.sqrt([[0, 0.25, 0], [0.25, 0, 0.75], [0, 0, 0]]))


@pytest.mark.parametrize(("count", "labeled"), [(20, 20), (110, 110), (400, 134)])
def test_labels_of_a_large_matrix_do_not_overlap(count, labeled):
    figure = confusion_figure(np.eye(count, dtype=int), [f"class {i}" for i in range(count)])
    axes = figure.axes[0]
    labels = axes.get_yticklabels()
    assert len(labels) == labeled
    assert 5 <= labels[0].get_fontsize() < figure.get_size_inches()[1] * 72 / labeled
    assert (count <= 25) == bool(axes.texts)
    assert to_svg(figure, label="x", prefix="c").count("<svg") == 1


def test_long_names_keep_both_ends():
    name = "round-off, flic-flac on, stretched salto backward with 1.5 turn off"
    svg = to_svg(confusion_figure(SMALL, [name, "walk", "run"]), label="", prefix="x")
    assert name not in svg and re.search(r">round-off[^<]*…[^<]*turn off  0<", svg)


@pytest.mark.parametrize("name", [r"$\frac$", "$$", "$x_1$", r"\$a\$", "a$b", r"\frac{", "x^{"])
def test_names_are_not_formulas(name):
    svg = to_svg(confusion_figure(SMALL, [name, "walk", "run"]), label="", prefix="x")
    assert f">{name}  0<" in svg


@pytest.mark.parametrize("name", ["#1f2430", 'id="a"', "url(#b)", 'href="#c"', "<!-- d -->", "e --> f"])
def test_names_that_look_like_svg(name):
    text = re.sub("<[^>]*>", "", to_svg(confusion_figure(SMALL, [name, "walk", "run"]), label="", prefix="x"))
    assert html.unescape(text).count(f"{name}  0") == 1


def test_letters_that_the_default_font_lacks(monkeypatch, caplog):
    letter = "\u210a"  # only in fonts for formulas
    monkeypatch.setattr(style, "_FAMILIES", {})
    figure = confusion_figure(SMALL, [letter, "walk", "run"])
    png_bytes(figure)
    label = figure.axes[0].get_yticklabels()[0]
    assert label.get_fontfamily()[0] == "sans-serif" and len(label.get_fontfamily()) == 2 and not caplog.records
    monkeypatch.setattr(style, "_FAMILIES", {})
    monkeypatch.setattr(style.fontManager, "ttflist", [])
    for _ in range(2):
        png_bytes(confusion_figure(SMALL, [letter, "walk", "run"]))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"figures show boxes instead of {letter}: install a font")


def test_html_of_names():
    assert name_html("<b>") == '<bdi title="&lt;b&gt;">&lt;b&gt;</bdi>'
    assert name_html("a\u202eb\x00") == r'<bdi title="a\u202eb\x00">a\u202eb\x00</bdi>'
    long = name_html("start" + "x" * 4000 + "end")
    assert "x" * 4000 in long and len(re.sub("<[^>]*>", "", long)) == 160
    assert re.sub("<[^>]*>", "", long).startswith("start") and re.sub("<[^>]*>", "", long).endswith("end")


def test_invalid_matrix():
    with pytest.raises(ValueError, match=r"expected \[Y, Y\]"):
        confusion_figure(SMALL, ["a", "b"])
    with pytest.raises(ValueError, match="negative"):
        confusion_figure(np.array([[-1]]), ["a"])


#: True class, predicted class, its probability.
PREDICTIONS = [(0, 1, 0.5), (0, 1, 0.9), (0, 1, 0.7), (0, 0, 0.6), (0, 0, 0.8), (1, 2, 0.4), (2, 2, 0.7)]


@pytest.fixture
def evaluated():
    """A clip set whose first clip could not be read, and the predictions for the others."""
    names = ("walk", "run", "jump")
    clips = [Clip(Path("/clips/broken.mp4"), 0)]
    clips += [Clip(Path(f"/clips/{i}.mp4"), true, 1.5, 2.0) for i, (true, _, _) in enumerate(PREDICTIONS)]
    probabilities = np.zeros((len(PREDICTIONS), 3), dtype=np.float32)
    for row, (_, predicted, probability) in enumerate(PREDICTIONS):
        probabilities[row] = (1 - probability) / 2
        probabilities[row, predicted] = probability
    labels = np.array([true for true, _, _ in PREDICTIONS])
    evaluation = compute_metrics(probabilities, labels, np.arange(1, len(clips)), names)
    return ClipSet("set", "test", Path("/clips"), tuple(clips), names), evaluation


@pytest.fixture
def read():
    """The brightness of frame t is 10 t; ``read.names`` lists the clips that were read."""

    def reader(clip):
        reader.names.append(clip.path.name)
        return (10 * torch.arange(8, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 3, 48, 64).contiguous()

    reader.names = []
    return reader


def test_collect_pairs(evaluated, read):
    first, second = collect_pairs(*evaluated, read)
    assert (first.pair.true, first.pair.predicted, first.pair.count) == (0, 1, 3)
    assert [clip.name for clip in first.mistaken] == ["1.mp4 [1.5..2 s]", "2.mp4 [1.5..2 s]"]
    assert [clip.probability for clip in first.mistaken] == pytest.approx([0.9, 0.7])
    assert first.true_right.name.startswith("4.mp4") and first.true_right.probability == pytest.approx(0.8)
    assert first.predicted_right is None, "no clip of that class was predicted correctly"
    assert [clip.name.split()[0] for clip in second.mistaken] == ["5.mp4"]
    assert second.true_right is None and second.predicted_right.name.startswith("6.mp4")
    assert sorted(read.names) == ["1.mp4", "2.mp4", "4.mp4", "5.mp4", "6.mp4"], "each clip is read once"
    frames = first.mistaken[0].frames
    assert frames.shape == (4, 96, 96, 3) and frames.dtype == np.uint8
    assert frames[:, 0, 0, 0].tolist() == [10, 30, 50, 70]


def test_collect_pairs_limits(evaluated, read):
    (only,) = collect_pairs(*evaluated, read, limit=1, mistakes=3)
    assert len(only.mistaken) == 3
    assert collect_pairs(*evaluated, read, limit=0) == []
    with pytest.raises(ValueError, match="limit is 1 and mistakes is -1"):
        collect_pairs(*evaluated, read, limit=1, mistakes=-1)


NAMES = ("walk & <wave>", "run", "jump", "hop")
#: 5 of 100 walks are predicted as run, 4 of 10 runs as walk, 4 of 8 jumps as hop, 1 of 6 hops as run.
MATRIX = np.array([[95, 5, 0, 0], [4, 6, 0, 0], [0, 0, 4, 4], [0, 1, 0, 5]])
GROUPS = ("ground", "ground", "air", "air")


def without_isolation(text):
    return re.sub("</?bdi[^>]*>", "", text)


def cards(text):
    """Return true and predicted class, CSS classes, and position in each order, of each card."""
    result = []
    pattern = r'<article class="card pair([^"]*)" style="([^"]*)">\s*<h3>(.*?) <em>predicted as</em> (.*?)</h3>'
    for kinds, places, true, predicted in re.findall(pattern, without_isolation(text)):
        order = {name: int(place) for name, place in re.findall(r"--(\w+):(\d+);", places)}
        result.append((true, predicted, set(kinds.split()), order))
    return result


def in_order(text, name):
    return [(true[:4], predicted[:4]) for true, predicted, _, _ in sorted(cards(text), key=lambda card: card[3][name])]


def test_orders_of_the_cards():
    text = pair_explorer(MATRIX, NAMES, (), ())
    assert in_order(text, "clips") == [("walk", "run"), ("jump", "hop"), ("run", "walk"), ("hop", "run")]
    assert in_order(text, "fraction") == [("jump", "hop"), ("run", "walk"), ("hop", "run"), ("walk", "run")]
    assert in_order(text, "both") == [("walk", "run"), ("run", "walk"), ("jump", "hop"), ("hop", "run")]
    frequent = pair_explorer(np.array([[0, 3, 0], [2, 0, 0], [0, 4, 0]]), NAMES[:3], (), ())
    assert in_order(frequent, "both") == [("walk", "run"), ("run", "walk"), ("jump", "run")], "5 both ways, then 4"
    assert in_order(text, "name") == [("walk", "run"), ("run", "walk"), ("jump", "hop"), ("hop", "run")]
    for name in ("clips", "fraction", "both", "name"):
        assert f".explorer:has(#pair-order-{name}:checked) .pair {{ order: var(--{name}); }}" in text
        assert f'id="pair-order-{name}"' in text
    assert text.count(" checked>") == 1 and 'id="pair-order-clips" checked' in text
    assert "walk &amp; &lt;wave&gt;" in text and "<wave>" not in text
    assert "<b>5</b> of 100 clips, 5.0 %; 4 in the opposite direction" in text
    assert "<b>4</b> of 8 clips, 50.0 %; none in the opposite direction" in text
    assert "pair-show" not in text, "there is no filter without groups"


def test_filters_by_group():
    text = without_isolation(pair_explorer(MATRIX, NAMES, GROUPS, ()))
    kinds = {(true[:4], predicted[:4]): kinds for true, predicted, kinds, _ in cards(text)}
    assert kinds == {
        ("walk", "run"): {"within", "g0"}, ("run", "walk"): {"within", "g0"}, ("jump", "hop"): {"within", "g1"},
        ("hop", "run"): {"across", "g0", "g1"},
    }  # fmt: skip
    for key, label in (("within", "within a group"), ("across", "between groups"), ("g0", "ground"), ("g1", "air")):
        assert f".explorer:has(#pair-show-{key}:checked) .pair:not(.{key}) {{ display: none; }}" in text
        assert re.search(rf'id="pair-show-{key}">{label}</label>', text)
    assert "#pair-show-all" not in text and 'id="pair-show-all" checked' in text
    one_group = pair_explorer(np.diag([1, 1, 1, 1]) + np.eye(4, k=1, dtype=int)[[0, 3, 3, 3]], NAMES, GROUPS, ())
    assert 'id="pair-show-g0"' in one_group and 'id="pair-show-g1"' not in one_group, "groups without mistakes"


def test_clips_of_a_pair():
    def clip(name, value):
        return ExampleClip(name, np.full((4, 8, 8, 3), value, dtype=np.uint8), 0.75)

    (pair,) = [pair for pair in most_confused(MATRIX) if (pair.true, pair.predicted) == (2, 3)]
    examples = PairExamples(pair, (clip("a.mp4", 10), clip("b.mp4", 20)), clip("c<.mp4", 30), None)
    text = without_isolation(pair_explorer(MATRIX, NAMES, GROUPS, [examples]))
    (card,) = [a for a in re.findall(r"<article.*?</article>", text, re.S) if "jump <em>predicted as</em> hop" in a]
    assert text.count("<img") == card.count("<img") == card.count('src="data:image/jpeg;base64,') == 3
    assert card.count('class="strip wrong"') == 2 and card.count('class="strip correct"') == 1
    assert card.count("misclassified · 75.0 %") == 2 and "correct clip of the true class · 75.0 %" in card
    assert "c&lt;.mp4" in card and "correct clip of the predicted class" not in card
    assert 'width="32" height="8"' in card, "the frames are in a row"


@pytest.mark.parametrize(("classes", "title"), [(10, "All 90 pairs"), (30, "First 500 of 870 pairs")])
def test_list_of_many_pairs(classes, title):
    matrix = np.arange(1, classes**2 + 1).reshape(classes, classes)
    text = pair_explorer(matrix, [f"class {i}" for i in range(classes)], (), ())
    assert len(cards(text)) == 36
    assert f"<summary>{title} as a list</summary>" in text
    assert text.count("<tr") == 1 + min(classes * (classes - 1), 500)
