"""The contact sheet and charts of an explanation as Matplotlib figures, and the files that ``art explain`` writes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from art.data.files import atomic_write, check_writable
from art.data.prepare.reencode import check_encoder
from art.eval.report.style import GRID, INK, LINE_COLORS, MUTED, figure_text, new_figure, png_bytes, tracklet_color
from art.eval.report.tracklets import draw_strip, shown_frames, tinted_frames
from art.model import find_checkpoint
from art.model.loading import load_model
from art.tools.explain import drawing
from art.tools.explain.drawing import MAP_NAMES, available_views, percent
from art.tools.explain.explanation import Explanation, explain
from art.tools.explain.film import write_film
from art.train.runtime import resolve_device

FILES = ("film.mp4", "film.gif", "sheet.png", "explanation.json")

# Inches.
_WIDTH, _EDGE = 10.0, 0.15
_TITLE, _FOOT = 0.62, 0.3
_CAPTION, _BARS, _CHART, _STRIP = 0.3, 0.24, 1.45, 0.34


def explain_to_directory(
    clip: Path,
    checkpoint: Path,
    out: Path,
    *,
    top_k: int = 5,
    timeline_points: int = 24,
    device: str = "auto",
    moments: int | None = None,
) -> Explanation:
    """Explain the prediction for a clip and write :data:`FILES`, as ``art explain`` does.

    Args:
        clip: Path of the video file, or of a directory of frames, which are shown at 25 frames per second.
        checkpoint: A checkpoint or a run directory.
        out: Output directory, created if missing. Existing files with these names are replaced atomically.
        top_k: Number of classes in the charts.
        timeline_points: Number of clip prefixes to classify; 0 omits the chart.
        device: "auto", "cpu", "cuda", "cuda:<number>" or "mps".
        moments: Deprecated alias of ``timeline_points``.

    Raises:
        ValueError: ``out`` is not a directory, a number is out of range, or nothing can be drawn.
        FileNotFoundError: There is no such checkpoint.
        art.data.decoding.video.VideoError: The clip cannot be read.
    """
    if moments is not None:
        warnings.warn("moments is deprecated, use timeline_points", DeprecationWarning, stacklevel=2)
        timeline_points = moments
    for name, value, least in (("top_k", top_k, 1), ("timeline_points", timeline_points, 0)):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    check_writable(out, "out")
    check_encoder()
    model = load_model(find_checkpoint(checkpoint)).to(resolve_device(device))
    explanation = explain(model, clip, timeline_points=timeline_points)
    write_explanation(explanation, out, top_k=top_k)
    return explanation


def write_explanation(explanation: Explanation, out: Path, *, top_k: int = 5) -> None:
    """Write :data:`FILES` to the directory ``out``.

    Raises:
        ValueError: Nothing can be drawn; no file is written.
    """
    available_views(explanation)
    mp4, gif, sheet, numbers = (out / name for name in FILES)
    atomic_write(mp4, lambda film: atomic_write(gif, lambda small: write_film(explanation, film, small, top_k=top_k)))
    atomic_write(sheet, lambda path: path.write_bytes(png_bytes(contact_sheet(explanation, top_k=top_k))))
    text = json.dumps(explanation.as_json(), indent=1, ensure_ascii=False) + "\n"
    atomic_write(numbers, lambda path: path.write_text(text, "utf-8", "backslashreplace"))


def contact_sheet(explanation: Explanation, *, count: int = 8, top_k: int = 5) -> Figure:
    """Draw the whole explanation on one sheet, 10 inches wide.

    The sheet has a strip of frames for each tracklet with response, path, center, box and saliency, a strip for each
    map of the backbone, and the class probabilities over time.

    Args:
        count: Number of frames in a strip, at most T.
        top_k: Number of classes in the chart.

    Raises:
        ValueError: Nothing can be drawn, or ``count`` or ``top_k`` is below 1.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import contact_sheet, explain
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", timeline_points=0)
        >>> contact_sheet(explanation).savefig("contact.png")
    """
    e, views = explanation, available_views(explanation)
    if top_k < 1:
        raise ValueError(f"top_k: got {top_k}, expected at least 1")
    columns = shown_frames(len(e.frames), count)
    strip = _CAPTION + (_WIDTH - 2 * _EDGE) / len(columns)
    blocks: list[tuple[float, Callable[[_Sheet, float], None]]] = [
        (strip + _BARS + 0.06, partial(_Sheet.draw_tracklet, k=k)) for k in range(e.num_tracklets)
    ]
    blocks += [(strip + 0.06, partial(_Sheet.draw_backbone_map, name=name)) for name in views if name in MAP_NAMES]
    if len(e.timeline):
        blocks.append((_CAPTION + _CHART + 0.4, partial(_Sheet.draw_chart, top_k=top_k)))
    legend = drawing.legend_lines(e, views)
    if e.num_tracklets:
        legend[0] = legend[0].replace("Line: path", "Line: path · Bars: saliency, the weight of the frame")
    foot = _FOOT + 0.17 * (len(legend) - 1)
    sheet = _Sheet(e, columns, _TITLE + sum(height for height, _ in blocks) + foot)
    title = f"“{e.class_names[e.predicted]}”  {percent(e.probabilities[e.predicted])}"
    sheet.text(_EDGE, 0.2, title, 13, weight="bold")
    sheet.text(_EDGE, 0.44, drawing.prediction_line(e), 8.5, color=MUTED)
    top = _TITLE
    for height, draw in blocks:
        draw(sheet, top)
        top += height
    for number, line in enumerate(legend):
        sheet.text(_EDGE, top + 0.1 + 0.17 * number, line, 7.5, color=MUTED)
    return sheet.figure


def probability_figure(explanation: Explanation, *, top_k: int = 5) -> Figure:
    """Plot the prediction for the clip up to each time: one line for each of ``top_k`` classes.

    Raises:
        ValueError: The explanation has no probabilities over time (``timeline_points=0``).

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain, probability_figure
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", timeline_points=2)
        >>> probability_figure(explanation).savefig("probability.png")
    """
    if not len(explanation.timeline):
        raise ValueError("there are no probabilities over time; explain the clip with timeline_points above 0")
    sheet = _Sheet(explanation, np.arange(1), _CAPTION + _CHART + 0.5)
    sheet.draw_chart(0.05, top_k=top_k)
    return sheet.figure


def saliency_figure(explanation: Explanation) -> Figure:
    """Plot the weight of each frame in each tracklet over time.

    Raises:
        ValueError: The model has no tracklets.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain, saliency_figure
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", timeline_points=0)
        >>> saliency_figure(explanation).savefig("saliency.png")
    """
    e = explanation
    if e.saliency is None:
        raise ValueError(f"there is no saliency: the model has no tracklets (kind {e.kind!r})")
    sheet = _Sheet(e, np.arange(1), 0.1 + e.num_tracklets * (_CAPTION + 0.4))
    for k, query in enumerate(e.queries):
        top = 0.05 + k * (_CAPTION + 0.4)
        sheet.text(_EDGE, top + 0.15, query.title(k), 9.5, weight="bold")
        drawing.draw_saliency(sheet.axes(top + _CAPTION, _STRIP), e, k)
    return sheet.figure


class _Sheet:
    """A white figure with coordinates in inches from its top left; ``columns`` are the frames in each strip."""

    def __init__(self, explanation: Explanation, columns: Int[np.ndarray, " n"], height: float) -> None:
        self.explanation, self.columns, self.height = explanation, columns, height
        self.frame_size = (_WIDTH - 2 * _EDGE) / len(columns)
        self.figure = new_figure(_WIDTH, height, layout=None)
        self.figure.patch.set(facecolor="white", alpha=1.0)

    def axes(self, top: float, height: float, left: float = _EDGE, width: float = _WIDTH - 2 * _EDGE) -> Axes:
        """Add axes, by default over the full width."""
        bottom = 1 - (top + height) / self.height
        return self.figure.add_axes((left / _WIDTH, bottom, width / _WIDTH, height / self.height))

    def text(self, x: float, y: float, text: str, size: float, width: float | None = None, **style: object) -> None:
        """Write a line centered vertically at y, truncated to ``width`` inches, by default to the edge of the sheet."""
        width = _WIDTH - _EDGE - x if width is None else width
        # Text width is proportional to the font size: measure at ten times the size, which is an integer.
        # Matplotlib rounds the width of each letter to pixels, hence the margin.
        text = drawing.truncate_text(text, round(size * 10), 0.95 * width * 720, bold=style.get("weight") == "bold")
        style = {"color": INK, "va": "center_baseline", **style}
        self.figure.text(x / _WIDTH, 1 - y / self.height, figure_text(text), fontsize=size, **style)  # type: ignore[arg-type]

    def draw_tracklet(self, top: float, k: int) -> None:
        """Draw the strip of tracklet ``k`` with its saliency below."""
        e, query, color = self.explanation, self.explanation.queries[k], tracklet_color(k)
        assert e.maps is not None and e.centers is not None and e.boxes is not None and e.saliency is not None
        self.text(_EDGE, top + 0.15, "■", 11, color=color)
        self.text(_EDGE + 0.18, top + 0.15, query.title(k), 9.5, 4.6, weight="bold")
        if query.prompt is not None:
            self.text(_WIDTH - _EDGE, top + 0.15, f"Prompt: “{query.prompt}”", 8.5, 4.7, color=MUTED, ha="right")
        axes = self.axes(top + _CAPTION, self.frame_size)
        # Only this tracklet is tinted, in its own color: the maps of the others are constant.
        alone = np.full_like(e.maps[:, : k + 1], 1 / e.maps[0, 0].size)
        alone[:, k] = e.maps[:, k]
        draw_strip(axes, tinted_frames(e.frames, alone)[k], self.columns, e.centers[:, k], color)
        self._label_seconds(axes)
        for column, frame in enumerate(self.columns):
            left, upper, right, lower = e.boxes[frame, k]
            corner, width, height = (column + left, upper), right - left, lower - upper
            for edge, line in (("#101318", 2.6), (color, 1.3)):
                axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=line, zorder=3))
        # Saliency as a fraction of the highest of any tracklet and frame.
        axes = self.axes(top + _CAPTION + self.frame_size + 0.02, _BARS - 0.04)
        axes.set_axis_off()
        axes.set(xlim=(0, len(self.columns)), ylim=(0, 1))
        for column, frame in enumerate(self.columns):
            value = float(e.saliency[frame, k])
            length = 0.62 * value / float(e.saliency.max())
            axes.barh(0.5, 0.62, left=column + 0.02, height=0.5, color=GRID, alpha=0.6)
            axes.barh(0.5, length, left=column + 0.02, height=0.5, color=color)
            axes.text(column + 0.67, 0.5, percent(value), fontsize=7, color=MUTED, va="center")

    def draw_backbone_map(self, top: float, name: str) -> None:
        """Draw the strip of evidence, Grad-CAM or attention rollout."""
        e = self.explanation
        self.text(_EDGE, top + 0.15, drawing.map_title(e, name), 9.5, weight="bold")
        axes = self.axes(top + _CAPTION, self.frame_size)
        bounds = (0, 0, *e.frames.shape[1:3])
        maps = drawing.normalized_backbone_map(e, name)
        frames = np.stack([drawing.draw_heatmap(f, bounds, m) for f, m in zip(e.frames, maps, strict=True)])
        draw_strip(axes, frames, self.columns, None, INK)
        self._label_seconds(axes)

    def _label_seconds(self, axes: Axes) -> None:
        """Replace the frame numbers of a strip by times."""
        e = self.explanation
        for text, frame in zip(axes.texts, self.columns, strict=True):
            text.set_text(f"{e.times[e.sampled[frame]]:.2f} s")
            text.set_fontsize(7.5)

    def draw_chart(self, top: float, top_k: int) -> None:
        """Plot the class probabilities over time."""
        e = self.explanation
        classes = drawing.chart_classes(e, top_k)
        self.text(_EDGE, top + 0.15, "Class probabilities for the clip up to each time", 9.5, weight="bold")
        drawing.draw_probabilities(self.axes(top + _CAPTION, _CHART, _EDGE + 0.4, 5.9), e, classes)
        heights = {c: 100 * float(e.probabilities_over_time[-1, c]) for c in classes}
        colors = {c: LINE_COLORS[i % len(LINE_COLORS)] for i, c in enumerate(classes)}
        for c, height in _spread_labels(heights, 100 / (_CHART / 0.2)).items():
            y = top + _CAPTION + _CHART * (1 - height / 103)
            self.text(_EDGE + 6.42, y, "▬", 8, color=colors[c])
            self.text(_EDGE + 6.62, y, e.class_names[c], 8, 2.6, weight="bold" if c == e.predicted else "normal")
            self.text(_WIDTH - _EDGE, y, f"{heights[c]:.0f}%", 8, 0.4, color=MUTED, ha="right")


def _spread_labels(heights: dict[int, float], step: float) -> dict[int, float]:
    """Move labels apart to at least ``step``, in the order of their heights and at most 100 high."""
    ascending = sorted(heights, key=lambda c: heights[c])
    positions = [heights[c] for c in ascending]
    for i in range(1, len(positions)):
        positions[i] = max(positions[i], positions[i - 1] + step)
    excess = max(0.0, positions[-1] - 100)
    return {c: position - excess for c, position in zip(ascending, positions, strict=True)}
