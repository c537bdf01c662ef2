"""Matplotlib figures of an explanation: the contact sheet and its parts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from art.eval.report.style import GRID, INK, LINE_COLOURS, MUTED, new_figure, tracklet_colour
from art.eval.report.tracklets import draw_strip, shown_frames, tinted_frames
from art.tools.explain.explanation import Explanation
from art.tools.explain.painting import heated
from art.tools.explain.scene import (
    backbone_map,
    draw_probabilities,
    draw_saliency,
    fitted,
    legend_lines,
    shown_classes,
    views_of,
)

_WIDTH, _EDGE = 10.0, 0.15  # inches
_TITLE, _FOOT = 0.62, 0.3
_CAPTION, _BARS, _CHART = 0.3, 0.24, 1.45


def contact_sheet(explanation: Explanation, *, count: int = 8, top_k: int = 5) -> Figure:
    """The whole explanation on one sheet, 10 inches wide: of each tracklet the frames that the model was shown with
    response, path, centre and box, and its saliency; then the backbone's maps; then the class probabilities over time.

    Args:
        count: frames shown, of the T.
        top_k: classes in the chart.

    Raises:
        ValueError: there is nothing to draw, or ``count`` or ``top_k`` is below 1.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import contact_sheet, explain
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", moments=0)
        >>> contact_sheet(explanation).savefig("contact.png")
    """
    e = explanation
    views = views_of(e)
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1 class")
    shown = shown_frames(len(e.frames), count)
    strip = (_WIDTH - 2 * _EDGE) / len(shown)
    blocks = [_Block(_CAPTION + strip + _BARS + 0.06, _tracklet(k)) for k in range(e.num_tracklets)]
    blocks += [_Block(_CAPTION + strip + 0.06, _backbone(name)) for name in views if name != "tracklets"]
    if len(e.beginnings):
        blocks.append(_Block(_CAPTION + _CHART + 0.4, _chart(top_k)))
    lines = legend_lines(e, views)
    if e.num_tracklets:
        lines[0] = lines[0].replace(
            "line: path", "line: path · bars: saliency, how much the frame weighs in the tracklet"
        )
    foot = _FOOT + 0.17 * (len(lines) - 1)
    sheet = _Sheet(e, shown, strip, _TITLE + sum(block.height for block in blocks) + foot)
    best = e.best(3)
    sheet.text(
        _EDGE, 0.2, f"“{e.class_names[best[0]]}”  {100 * float(e.probabilities[best[0]]):.0f} %", 13, weight="bold"
    )
    others = ", ".join(f"{e.class_names[c]} {100 * float(e.probabilities[c]):.0f} %" for c in best[1:])
    sheet.text(_EDGE, 0.44, f"is the model's answer to {e.clip.name}; after it {others}", 8.5, color=MUTED)
    top = _TITLE
    for block in blocks:
        block.draw(sheet, top)
        top += block.height
    for number, line in enumerate(lines):
        sheet.text(_EDGE, top + 0.1 + 0.17 * number, line, 7.5, color=MUTED)
    return sheet.figure


def probability_figure(explanation: Explanation, *, top_k: int = 5) -> Figure:
    """The answer to the clip up to each time: a line for each of ``top_k`` classes.

    Raises:
        ValueError: the explanation was made without (``moments=0``).

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain, probability_figure
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", moments=2)
        >>> probability_figure(explanation).savefig("probability.png")
    """
    if not len(explanation.beginnings):
        raise ValueError("there are no probabilities over time; explain the clip with moments above 0")
    sheet = _Sheet(explanation, np.arange(1), 1.0, _CAPTION + _CHART + 0.5)
    _chart(top_k)(sheet, 0.05)
    return sheet.figure


def saliency_figure(explanation: Explanation) -> Figure:
    """How much each frame weighs in each tracklet, over time.

    Raises:
        ValueError: the model has no tracklets.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain, saliency_figure
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", moments=0)
        >>> saliency_figure(explanation).savefig("saliency.png")
    """
    e = explanation
    if e.saliency is None:
        raise ValueError(f"there is no saliency: the model has no tracklets (kind {e.kind!r})")
    sheet = _Sheet(e, np.arange(1), 1.0, 0.1 + e.num_tracklets * (_CAPTION + 0.4))
    for k, query in enumerate(e.queries):
        top = 0.05 + k * (_CAPTION + 0.4)
        sheet.text(_EDGE, top + 0.15, f"tracklet {k + 1} asks for “{query.name}”", 9.5, weight="bold")
        draw_saliency(sheet.axes(top + _CAPTION, 0.34), e, k)
    return sheet.figure


class _Sheet:
    """A white figure, addressed in inches from its top left."""

    def __init__(self, explanation: Explanation, shown: Int[np.ndarray, " n"], strip: float, height: float) -> None:
        self.explanation, self.shown, self.strip, self.height = explanation, shown, strip, height
        self.figure = new_figure(_WIDTH, height, layout=None)
        self.figure.patch.set(facecolor="white", alpha=1.0)

    def axes(self, top: float, high: float, left: float = _EDGE, width: float = _WIDTH - 2 * _EDGE) -> Axes:
        """Axes over the width of the sheet, or a part of it."""
        return self.figure.add_axes((left / _WIDTH, 1 - (top + high) / self.height, width / _WIDTH, high / self.height))

    def text(self, x: float, y: float, text: str, size: float, room: float | None = None, **style: object) -> None:
        """A line with its middle at y, cut to ``room`` inches, by default to the edge of the sheet."""
        room = _WIDTH - _EDGE - x if room is None else room
        tenths = round(size * 10)  # the widths of letters grow with their size
        text = fitted(text, tenths, room * 720, bold=style.get("weight") == "bold")
        style = {"color": INK, "va": "center_baseline", **style}
        self.figure.text(x / _WIDTH, 1 - y / self.height, text, fontsize=size, **style)  # type: ignore[arg-type]


class _Block(NamedTuple):
    height: float
    draw: Callable[[_Sheet, float], None]


def _tracklet(k: int) -> Callable[[_Sheet, float], None]:
    def draw(sheet: _Sheet, top: float) -> None:
        e, query = sheet.explanation, sheet.explanation.queries[k]
        assert e.maps is not None and e.centres is not None and e.boxes is not None and e.saliency is not None
        sheet.text(_EDGE, top + 0.15, "■", 11, color=tracklet_colour(k))
        name = f"tracklet {k + 1} asks for “{query.name}”"
        sheet.text(_EDGE + 0.18, top + 0.15, name, 9.5, 4.6, weight="bold")
        sheet.text(_WIDTH - _EDGE, top + 0.15, f"its prompt: “{query.prompt}”", 8.5, 4.7, color=MUTED, ha="right")
        axes = sheet.axes(top + _CAPTION, sheet.strip)
        # Only this tracklet's tint, in its own colour: the others are empty.
        alone = np.full_like(e.maps[:, : k + 1], 1 / e.maps[0, 0].size)
        alone[:, k] = e.maps[:, k]
        draw_strip(axes, tinted_frames(e.frames, alone)[k], sheet.shown, e.centres[:, k], tracklet_colour(k))
        _seconds(axes, sheet)
        for column, frame in enumerate(sheet.shown):
            left, upper, right, lower = e.boxes[frame, k]
            for colour, wide in (("#101318", 2.6), (tracklet_colour(k), 1.3)):
                axes.add_patch(
                    Rectangle(
                        (column + left, upper), right - left, lower - upper, fill=False, edgecolor=colour,
                        linewidth=wide, zorder=3,
                    )
                )  # fmt: skip
        bars = sheet.axes(top + _CAPTION + sheet.strip + 0.02, _BARS - 0.04)
        _bars_below(bars, sheet, k)

    return draw


def _bars_below(axes: Axes, sheet: _Sheet, k: int) -> None:
    """The saliency of each shown frame right below it; a bar is the frame's share of the largest of all."""
    saliency = sheet.explanation.saliency
    assert saliency is not None
    axes.set_axis_off()
    axes.set(xlim=(0, len(sheet.shown)), ylim=(0, 1))
    colour = tracklet_colour(k)
    for column, frame in enumerate(sheet.shown):
        share = float(saliency[frame, k])
        axes.barh(0.5, 0.62, left=column + 0.02, height=0.5, color=GRID, alpha=0.6)
        axes.barh(0.5, 0.62 * share / float(saliency.max()), left=column + 0.02, height=0.5, color=colour)
        axes.text(column + 0.67, 0.5, f"{100 * share:.0f} %", fontsize=7, color=MUTED, va="center")


