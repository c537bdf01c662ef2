"""Figures of the semantics bank: texts as points, similarities of classes, best prompts; files of ``art bank``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from art.data.files import atomic_write, check_writable
from art.eval.report.style import GRID, INK, MUTED, new_figure, png_bytes
from art.model import find_checkpoint
from art.model.loading import load_model
from art.tools.bank.analysis import METHODS, BankAnalysis, Embedding, analyze_bank, embed

_MAX_NAMED = 60  # with more classes, names are omitted
_LINE = 0.17  # height of a line of text, inches


def embedding_figure(analysis: BankAnalysis, embeddings: Sequence[Embedding]) -> Figure:
    """Draw a row per method: before, and after with lines from the earlier positions; classes are numbered.

    Raises:
        ValueError: `embeddings` is empty.

    Examples:
        >>> import numpy as np
        >>> from art import load_model
        >>> from art.tools.bank import Embedding, embedding_figure, analyze_bank
        >>> analysis = analyze_bank(load_model("runs/motion/checkpoints/last"))
        >>> points = np.random.default_rng(0).normal(size=(4, 2))
        >>> plane = Embedding("random", points, points + 0.1, np.array([0, 1, 0, 1]))
        >>> embedding_figure(analysis, [plane]).savefig("embedding.png")
    """
    if not embeddings:
        raise ValueError("embeddings is empty, expected at least one")
    names = analysis.class_names if len(analysis.class_names) <= _MAX_NAMED else []
    height = max(3.9 * len(embeddings), _LINE * len(names)) + 0.3
    figure = _white_figure(11.2 if names else 8.2, height)
    panels = figure.subplots(len(embeddings), 2, squeeze=False)
    colors = _class_colors(len(analysis.class_names))
    for row, embedding in zip(panels, embeddings, strict=True):
        both = np.concatenate([embedding.before, embedding.after])
        low, high = both.min(0), both.max(0)
        room = 0.06 * np.maximum(high - low, 1e-9)
        for axes, points, title in (
            (row[0], embedding.before, "before fine-tuning"),
            (row[1], embedding.after, "after; lines: from the position before"),
        ):
            _remove_ticks(axes)
            axes.set_title(f"{embedding.method}, {title}", fontsize=9.5, color=INK, loc="left")
            if axes is row[1]:
                for start, end, label in zip(embedding.before, embedding.after, embedding.labels, strict=True):
                    axes.plot(*zip(start, end, strict=True), color=colors[label], linewidth=0.9)
            axes.scatter(*points.T, s=9, c=colors[embedding.labels], linewidths=0)
            axes.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
            _number_classes(axes, points, embedding.labels, low - room, high + room)
    if names:
        _class_legend(figure, names, colors)
    return figure


def similarity_figure(analysis: BankAnalysis) -> Figure:
    """Draw the cosines of all pairs of classes before and after, on one scale, and the difference.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import analyze_bank, similarity_figure
        >>> similarity_figure(analyze_bank(load_model("runs/motion/checkpoints/last"))).savefig("similarity.png")
    """
    count = len(analysis.class_names)
    named = count <= _MAX_NAMED
    side = min(max(2.6, _LINE * count), 7.0)
    figure = _white_figure(3 * (side + 0.7) + (2.6 if named else 0.6), side + 0.9)
    off_diagonal = ~np.eye(count, dtype=bool)
    low = float(min(analysis.similarity_before[off_diagonal].min(), analysis.similarity_after[off_diagonal].min()))
    high = float(max(analysis.similarity_before[off_diagonal].max(), analysis.similarity_after[off_diagonal].max()))
    change = analysis.similarity_after - analysis.similarity_before
    most = max(float(np.abs(change).max()), 1e-6)
    panels = figure.subplots(1, 3)
    for axes, values, title, colors, limits in (
        (panels[0], analysis.similarity_before, "cosine of classes, before", "viridis", (low, high)),
        (panels[1], analysis.similarity_after, "after fine-tuning", "viridis", (low, high)),
        (panels[2], change, "after − before (blue: less similar, red: more)", "RdBu_r", (-most, most)),
    ):
        values = np.where(off_diagonal, values, np.nan)  # the diagonal is always 1
        image = axes.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1])
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        bar = figure.colorbar(image, ax=axes, shrink=0.75, pad=0.02)
        bar.ax.tick_params(labelsize=7, colors=MUTED, length=0)
        bar.outline.set_visible(False)
        numbers = [str(number + 1) for number in range(count)] if named else []
        rows = [f"{name}  {number}" for number, name in zip(numbers, analysis.class_names, strict=False)]
        _name_axis(axes, rows if axes is panels[0] else numbers, numbers, horizontal=True)
    return figure


def prompts_figure(analysis: BankAnalysis) -> Figure:
    """Draw the cosines of each class's prototype with its prompts, before and after; a ring marks the best prompt.

    Each row is scaled to its range, because the best prompt is determined within a class.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import analyze_bank, prompts_figure
        >>> prompts_figure(analyze_bank(load_model("runs/motion/checkpoints/last"))).savefig("prompts.png")
    """
    count, prompts = len(analysis.class_names), len(analysis.templates)
    named = count <= _MAX_NAMED
    width, height = max(0.2 * prompts, 2.4), min(max(0.2 * count, 1.6), 9.0)
    figure = _white_figure(2 * width + (3.4 if named else 1.0), height + 2.9)
    panels = figure.subplots(1, 2)
    for axes, values, best, title in (
        (panels[0], analysis.likeness_before, analysis.winners_before, "before fine-tuning"),
        (panels[1], analysis.likeness_after, analysis.winners_after, "after"),
    ):
        low, high = values.min(0), values.max(0)
        axes.imshow(((values - low) / np.maximum(high - low, 1e-9)).T, cmap="Greys", vmin=0, vmax=1.4, aspect="auto")
        axes.scatter(best, np.arange(count), s=46, marker="o", c="none", edgecolors="#D55E00", linewidths=1.8)
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
        _name_axis(axes, analysis.class_names if named and axes is panels[0] else [], analysis.templates)
    return figure


def write_bank_analysis(
    checkpoint: Path, out: Path, report: Callable[[str], None] = print
) -> tuple[BankAnalysis, list[Path]]:
    """Write ``bank.json``, ``similarity.png``, ``prompts.png`` and, if its libraries are installed, ``embedding.png``.

    Args:
        checkpoint: a checkpoint of kind "art", or a run directory.
        out: a directory, created if necessary.
        report: receives a line for everything that is skipped, with the reason.

    Returns:
        the analysis and the files.

    Raises:
        ValueError: ``out`` is not a directory; the model has no bank, or a bank that does not match its texts.
        FileNotFoundError: there is no such checkpoint.
    """
    check_writable(out, "out")
    analysis = analyze_bank(load_model(find_checkpoint(checkpoint)))
    if analysis.assumed:
        report("the checkpoint does not contain the texts of its prompts: using the class names")
    embeddings: list[Embedding] = []
    for method in METHODS:
        try:
            embeddings.append(embed(analysis, method))
        except ModuleNotFoundError as error:
            report(f"{method} is skipped: {error}")
    figures: dict[str, Figure] = {
        "similarity.png": similarity_figure(analysis),
        "prompts.png": prompts_figure(analysis),
    }
    if embeddings:
        figures["embedding.png"] = embedding_figure(analysis, embeddings)
    planes = {
        e.method: {"before": e.before.tolist(), "after": e.after.tolist(), "labels": e.labels.tolist()}
        for e in embeddings
    }
    text = json.dumps(analysis.as_json() | {"embeddings": planes}, indent=1, ensure_ascii=False) + "\n"
    contents = {"bank.json": text.encode(), **{name: png_bytes(figure) for name, figure in figures.items()}}
    for name, content in contents.items():
        atomic_write(out / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
    return analysis, [out / name for name in contents]


def _white_figure(width: float, height: float) -> Figure:
    figure = new_figure(width, height)
    figure.patch.set(facecolor="white", alpha=1.0)
    return figure


def _class_colors(count: int) -> np.ndarray:
    return np.array([colormaps["turbo"]((c + 0.5) / count) for c in range(count)])


def _remove_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GRID)


def _number_classes(axes: Axes, points: np.ndarray, labels: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Write the number of each class at the median of its points, moved apart where numbers would overlap."""
    classes = np.unique(labels)
    middles = np.stack([np.median(points[labels == label], axis=0) for label in classes])
    positions = _spread((middles - low) / (high - low), 0.042) * (high - low) + low
    for label, (x, y) in zip(classes, positions, strict=True):
        text = axes.text(x, y, str(label + 1), fontsize=7.5, color=INK, ha="center", va="center", weight="bold")
        text.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="white")])


