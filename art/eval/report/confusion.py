"""Confusions between classes: the matrix as a figure, the most confused pairs, and clips of these pairs as HTML cards.

The cards can be sorted and filtered without a script: each choice is a radio button, and CSS rules that depend on it
set the order of the cards, from a number in each card's style, or hide cards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from art._deprecated import renamed_attribute
from art.data.datasets.base import ClipSet
from art.data.transforms.augment import CenterCrop
from art.eval.metrics import Evaluation
from art.eval.report.samples import ClipReader
from art.eval.report.style import (
    CORRECT,
    GRID,
    INK,
    MUTED,
    WRONG,
    bar,
    figure_text,
    jpeg_uri,
    name_html,
    new_figure,
    number_cell,
    percent,
    table,
    text_cell,
)
from art.eval.report.tracklets import shown_frames
from art.terminal import plural, printable, text_columns

_ANNOTATED_CLASSES = 25  # up to this number of classes, cells show their percentage
_NAME_COLUMNS = 38  # width of a class name in the figure, in letters

_CARDS = 36  # pairs shown with clips
_MISTAKES = 2  # misclassified clips per pair
_FRAMES = 4  # frames per clip
_PIXELS = 96  # height and width of these frames
_LISTED = 500  # pairs in the list of all pairs

_ORDERS = {
    "clips": "most clips",
    "fraction": "largest fraction of the class",
    "both": "most clips in both directions",
    "name": "class order",
}


@dataclass(frozen=True)
class ConfusedPair:
    """``count`` of the ``clips`` of class ``true`` were predicted as class ``predicted``."""

    true: int
    predicted: int
    count: int
    clips: int

    @property
    def fraction(self) -> float:
        """``count`` as a fraction of the clips of the true class, 0 to 1."""
        return self.count / self.clips

    share = renamed_attribute("share", "fraction")


def row_fractions(confusion: Int[np.ndarray, "y y"]) -> Float[np.ndarray, "y y"]:
    """Normalize each row (true class) to a sum of 1. The rows of classes without clips are NaN."""
    total = confusion.sum(axis=1, keepdims=True).astype(np.float64)
    return np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)


def class_accuracy(confusion: Int[np.ndarray, "y y"]) -> Float[np.ndarray, " y"]:
    """Return the fraction of correct clips of each class; NaN for classes without clips."""
    return np.diagonal(row_fractions(confusion)).copy()


def most_confused(confusion: Int[np.ndarray, "y y"], limit: int = 12) -> list[ConfusedPair]:
    """Return the ``limit`` largest off-diagonal entries, sorted by count, then fraction, then class.

    Examples:
        >>> import numpy as np
        >>> from art.eval.report import most_confused
        >>> pair = most_confused(np.array([[8, 2], [0, 10]]))[0]
        >>> pair.true, pair.predicted, pair.count
        (0, 1, 2)
    """
    clips = confusion.sum(axis=1)
    mistakes = [(int(i), int(j)) for i, j in np.argwhere(confusion > 0) if i != j]
    pairs = [ConfusedPair(i, j, int(confusion[i, j]), int(clips[i])) for i, j in mistakes]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.fraction, pair.true, pair.predicted))[:limit]


def confusion_figure(confusion: Int[np.ndarray, "y y"], class_names: Sequence[str]) -> Figure:
    """Draw the row-normalized matrix, with correct predictions in blue and mistakes in orange.

    The opacity is proportional to the square root of the fraction, so that small fractions are visible. Up to 25
    classes, cells contain percentages; with many classes, only every n-th class is labeled.

    Args:
        confusion: [Y, Y] counts of clips, with rows for true and columns for predicted classes.
        class_names: Y names.

    Raises:
        ValueError: If the matrix is not square, has negative entries, or does not match the names.

    Examples:
        >>> import numpy as np
        >>> from art.eval.report import confusion_figure
        >>> confusion_figure(np.array([[8, 2], [0, 10]]), ["walk", "run"]).savefig("confusion.png")
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or confusion.shape[0] != len(class_names):
        raise ValueError(
            f"confusion has shape {confusion.shape} with {len(class_names)} class names, expected [Y, Y] and Y names"
        )
    if (confusion < 0).any():
        raise ValueError("confusion has negative entries, expected counts of clips (rows true, columns predicted)")
    count = len(class_names)
    side = float(np.clip(0.34 * count, 3.2, 11.0))  # inches
    font_size = float(np.clip(72 * side / count * 0.62, 5.0, 9.0))  # points
    labels = [f"{figure_text(name, _NAME_COLUMNS)}  {i}" for i, name in enumerate(class_names)]
    figure = new_figure(side + max(map(text_columns, labels)) * font_size * 0.6 / 72 + 0.5, side + 0.5)
    axes = figure.add_subplot()
    fractions = np.nan_to_num(row_fractions(confusion))
    diagonal = np.eye(count, dtype=bool)
    for mask, color in ((diagonal, CORRECT), (~diagonal, WRONG)):
        ramp = LinearSegmentedColormap.from_list("", [to_rgba(color, 0.0), to_rgba(color, 1.0)])
        opacity = np.sqrt(np.where(mask, fractions, 0.0))
        axes.imshow(opacity, cmap=ramp, vmin=0, vmax=1, interpolation="none", aspect="equal")
    _label_classes(axes, labels, font_size, 72 * side / count)
    if count <= _ANNOTATED_CLASSES:
        for i, j in np.argwhere(confusion > 0):
            color = "white" if fractions[i, j] > 0.45 else INK
            axes.text(j, i, f"{100 * fractions[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=color)
    return figure


def _label_classes(axes: Axes, labels: list[str], font_size: float, cell_size: float) -> None:
    """Label every n-th row with its name and every m-th column with its index; sizes are in points."""
    count = len(labels)
    rows = range(0, count, int(np.ceil(font_size * 1.15 / cell_size)))
    columns = range(0, count, int(np.ceil(font_size * 0.65 * len(str(count - 1)) * 1.3 / cell_size)))
    axes.set_yticks(list(rows), [labels[i] for i in rows], fontsize=font_size)
    axes.set_xticks(list(columns), [str(i) for i in columns], fontsize=font_size)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=0, pad=3)
    axes.set_xlabel("predicted", fontsize=9, color=MUTED)
    axes.set_ylabel("true", fontsize=9, color=MUTED)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.patch.set_alpha(0.0)
    if count <= 60:
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=GRID, linewidth=0.5)
        axes.tick_params(which="minor", length=0)