def _backbone(name: str) -> Callable[[_Sheet, float], None]:
    def draw(sheet: _Sheet, top: float) -> None:
        e = sheet.explanation
        title = {
            "grad_cam": f"the backbone alone: Grad-CAM of “{e.class_names[e.target]}”",
            "rollout": "the backbone alone: attention roll-out",
        }[name]
        sheet.text(_EDGE, top + 0.15, title, 9.5, weight="bold")
        axes = sheet.axes(top + _CAPTION, sheet.strip)
        draw_strip(axes, _heated_frames(e, name), sheet.shown, None, INK)
        _seconds(axes, sheet)

    return draw


def _heated_frames(e: Explanation, name: str) -> UInt8[np.ndarray, "t s s 3"]:
    side = e.frames.shape[1]
    return np.stack([heated(f, (0, 0, side, side), m) for f, m in zip(e.frames, backbone_map(e, name), strict=True)])


def _seconds(axes: Axes, sheet: _Sheet) -> None:
    """The number in the corner of a frame becomes its time."""
    e = sheet.explanation
    for text, frame in zip(axes.texts, sheet.shown, strict=True):
        text.set_text(f"{e.times[e.sampled[frame]]:.2f} s")
        text.set_fontsize(7.5)


def _chart(top_k: int) -> Callable[[_Sheet, float], None]:
    def draw(sheet: _Sheet, top: float) -> None:
        e = sheet.explanation
        classes = shown_classes(e, top_k)
        sheet.text(
            _EDGE, top + 0.15, "probabilities over time: the answer had the clip ended there", 9.5, weight="bold"
        )
        draw_probabilities(sheet.axes(top + _CAPTION, _CHART, _EDGE + 0.4, 5.9), e, classes)
        heights = {c: 100 * float(e.probabilities_over_time[-1, c]) for c in classes}
        lines = {c: LINE_COLOURS[i % len(LINE_COLOURS)] for i, c in enumerate(classes)}
        for c, y in _apart(heights, 100 / (_CHART / 0.2)).items():
            at = top + _CAPTION + _CHART * (1 - y / 103)
            sheet.text(_EDGE + 6.42, at, "▬", 8, color=lines[c])
            weight = "bold" if c == e.predicted else "normal"
            sheet.text(_EDGE + 6.62, at, e.class_names[c], 8, 2.6, weight=weight)
            sheet.text(_WIDTH - _EDGE, at, f"{heights[c]:.0f} %", 8, 0.4, color=MUTED, ha="right")

    return draw


def _apart(heights: dict[int, float], step: float) -> dict[int, float]:
    """Heights in their order, at least ``step`` from one to the next, from 0 up where they crowd."""
    rising = sorted(heights, key=lambda c: heights[c])
    places = [heights[c] for c in rising]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + step)
    over = max(0.0, places[-1] - 100)
    places = [place - over for place in places] if over else places
    assert all(b - a >= step - 1e-6 for a, b in pairwise(places))
    return dict(zip(rising, places, strict=True))
