"""The confused pairs in the report: cards that can be put in order and picked out, without a script.

A choice is a radio button, and a rule of the page's style does what it says: an order is a number on each card, and a
choice of groups hides the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Int

from art.eval.report.confusion import ConfusedPair, most_confused
from art.eval.report.page import bar, cell, percent, table
from art.eval.report.pairs import SHOWN_PAIRS, ExampleClip, PairExamples
from art.eval.report.style import jpeg_uri

_LISTED = 500  # pairs in the list of all

_ORDERS = {
    "clips": "most clips",
    "share": "largest share of the class",
    "both": "most clips both ways",
    "name": "order of the classes",
}


def pair_explorer(
    confusion: Int[np.ndarray, "y y"],
    class_names: Sequence[str],
    groups: Sequence[str],
    examples: Sequence[PairExamples],
) -> str:
    """The most confused pairs as cards, with clips where there are some, and below them the list of all pairs.

    Args:
        confusion: rows true, columns predicted.
        class_names: Y names.
        groups: for each class its group, or nothing.
        examples: clips of some of the pairs, in any order.
    """
    everything = most_confused(confusion, limit=_LISTED)
    if not everything:
        return '<p class="card empty">No clip was misclassified.</p>'
    shown = everything[:SHOWN_PAIRS]
    of_pair = {(found.pair.true, found.pair.predicted): found for found in examples}
    places = _places(shown, confusion)
    cards = [
        _card(pair, confusion, class_names, groups, of_pair.get((pair.true, pair.predicted)), places[i])
        for i, pair in enumerate(shown)
    ]
    choices = _radios("order", "Order", _ORDERS)
    if groups:
        choices += _radios("show", "Show", _shown_choices(shown, groups))
    return (
        f'<div class="explorer">\n{choices}{_rules(shown, groups)}\n<div class="pairs">\n'
        + "\n".join(cards)
        + f"\n</div>\n</div>\n{_list(everything, confusion, class_names)}"
    )


def _radios(name: str, title: str, choices: dict[str, str]) -> str:
    """Radio buttons, the first of them chosen."""
    buttons = "".join(
        f'<label><input type="radio" name="pair-{name}" id="pair-{name}-{key}"{" checked" * (i == 0)}>'
        f"{escape(label)}</label> "
        for i, (key, label) in enumerate(choices.items())
    )
    return f'<p class="choose"><span>{escape(title)}</span>{buttons}</p>'


def _group_keys(groups: Sequence[str]) -> dict[str, str]:
    """A word for each group, for the names of classes in the page's style."""
    return {name: f"g{i}" for i, name in enumerate(dict.fromkeys(groups))}


def _shown_choices(shown: Sequence[ConfusedPair], groups: Sequence[str]) -> dict[str, str]:
    keys, present = _group_keys(groups), {groups[i] for pair in shown for i in (pair.true, pair.predicted)}
    fixed = {"all": "all", "within": "within a group", "across": "between groups"}
    return fixed | {key: name for name, key in keys.items() if name in present}


def _rules(shown: Sequence[ConfusedPair], groups: Sequence[str]) -> str:
    orders = [f".explorer:has(#pair-order-{key}:checked) .pair {{ order: var(--{key}); }}" for key in _ORDERS]
    choices = [key for key in _shown_choices(shown, groups) if key != "all"] if groups else []
    hidden = [f".explorer:has(#pair-show-{key}:checked) .pair:not(.{key}) {{ display: none; }}" for key in choices]
    return f"<style>{' '.join([*orders, *hidden])}</style>"


def _places(shown: Sequence[ConfusedPair], confusion: Int[np.ndarray, "y y"]) -> list[dict[str, int]]:
    """For each pair its place in each order."""

    def ranks(pair: ConfusedPair) -> dict[str, tuple[float, ...]]:
        both = pair.count + int(confusion[pair.predicted, pair.true])
        return {
            "clips": (-pair.count, -pair.share),
            "share": (-pair.share, -pair.count),
            # Both ways of a pair come together.
            "both": (-both, min(pair.true, pair.predicted), max(pair.true, pair.predicted)),
            "name": (pair.true, pair.predicted),
        }

    of_pair = [ranks(pair) for pair in shown]
    orders = {name: sorted(range(len(shown)), key=[own[name] for own in of_pair].__getitem__) for name in _ORDERS}
    return [{name: order.index(i) for name, order in orders.items()} for i in range(len(shown))]


def _card(
    pair: ConfusedPair,
    confusion: Int[np.ndarray, "y y"],
    class_names: Sequence[str],
    groups: Sequence[str],
    examples: PairExamples | None,
    places: dict[str, int],
) -> str:
    true, predicted = escape(class_names[pair.true]), escape(class_names[pair.predicted])
    kinds = ""
    if groups:
        keys, own = _group_keys(groups), (groups[pair.true], groups[pair.predicted])
        kinds = f" {'within' if own[0] == own[1] else 'across'} {' '.join(sorted({keys[name] for name in own}))}"
    order = "".join(f"--{name}:{place};" for name, place in places.items())
    back = int(confusion[pair.predicted, pair.true])
    other = f"{back} the other way" if back else "none the other way"
    return (
        f'<article class="card pair{kinds}" style="{order}">\n<h3>{true} <em>taken for</em> {predicted}</h3>\n'
        f'<p class="count"><b>{pair.count}</b> of {pair.clips} clips, {percent(pair.share)}; {other}'
        f"{bar(pair.share, 'wrong')}</p>\n{_strips(examples)}</article>"
    )


def _strips(examples: PairExamples | None) -> str:
    if examples is None:
        return ""
    rows = [_strip(clip, "wrong", "mistaken") for clip in examples.mistaken]
    for clip, told in ((examples.true_right, "true class"), (examples.predicted_right, "class it is taken for")):
        if clip is not None:
            rows.append(_strip(clip, "right", f"{told}, predicted right"))
    return "".join(rows)


def _strip(clip: ExampleClip, kind: str, told: str) -> str:
    picture = np.concatenate(list(clip.frames), axis=1)
    height, width = picture.shape[:2]
    image = (
        f'<img src="{jpeg_uri(picture, quality=78)}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{len(clip.frames)} frames of {escape(clip.name)}">'
    )
    return (
        f'<figure class="strip {kind}">{image}<figcaption>{escape(told)} · {percent(clip.probability)}'
        f'<small title="{escape(clip.name)}">{escape(clip.name)}</small></figcaption></figure>\n'
    )


def _list(pairs: Sequence[ConfusedPair], confusion: Int[np.ndarray, "y y"], class_names: Sequence[str]) -> str:
    total = int((confusion - np.diag(np.diag(confusion)) > 0).sum())
    rows = [
        [
            cell(class_names[pair.true]),
            cell(class_names[pair.predicted]),
            f'<td class="share">{pair.count} <small>of {pair.clips}</small></td>',
            f'<td class="share">{int(confusion[pair.predicted, pair.true])}</td>',
        ]
        for pair in pairs
    ]
    many = f"All {total}" if total <= len(pairs) else f"The first {len(pairs)} of {total}"
    listed = table(("true class", "taken for", "clips", "the other way"), rows)
    return f'<details class="card all"><summary>{many} pairs as a list</summary>{listed}</details>'
