import re

import numpy as np
import pytest

from art.eval.report.confusion import most_confused
from art.eval.report.pair_explorer import pair_explorer
from art.eval.report.pairs import ExampleClip, PairExamples

NAMES = ("walk & <wave>", "run", "jump", "hop")
#: 5 of 100 walks are runs, 4 of 10 runs walks, 4 of 8 jumps hops, 1 of 6 hops a run.
MATRIX = np.array([[95, 5, 0, 0], [4, 6, 0, 0], [0, 0, 4, 4], [0, 1, 0, 5]])
GROUPS = ("ground", "ground", "air", "air")


def cards(text):
    """True and predicted class of each card, with its classes and its places in the orders."""
    found = []
    pattern = r'<article class="card pair([^"]*)" style="([^"]*)">\s*<h3>(.*?) <em>taken for</em> (.*?)</h3>'
    for kinds, places, true, predicted in re.findall(pattern, text):
        order = {name: int(place) for name, place in re.findall(r"--(\w+):(\d+);", places)}
        found.append((true, predicted, set(kinds.split()), order))
    return found


def in_order(text, name):
    return [(true[:4], predicted[:4]) for true, predicted, _, _ in sorted(cards(text), key=lambda card: card[3][name])]


def test_every_order_by_hand():
    text = pair_explorer(MATRIX, NAMES, (), ())
    assert in_order(text, "clips") == [("walk", "run"), ("jump", "hop"), ("run", "walk"), ("hop", "run")]
    assert in_order(text, "share") == [("jump", "hop"), ("run", "walk"), ("hop", "run"), ("walk", "run")]
    assert in_order(text, "both") == [("walk", "run"), ("run", "walk"), ("jump", "hop"), ("hop", "run")]
    often = pair_explorer(np.array([[0, 3, 0], [2, 0, 0], [0, 4, 0]]), NAMES[:3], (), ())
    assert in_order(often, "both") == [("walk", "run"), ("run", "walk"), ("jump", "run")], "5 both ways, then 4"
    assert in_order(text, "name") == [("walk", "run"), ("run", "walk"), ("jump", "hop"), ("hop", "run")]
    for name in ("clips", "share", "both", "name"):
        assert f".explorer:has(#pair-order-{name}:checked) .pair {{ order: var(--{name}); }}" in text
        assert f'id="pair-order-{name}"' in text
    assert text.count(" checked>") == 1 and 'id="pair-order-clips" checked' in text
    assert "walk &amp; &lt;wave&gt;" in text and "<wave>" not in text
    assert "<b>5</b> of 100 clips, 5.0 %; 4 the other way" in text
    assert "<b>4</b> of 8 clips, 50.0 %; none the other way" in text
    assert "pair-show" not in text, "without groups there is nothing to pick out"


def test_groups_can_be_picked_out():
    text = pair_explorer(MATRIX, NAMES, GROUPS, ())
    kinds = {(true[:4], predicted[:4]): kinds for true, predicted, kinds, _ in cards(text)}
    assert kinds == {
        ("walk", "run"): {"within", "g0"}, ("run", "walk"): {"within", "g0"}, ("jump", "hop"): {"within", "g1"},
        ("hop", "run"): {"across", "g0", "g1"},
    }  # fmt: skip
    for key, label in (("within", "within a group"), ("across", "between groups"), ("g0", "ground"), ("g1", "air")):
        assert f".explorer:has(#pair-show-{key}:checked) .pair:not(.{key}) {{ display: none; }}" in text
        assert re.search(rf'id="pair-show-{key}">{label}</label>', text)
    assert "#pair-show-all" not in text and 'id="pair-show-all" checked' in text


def test_a_group_without_a_shown_mistake_is_no_choice():
    text = pair_explorer(MATRIX[:2, :2], NAMES[:2], ("ground", "ground"), ())
    assert 'id="pair-show-g0"' in text
    alone = pair_explorer(np.diag([1, 1, 1, 1]) + np.eye(4, k=1, dtype=int)[[0, 3, 3, 3]], NAMES, GROUPS, ())
    assert 'id="pair-show-g0"' in alone and 'id="pair-show-g1"' not in alone


def clip(name, value):
    return ExampleClip(name, np.full((4, 8, 8, 3), value, dtype=np.uint8), 0.75)


def test_clips_stand_with_their_pair():
    (pair,) = [pair for pair in most_confused(MATRIX) if (pair.true, pair.predicted) == (2, 3)]
    examples = PairExamples(pair, (clip("a.mp4", 10), clip("b.mp4", 20)), clip("c<.mp4", 30), None)
    text = pair_explorer(MATRIX, NAMES, GROUPS, [examples])
    articles = re.findall(r"<article.*?</article>", text, re.S)
    (own,) = [article for article in articles if "jump <em>taken for</em> hop" in article]
    assert text.count("<img") == own.count("<img") == 3
    assert own.count('src="data:image/jpeg;base64,') == 3
    assert own.count('class="strip wrong"') == 2 and own.count('class="strip right"') == 1
    assert own.count("mistaken · 75.0 %") == 2 and "true class, predicted right · 75.0 %" in own
    assert "c&lt;.mp4" in own and "class it is taken for" not in own
    assert 'width="32" height="8"' in own, "the frames are side by side"


@pytest.mark.parametrize(("classes", "title"), [(10, "All 90 pairs"), (30, "The first 500 of 870 pairs")])
def test_many_pairs_are_a_list_and_the_first_of_them_cards(classes, title):
    matrix = np.arange(1, classes**2 + 1).reshape(classes, classes)
    text = pair_explorer(matrix, [f"class {i}" for i in range(classes)], (), ())
    assert len(cards(text)) == 36
    assert f"<summary>{title} as a list</summary>" in text
    assert text.count("<tr") == 1 + min(classes * (classes - 1), 500)


def test_no_mistakes():
    assert "No clip was misclassified." in pair_explorer(np.diag([3, 4]), NAMES[:2], (), ())