@dataclass(frozen=True)
class ExampleClip:
    """A few frames of a clip.

    Attributes:
        name: path of the file and, for a part of it, its time span.
        frames: ``[n, h, w, 3]``, spread evenly over the frames that the model received.
        probability: probability of the predicted class, 0 to 1.
    """

    name: str
    frames: UInt8[np.ndarray, "n h w 3"]
    probability: float


@dataclass(frozen=True)
class PairExamples:
    """Clips of a confused pair.

    Attributes:
        pair: the pair.
        mistaken: misclassified clips of the true class, in descending order of probability.
        true_right: the correctly predicted clip of the true class with the highest probability; None if there is none.
        predicted_right: the same for the predicted class.
    """

    pair: ConfusedPair
    mistaken: tuple[ExampleClip, ...]
    true_right: ExampleClip | None
    predicted_right: ExampleClip | None


def collect_pairs(
    clip_set: ClipSet,
    evaluation: Evaluation,
    read: ClipReader,
    *,
    limit: int = _CARDS,
    mistakes: int = _MISTAKES,
) -> list[PairExamples]:
    """Read clips of the most confused pairs.

    Args:
        clip_set: the clips that were evaluated; ``evaluation.indices`` are indices into it.
        evaluation: the predictions.
        read: reads a clip, see :func:`art.eval.report.samples.clip_reader`. Each clip is read once, even if several
            pairs use it.
        limit: maximum number of pairs.
        mistakes: maximum number of misclassified clips per pair.

    Raises:
        ValueError: If ``limit`` or ``mistakes`` is negative.
    """
    if limit < 0 or mistakes < 0:
        raise ValueError(f"limit is {limit} and mistakes is {mistakes}, expected numbers of at least 0")
    predicted_classes = evaluation.probabilities.argmax(axis=1)
    cache: dict[int, ExampleClip] = {}

    def example(row: int) -> ExampleClip:
        if row not in cache:
            index = int(evaluation.indices[row])
            clip = clip_set.clips[index]
            video = read(clip)
            frames = CenterCrop(_PIXELS)(video[torch.from_numpy(shown_frames(len(video), _FRAMES))][None])[0]
            cache[row] = ExampleClip(
                name=f"{clip_set.relative_path(index)}{str(clip).removeprefix(str(clip.path))}",
                frames=frames.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
                probability=float(evaluation.probabilities[row].max()),
            )
        return cache[row]

    def examples(true: int, predicted: int, count: int) -> tuple[ExampleClip, ...]:
        rows = np.flatnonzero((evaluation.labels == true) & (predicted_classes == predicted))
        most_probable = rows[np.argsort(-evaluation.probabilities[rows, predicted], kind="stable")]
        return tuple(example(row) for row in most_probable[:count].tolist())

    return [
        PairExamples(
            pair,
            examples(pair.true, pair.predicted, mistakes),
            next(iter(examples(pair.true, pair.true, 1)), None),
            next(iter(examples(pair.predicted, pair.predicted, 1)), None),
        )
        for pair in most_confused(evaluation.confusion, limit)
    ]