def _spread(positions: np.ndarray, min_distance: float) -> np.ndarray:
    """Move positions in the unit square apart, in up to 200 iterations, until all distances reach `min_distance`."""
    moved = positions + np.random.default_rng(0).normal(0, 1e-6, positions.shape)
    for _ in range(200):
        offsets = moved[:, None] - moved[None]
        distance = np.linalg.norm(offsets, axis=2) + np.eye(len(moved))
        missing = np.clip(min_distance - distance, 0, None) * (1 - np.eye(len(moved)))
        if not missing.any():
            break
        moved += 0.5 * (offsets / distance[..., None] * missing[..., None]).sum(1)
    return moved.clip(0.02, 0.98)


def _class_legend(figure: Figure, names: Sequence[str], colors: np.ndarray) -> None:
    dots = [Line2D([], [], marker="o", linestyle="none", markersize=5, color=color) for color in colors]
    figure.legend(
        dots, [f"{number + 1}  {name}" for number, name in enumerate(names)], loc="outside right upper", fontsize=7.5,
        frameon=False, labelcolor=INK, handletextpad=0.2, labelspacing=0.35,
    )  # fmt: skip


def _name_axis(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, horizontal: bool = False) -> None:
    axes.tick_params(length=0, labelsize=7, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(range(len(columns)), columns, rotation=0 if horizontal else 90)
    axes.set_yticks(range(len(rows)), rows)
