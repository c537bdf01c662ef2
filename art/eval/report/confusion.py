"""Which classes are taken for which: the confusion matrix as a picture, and its largest mistakes as a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from art.eval.report.style import GRID, INK, MUTED, RIGHT, WRONG, new_figure

_ANNOTATED = 25  # classes up to which cells carry their percentage


@dataclass(frozen=True)
class ConfusedPair:
    """``count`` of the ``clips`` of class ``true`` were predicted as class ``predicted``."""

    true: int
    predicted: int
    count: int
    clips: int

    @property
    def share(self) -> float:
        """Of the clips of the true class, 0..1."""
        return self.count / self.clips


def check_confusion(confusion: Int[np.ndarray, "y y"], class_names: Sequence[str]) -> None:
    """Raise ValueError unless the matrix is square, counts something non-negative, and has a name for each class."""
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or confusion.shape[0] != len(class_names):
        raise ValueError(
            f"confusion has shape {confusion.shape} with {len(class_names)} class names, expected [Y, Y] and Y names"
        )
    if (confusion < 0).any():
        raise ValueError("confusion holds negative numbers, expected counts of clips: rows true, columns predicted")


def row_shares(confusion: Int[np.ndarray, "y y"]) -> Float[np.ndarray, "y y"]:
    """Each row (true class) as shares of its clips; NaN in the row of a class without clips."""
    total = confusion.sum(axis=1, keepdims=True).astype(np.float64)
    return np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)


def class_accuracy(confusion: Int[np.ndarray, "y y"]) -> Float[np.ndarray, " y"]:
    """Share of each class's clips that were predicted right; NaN for a class without clips."""
    return np.diagonal(row_shares(confusion)).copy()


def most_confused(confusion: Int[np.ndarray, "y y"], limit: int = 12) -> list[ConfusedPair]:
    """The largest mistakes, by count, then by share, then in class order; at most ``limit``.

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
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.true, pair.predicted))[:limit]


def confusion_figure(confusion: Int[np.ndarray, "y y"], class_names: Sequence[str]) -> Figure:
    """The row-normalised matrix: right predictions blue, mistakes orange, both stronger with their share.

    Opacity grows with the square root of the share, so that a mistake of a few per cent is seen. Up to 25 classes the
    cells carry per cent; with more, only so many classes are named as can be read.

    Raises:
        ValueError: see :func:`check_confusion`.

    Examples:
        >>> import numpy as np
        >>> from art.eval.report import confusion_figure
        >>> confusion_figure(np.array([[8, 2], [0, 10]]), ["walk", "run"]).savefig("confusion.png")
    """
    check_confusion(confusion, class_names)
    count = len(class_names)
    side = float(np.clip(0.34 * count, 3.2, 11.0))
    font = float(np.clip(72 * side / count * 0.62, 5.0, 9.0))
    labels = [f"{_shortened(name, 38)}  {i}" for i, name in enumerate(class_names)]
    longest = max(map(len, labels))
    figure = new_figure(side + longest * font * 0.6 / 72 + 0.5, side + 0.5)
    axes = figure.add_subplot()
    shares = np.nan_to_num(row_shares(confusion))
    right = np.eye(count, dtype=bool)
    for mask, colour in ((right, RIGHT), (~right, WRONG)):
        ramp = LinearSegmentedColormap.from_list("", [to_rgba(colour, 0.0), to_rgba(colour, 1.0)])
        opacity = np.sqrt(np.where(mask, shares, 0.0))
        axes.imshow(opacity, cmap=ramp, vmin=0, vmax=1, interpolation="none", aspect="equal")
    _name_classes(figure, labels, font, side)
    if count <= _ANNOTATED:
        for i, j in np.argwhere(confusion > 0):
            ink = "white" if shares[i, j] > 0.45 else INK
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    return figure


def _name_classes(figure: Figure, labels: list[str], font: float, side: float) -> None:
    axes = figure.axes[0]
    count = len(labels)
    step = int(np.ceil(font * 1.15 / (72 * side / count)))
    named = list(range(0, count, step))
    axes.set_yticks(named, [labels[i] for i in named], fontsize=font)
    wide = int(np.ceil(font * 0.65 * len(str(count - 1)) * 1.3 / (72 * side / count)))
    axes.set_xticks(list(range(0, count, wide)), [str(i) for i in range(0, count, wide)], fontsize=font)
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


def _shortened(name: str, limit: int) -> str:
    """The name with its middle left out where it is long: fine-grained classes differ at either end."""
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return name[: limit - 1 - tail].rstrip() + "…" + name[-tail:].lstrip()