def pair_explorer(
    confusion: Int[np.ndarray, "y y"],
    class_names: Sequence[str],
    groups: Sequence[str],
    examples: Sequence[PairExamples],
) -> str:
    """Return the HTML of the most confused pairs as cards, and a list of all pairs below them.

    Args:
        confusion: [Y, Y] counts of clips, with rows for true and columns for predicted classes.
        class_names: Y names.
        groups: the group of each class, or empty.
        examples: clips of any of the pairs, in any order.
    """
    pairs = most_confused(confusion, limit=_LISTED)
    if not pairs:
        return '<p class="card empty">No clip was misclassified.</p>'
    shown = pairs[:_CARDS]
    by_pair = {(example.pair.true, example.pair.predicted): example for example in examples}
    group_keys = {name: f"g{i}" for i, name in enumerate(dict.fromkeys(groups))}  # CSS classes
    ranks = _ranks(shown, confusion)
    cards = []
    for pair, rank in zip(shown, ranks, strict=True):
        kinds = ""
        if groups:
            own = (groups[pair.true], groups[pair.predicted])
            kinds = f" {'within' if own[0] == own[1] else 'across'} {' '.join(sorted({group_keys[g] for g in own}))}"
        order = "".join(f"--{name}:{place};" for name, place in rank.items())
        opposite = int(confusion[pair.predicted, pair.true])
        true, predicted = name_html(class_names[pair.true]), name_html(class_names[pair.predicted])
        cards.append(
            f'<article class="card pair{kinds}" style="{order}">\n'
            f"<h3>{true} <em>predicted as</em> {predicted}</h3>\n"
            f'<p class="count"><b>{pair.count}</b> of {plural(pair.clips, "clip")}, {percent(pair.fraction)}; '
            f"{opposite or 'none'} in the opposite direction{bar(pair.fraction, 'wrong')}</p>\n"
            f"{_strips(by_pair.get((pair.true, pair.predicted)))}</article>"
        )
    controls = _radio_buttons("order", "Order", _ORDERS)
    rules = [f".explorer:has(#pair-order-{key}:checked) .pair {{ order: var(--{key}); }}" for key in _ORDERS]
    if groups:
        present = {groups[i] for pair in shown for i in (pair.true, pair.predicted)}
        filters = {"within": "within a group", "across": "between groups"}
        filters |= {key: name for name, key in group_keys.items() if name in present}
        controls += _radio_buttons("show", "Show", {"all": "all", **filters})
        rules += [f".explorer:has(#pair-show-{key}:checked) .pair:not(.{key}) {{ display: none; }}" for key in filters]
    content = "\n".join(cards)
    return (
        f'<div class="explorer">\n{controls}<style>{" ".join(rules)}</style>\n<div class="pairs">\n{content}\n</div>\n'
        f"</div>\n{_pair_list(pairs, confusion, class_names)}"
    )


