"""The semantics bank before and after fine-tuning: similarities, best prompts, embeddings, figures (``art bank``)."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from art._deprecated import renamed_names
from art.data.files import atomic_write, check_writable
from art.eval.report.style import GRID, INK, MUTED, figure_text, new_figure, png_bytes
from art.extras import import_extra
from art.model import find_checkpoint
from art.model.art_model import ARTModel
from art.model.loading import load_model
from art.model.pretrained import VideoClassifier
from art.model.semantics import TEMPLATES, cosine, encode_prompts
from art.text import build_text_encoder

__all__ = [
    "BankAnalysis", "Embedding", "analyze_bank", "embed", "embedding_figure", "prompts_figure", "similarity_figure",
    "write_bank_analysis",
]  # fmt: skip

__getattr__ = renamed_names(
    __name__,
    {"BankView": "BankAnalysis", "look_at_bank": "analyze_bank", "bank_to_folder": "write_bank_analysis"},
)

METHODS = ("t-SNE", "UMAP")
_axis_name = functools.partial(figure_text, columns=38)
#: Above this number of texts per bank, the points of an embedding are classes instead of prompts.
MAX_POINTS = 2_000
_MAX_NAMED = 60  # with more classes, names are omitted
_LINE = 0.17  # height of a line of text, inches


@dataclass(frozen=True)
class BankAnalysis:
    """The texts of Y classes in P templates, before and after fine-tuning.

    Attributes:
        class_names: Y names.
        templates: P templates.
        prompts: Y texts inserted into the templates.
        assumed: whether the prompts were not saved with the model and are assumed to be the class names.
        before: ``[P, Y, C_t]``, S_0, encoded again.
        after: ``[P, Y, C_t]``, S.
        similarity_before: ``[Y, Y]``, cosines of all pairs of classes (mean direction of their prompts) in S_0.
        similarity_after: the same in S.
        likeness_before: ``[P, Y]``, cosines of each class's prototype (its weights in the L_v head, in the space of the
            projected semantics) with each of its semantics in S_0, projected like S.
        likeness_after: the same with S. Only the prompt with the highest value counts in L_sema.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import analyze_bank
        >>> analysis = analyze_bank(load_model("runs/motion/checkpoints/last"))
        >>> analysis.similarity_before.shape, analysis.likeness_after.shape  # 2 classes, 16 templates
        ((2, 2), (16, 2))
        >>> sorted(analysis.as_json()["classes"][0])[:2]
        ['likeness_after', 'likeness_before']
    """

    class_names: list[str]
    templates: list[str]
    prompts: list[str]
    assumed: bool
    before: Float32[np.ndarray, "p y c"]
    after: Float32[np.ndarray, "p y c"]
    similarity_before: Float32[np.ndarray, "y y"]
    similarity_after: Float32[np.ndarray, "y y"]
    likeness_before: Float32[np.ndarray, "p y"]
    likeness_after: Float32[np.ndarray, "p y"]

    @property
    def winners_before(self) -> Int64[np.ndarray, " y"]:
        """Index of the best template of each class in S_0."""
        return self.likeness_before.argmax(0)

    @property
    def winners_after(self) -> Int64[np.ndarray, " y"]:
        """Index of the best template of each class in S."""
        return self.likeness_after.argmax(0)

    def as_json(self) -> dict[str, Any]:
        """Return similarities, best prompts, and 1 − cosine between before and after for each class."""
        moved = 1 - _cosines(self.before, self.after).mean(0)
        return {
            "class_names": self.class_names,
            "templates": self.templates,
            "prompts": self.prompts,
            "prompts_assumed": self.assumed,
            "similarity_before": _rounded(self.similarity_before),
            "similarity_after": _rounded(self.similarity_after),
            "classes": [
                {
                    "name": name,
                    "moved": round(float(moved[c]), 6),
                    "prompt_before": self.templates[self.winners_before[c]].replace("{label}", self.prompts[c]),
                    "prompt_after": self.templates[self.winners_after[c]].replace("{label}", self.prompts[c]),
                    "likeness_before": _rounded(self.likeness_before[:, c]),
                    "likeness_after": _rounded(self.likeness_after[:, c]),
                }
                for c, name in enumerate(self.class_names)
            ],
        }


@torch.no_grad()
def analyze_bank(model: VideoClassifier) -> BankAnalysis:
    """Compare the bank of a model with its state before fine-tuning, S_0, which is encoded again from its texts.

    Raises:
        ValueError: the model has no bank, or S_0 has another shape because templates or text encoder differ from those
            the model was created with.
        ImportError, OSError: the text encoder of the model is not available.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import analyze_bank
        >>> analyze_bank(load_model("runs/motion/checkpoints/last")).class_names
        ['run', 'walk']
    """
    if not isinstance(model, ARTModel):
        raise ValueError(f"the model is of kind {model.kind!r}, which has no semantics; expected one of kind 'art'")
    o, bank = model.options, model.semantics
    templates, prompts = list(o.templates or TEMPLATES), model.prompts or model.class_names
    before = encode_prompts(build_text_encoder(o.text_encoder, **o.text_options), prompts, templates)
    after = bank.bank.float().cpu()
    if before.shape != after.shape:
        raise ValueError(
            f"the texts encode to shape {list(before.shape)}, but the bank has shape {list(after.shape)}: templates or "
            f"text encoder ({o.text_encoder!r}) differ from those the model was created with"
        )
    before = before.float().cpu()
    prototypes = model.video_projection(model.video_head.weight)
    device = bank.bank.device

    def likeness(semantics: Tensor) -> Float32[np.ndarray, "p y"]:
        all_pairs = cosine(prototypes, bank.projection(semantics.to(device)))  # [Y, P, Y]
        return all_pairs.diagonal(dim1=0, dim2=2).float().cpu().numpy()

    return BankAnalysis(
        class_names=list(model.class_names),
        templates=templates,
        prompts=list(prompts),
        assumed=model.prompts is None,
        before=before.numpy(),
        after=after.numpy(),
        similarity_before=_class_similarity(before),
        similarity_after=_class_similarity(after),
        likeness_before=likeness(before),
        likeness_after=likeness(after),
    )


@dataclass(frozen=True)
class Embedding:
    """Both banks embedded together in one plane, so that their positions are comparable.

    Attributes:
        method: one of :data:`METHODS`.
        before: ``[n, 2]``, points of S_0.
        after: ``[n, 2]``, points of S in the same order.
        labels: ``[n]``, the class of each.

    Examples:
        >>> import numpy as np
        >>> from art.tools.bank import Embedding
        >>> plane = Embedding("t-SNE", np.zeros((2, 2)), np.ones((2, 2)), np.array([0, 1]))
        >>> plane.after - plane.before  # displacement of each text
        array([[1., 1.],
               [1., 1.]])
    """

    method: str
    before: Float[np.ndarray, "n 2"]
    after: Float[np.ndarray, "n 2"]
    labels: Int64[np.ndarray, " n"]


def embed(analysis: BankAnalysis, method: str, *, seed: int = 0) -> Embedding:
    """Embed the directions of both banks in a plane.

    Args:
        analysis: the banks.
        method: one of :data:`METHODS`.
        seed: makes the result reproducible on one machine.

    Raises:
        ValueError: an unknown method.
        ModuleNotFoundError: the library of the method is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    points, labels = _directions(analysis)
    n = len(labels)
    # An unchanged text must be one point: the methods would separate two identical ones.
    points, index = np.unique(points.round(6), axis=0, return_inverse=True)
    neighbors = min(30, max(2, (len(points) - 1) // 3))
    if method == "t-SNE":
        manifold = import_extra("sklearn.manifold", extra="embed", needed_by="t-SNE")
        plane = manifold.TSNE(init="pca", perplexity=neighbors, random_state=seed).fit_transform(points)
    else:
        umap = import_extra("umap", extra="embed", needed_by="UMAP")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="n_jobs value")  # a seed implies one thread, as intended
            reducer = umap.UMAP(n_neighbors=min(15, neighbors), random_state=seed, init="pca")
            plane = reducer.fit_transform(points)
    plane = np.asarray(plane)[index.reshape(-1)]
    return Embedding(method, plane[:n], plane[n:], labels)


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
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(GRID)
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
        rows = [f"{_axis_name(name)}  {number}" for number, name in zip(numbers, analysis.class_names, strict=False)]
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
        names = [*map(_axis_name, analysis.class_names)] if named and axes is panels[0] else []
        _name_axis(axes, names, [figure_text(template, 60) for template in analysis.templates])
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
    contents = {"bank.json": text.encode("utf-8", "backslashreplace")}
    contents |= {name: png_bytes(figure) for name, figure in figures.items()}
    for name, content in contents.items():
        atomic_write(out / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
    return analysis, [out / name for name in contents]


def _directions(analysis: BankAnalysis) -> tuple[Float32[np.ndarray, "n2 c"], Int64[np.ndarray, " n"]]:
    """Return the directions of S_0 followed by those of S, and the classes of either."""
    p, y, _ = analysis.before.shape
    banks = [bank / np.linalg.norm(bank, axis=-1, keepdims=True) for bank in (analysis.before, analysis.after)]
    if p * y > MAX_POINTS:
        banks = [bank.mean(0, keepdims=True) for bank in banks]
        p = 1
    return np.concatenate([bank.reshape(p * y, -1) for bank in banks]), np.tile(np.arange(y), p)


def _class_similarity(semantics: Tensor) -> Float32[np.ndarray, "y y"]:
    classes = F.normalize(F.normalize(semantics, dim=-1).mean(0), dim=-1)
    return (classes @ classes.T).numpy()


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _rounded(array: np.ndarray) -> Any:
    return np.round(array.astype(np.float64), 5).tolist()


def _white_figure(width: float, height: float) -> Figure:
    figure = new_figure(width, height)
    figure.patch.set(facecolor="white", alpha=1.0)
    return figure


def _class_colors(count: int) -> np.ndarray:
    return np.array([colormaps["turbo"]((c + 0.5) / count) for c in range(count)])


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
        dots, [f"{number + 1}  {_axis_name(name)}" for number, name in enumerate(names)], loc="outside right upper",
        fontsize=7.5, frameon=False, labelcolor=INK, handletextpad=0.2, labelspacing=0.35,
    )  # fmt: skip


def _name_axis(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, horizontal: bool = False) -> None:
    axes.tick_params(length=0, labelsize=7, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(columns)), columns, rotation=0 if horizontal else 90)
    axes.set_yticks(range(len(rows)), rows)
