"""Figures of the semantics bank: its texts as points, its classes against each other, and which prompt wins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from art.eval.report.style import GRID, INK, MUTED, new_figure
from art.tools.bank.embed import Embedding
from art.tools.bank.measure import BankView

_LISTED = 60  # classes that are named beside a picture
_LINE = 0.17  # inches


def embedding_figure(view: BankView, embeddings: Sequence[Embedding]) -> Figure:
    """A row for each method: before, and after with a line from where each text was; each class has its number.

    Raises:
        ValueError: there is no embedding.

    Examples:
        >>> import numpy as np
        >>> from art import load_model
        >>> from art.tools.bank import Embedding, embedding_figure, look_at_bank
        >>> view = look_at_bank(load_model("runs/motion/checkpoints/last"))
        >>> points = np.random.default_rng(0).normal(size=(4, 2))
        >>> plane = Embedding("by chance", points, points + 0.1, np.array([0, 1, 0, 1]))
        >>> embedding_figure(view, [plane]).savefig("embedding.png")
    """
    if not embeddings:
        raise ValueError("embeddings is empty, expected at least one")
    names = view.class_names if len(view.class_names) <= _LISTED else []
    height = max(3.9 * len(embeddings), _LINE * len(names)) + 0.3
    figure = _white(11.2 if names else 8.2, height)
    panels = figure.subplots(len(embeddings), 2, squeeze=False)
    colours = _class_colours(len(view.class_names))
    for row, embedding in zip(panels, embeddings, strict=True):
        both = np.concatenate([embedding.before, embedding.after])
        low, high = both.min(0), both.max(0)
        room = 0.06 * np.maximum(high - low, 1e-9)
        for axes, points, title in (
            (row[0], embedding.before, "before fine-tuning"),
            (row[1], embedding.after, "after; lines: from where each was"),
        ):
            _clear(axes)
            axes.set_title(f"{embedding.method}, {title}", fontsize=9.5, color=INK, loc="left")
            if axes is row[1]:
                for start, end, label in zip(embedding.before, embedding.after, embedding.labels, strict=True):
                    axes.plot(*zip(start, end, strict=True), color=colours[label], linewidth=0.9)
            axes.scatter(*points.T, s=9, c=colours[embedding.labels], linewidths=0)
            axes.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
            _number(axes, points, embedding.labels, low - room, high + room)
    if names:
        _list_beside(figure, names, colours)
    return figure


def similarity_figure(view: BankView) -> Figure:
    """The cosine of every two classes before and after, on one scale, and the difference.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import look_at_bank, similarity_figure
        >>> similarity_figure(look_at_bank(load_model("runs/motion/checkpoints/last"))).savefig("similarity.png")
    """
    count = len(view.class_names)
    named = count <= _LISTED
    side = min(max(2.6, _LINE * count), 7.0)
    figure = _white(3 * (side + 0.7) + (2.6 if named else 0.6), side + 0.9)
    apart = ~np.eye(count, dtype=bool)
    low = float(min(view.similarity_before[apart].min(), view.similarity_after[apart].min()))
    high = float(max(view.similarity_before[apart].max(), view.similarity_after[apart].max()))
    change = view.similarity_after - view.similarity_before
    most = max(float(np.abs(change).max()), 1e-6)
    panels = figure.subplots(1, 3)
    for axes, values, title, colours, limits in (
        (panels[0], view.similarity_before, "cosine of classes, before", "viridis", (low, high)),
        (panels[1], view.similarity_after, "after fine-tuning", "viridis", (low, high)),
        (panels[2], change, "after − before: blue apart, red together", "RdBu_r", (-most, most)),
    ):
        values = np.where(apart, values, np.nan)  # of a class with itself it is 1, and says nothing
        picture = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        bar = figure.colorbar(picture, ax=axes, shrink=0.75, pad=0.02)
        bar.ax.tick_params(labelsize=7, colors=MUTED, length=0)
        bar.outline.set_visible(False)
        numbers = [str(number + 1) for number in range(count)] if named else []
        rows = [f"{name}  {number}" for number, name in zip(numbers, view.class_names, strict=False)]
        _name_axis(axes, rows if axes is panels[0] else numbers, numbers, upright=True)
    return figure


def prompts_figure(view: BankView) -> Figure:
    """For each class the cosine of its prototype with each of its prompts, before and after; a ring: which wins.

    Each row is shown from its own lowest to its highest: which prompt wins is decided within a class.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import look_at_bank, prompts_figure
        >>> prompts_figure(look_at_bank(load_model("runs/motion/checkpoints/last"))).savefig("prompts.png")
    """
    count, prompts = len(view.class_names), len(view.templates)
    named = count <= _LISTED
    width, height = max(0.2 * prompts, 2.4), min(max(0.2 * count, 1.6), 9.0)
    figure = _white(2 * width + (3.4 if named else 1.0), height + 2.9)
    panels = figure.subplots(1, 2)
    for axes, values, winners, title in (
        (panels[0], view.likeness_before, view.winners_before, "before fine-tuning"),
        (panels[1], view.likeness_after, view.winners_after, "after"),
    ):
        low, high = values.min(0), values.max(0)
        axes.imshow(((values - low) / np.maximum(high - low, 1e-9)).T, cmap="Greys", vmin=0, vmax=1.4, aspect="auto")
        axes.scatter(winners, np.arange(count), s=46, marker="o", c="none", edgecolors="#D55E00", linewidths=1.8)
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        _name_axis(axes, view.class_names if named and axes is panels[0] else [], view.templates)
    return figure


def _white(width: float, height: float) -> Figure:
    figure = new_figure(width, height)
    figure.patch.set(facecolor="white", alpha=1.0)
    return figure


def _class_colours(count: int) -> np.ndarray:
    return np.array([colormaps["turbo"]((c + 0.5) / count) for c in range(count)])


def _clear(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GRID)


def _number(axes: Axes, points: np.ndarray, labels: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """The number of each class in the middle of its points; where numbers would lie on each other, beside it."""
    classes = np.unique(labels)
    middles = np.stack([np.median(points[labels == label], axis=0) for label in classes])
    places = _apart((middles - low) / (high - low), 0.042) * (high - low) + low
    for label, (x, y) in zip(classes, places, strict=True):
        text = axes.text(x, y, str(label + 1), fontsize=7.5, color=INK, ha="center", va="center", weight="bold")
        text.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="white")])


def _apart(places: np.ndarray, least: float) -> np.ndarray:
    """Places in the unit square moved until no two are nearer than ``least``, as far as some rounds can do it."""
    moved = places + np.random.default_rng(0).normal(0, 1e-6, places.shape)
    for _ in range(200):
        between = moved[:, None] - moved[None]
        distance = np.linalg.norm(between, axis=2) + np.eye(len(moved))
        missing = np.clip(least - distance, 0, None) * (1 - np.eye(len(moved)))
        if not missing.any():
            break
        moved += 0.5 * (between / distance[..., None] * missing[..., None]).sum(1)
    return moved.clip(0.02, 0.98)


def _list_beside(figure: Figure, names: Sequence[str], colours: np.ndarray) -> None:
    dots = [Line2D([], [], marker="o", linestyle="none", markersize=5, color=colour) for colour in colours]
    figure.legend(
        dots, [f"{number + 1}  {name}" for number, name in enumerate(names)], loc="outside right upper", fontsize=7.5,
        frameon=False, labelcolor=INK, handletextpad=0.2, labelspacing=0.35,
    )  # fmt: skip


def _name_axis(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, upright: bool = False) -> None:
    axes.tick_params(length=0, labelsize=7, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(range(len(columns)), columns, rotation=0 if upright else 90)
    axes.set_yticks(range(len(rows)), rows)