def _ranks(pairs: Sequence[ConfusedPair], confusion: Int[np.ndarray, "y y"]) -> list[dict[str, int]]:
    """Return the position of each pair in each order."""

    def sort_keys(pair: ConfusedPair) -> dict[str, tuple[float, ...]]:
        both = pair.count + int(confusion[pair.predicted, pair.true])
        return {
            "clips": (-pair.count, -pair.fraction),
            "fraction": (-pair.fraction, -pair.count),
            # The two directions of a pair are adjacent.
            "both": (-both, min(pair.true, pair.predicted), max(pair.true, pair.predicted)),
            "name": (pair.true, pair.predicted),
        }

    keys = [sort_keys(pair) for pair in pairs]
    orders = {name: sorted(range(len(pairs)), key=[key[name] for key in keys].__getitem__) for name in _ORDERS}
    return [{name: order.index(i) for name, order in orders.items()} for i in range(len(pairs))]


def _radio_buttons(name: str, title: str, choices: Mapping[str, str]) -> str:
    """Return radio buttons, the first of them checked."""
    buttons = "".join(
        f'<label><input type="radio" name="pair-{name}" id="pair-{name}-{key}"{" checked" * (i == 0)}>'
        f"{name_html(label)}</label> "
        for i, (key, label) in enumerate(choices.items())
    )
    return f'<p class="choose"><span>{escape(title)}</span>{buttons}</p>'


def _strips(examples: PairExamples | None) -> str:
    if examples is None:
        return ""
    rows = [_strip(clip, "wrong", "misclassified") for clip in examples.mistaken]
    for clip, name in ((examples.true_right, "true"), (examples.predicted_right, "predicted")):
        if clip is not None:
            rows.append(_strip(clip, "correct", f"correct clip of the {name} class"))
    return "".join(rows)


def _strip(clip: ExampleClip, kind: str, label: str) -> str:
    pixels = np.concatenate(list(clip.frames), axis=1)
    height, width = pixels.shape[:2]
    image = (
        f'<img src="{jpeg_uri(pixels, quality=78)}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{len(clip.frames)} frames of {escape(printable(clip.name))}">'
    )
    return (
        f'<figure class="strip {kind}">{image}<figcaption>{escape(label)} · {percent(clip.probability)}'
        f"<small>{name_html(clip.name)}</small></figcaption></figure>\n"
    )


def _pair_list(pairs: Sequence[ConfusedPair], confusion: Int[np.ndarray, "y y"], class_names: Sequence[str]) -> str:
    total = int((confusion - np.diag(np.diag(confusion)) > 0).sum())
    rows = [
        [
            text_cell(class_names[pair.true]),
            text_cell(class_names[pair.predicted]),
            number_cell(f"{pair.count} <small>of {pair.clips}</small>"),
            number_cell(confusion[pair.predicted, pair.true]),
        ]
        for pair in pairs
    ]
    number = f"All {total}" if total <= len(pairs) else f"First {len(pairs)} of {total}"
    content = table(("true class", "predicted class", "clips", "opposite direction"), rows)
    return f'<details class="card all"><summary>{number} pairs as a list</summary>{content}</details>'
