"""Where things stand in a picture of the film, in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Rect(NamedTuple):
    """A rectangle: left, top, width, height."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Layout:
    """A picture with the clip in panels side by side, and strips over time below them.

    Attributes:
        width: of the picture.
        height: of the picture.
        text: size of a letter.
        header: where the answer is told.
        panels: one for each view of the clip; their captions stand right above them.
        legend: a line under the panels; None: none.
        strips: one for each tracklet, over time.
        labels: beside or above each strip.
        chart: class probabilities over time; None: none.
        names: beside the chart; None: none.
    """

    width: int
    height: int
    text: int
    header: Rect
    panels: tuple[Rect, ...]
    legend: Rect | None
    strips: tuple[Rect, ...]
    labels: tuple[Rect, ...]
    chart: Rect | None
    names: Rect | None


_EDGE, _GAP, _CAPTION = 24, 16, 26
_TEXTS, _AXIS = 400, 34  # beside the strips; under the chart
MOST_WIDTH, MOST_HEIGHT = 1280, 720


def film_layout(aspect: float, panels: int, tracklets: int, *, chart: bool, notes: int = 1) -> Layout:
    """For a film of at most 1280×720.

    Args:
        aspect: width to height of the clip.
        panels: views of it.
        tracklets: K, strips.
        chart: whether there are probabilities over time.
        notes: lines of the legend.
    """
    below = _EDGE + (136 + _AXIS if chart else 0)
    header, legend = 62, 14 + 18 * notes
    row = min(46, max(20, (MOST_HEIGHT - header - legend - below - _CAPTION - 200) // max(tracklets, 1)))
    free = MOST_HEIGHT - header - legend - below - _CAPTION - row * tracklets
    high = min(free, 360, (MOST_WIDTH - 2 * _EDGE - (panels - 1) * _GAP) / panels / aspect)
    panel_width, panel_height = _even(high * aspect), _even(high)
    row_width = panels * panel_width + (panels - 1) * _GAP
    width = min(MOST_WIDTH, max(1100, _even(row_width + 2 * _EDGE)))
    left, top = (width - row_width) // 2, header + _CAPTION
    places = tuple(Rect(left + i * (panel_width + _GAP), top, panel_width, panel_height) for i in range(panels))
    y = top + panel_height + legend
    axis = width - 2 * _EDGE - _TEXTS - 44
    strips = tuple(Rect(_EDGE + 44, y + k * row, axis, row - 10) for k in range(tracklets))
    labels = tuple(Rect(_EDGE + 44 + axis + 14, y + k * row, _TEXTS - 14, row - 10) for k in range(tracklets))
    y += tracklets * row
    plot = Rect(_EDGE + 44, y + 8, axis, 124) if chart else None
    names = Rect(_EDGE + 44 + axis + 14, y + 4, _TEXTS - 14, 132) if chart else None
    bottom = y + (136 + _AXIS if chart else 8) + 4
    return Layout(
        width, _even(bottom), 14, Rect(_EDGE, 12, width - 2 * _EDGE, header - 12), places,
        Rect(_EDGE, top + panel_height + 6, width - 2 * _EDGE, 18 * notes), strips, labels, plot, names,
    )  # fmt: skip


def small_layout(aspect: float, panels: int, tracklets: int, width: int) -> Layout:
    """For an animation of ``width`` pixels: no chart and no legend, and each text above its strip."""
    edge, gap, header, caption, row = 8, 6, 24, 16, 30
    high = min((width - 2 * edge - (panels - 1) * gap) / panels / aspect, 260)
    panel_width, panel_height = _even(high * aspect), _even(high)
    left = (width - panels * panel_width - (panels - 1) * gap) // 2
    top = header + caption
    places = tuple(Rect(left + i * (panel_width + gap), top, panel_width, panel_height) for i in range(panels))
    y = top + panel_height + 5
    inner = width - 2 * edge
    labels = tuple(Rect(edge, y + k * row, inner, 15) for k in range(tracklets))
    strips = tuple(Rect(edge, y + k * row + 16, inner, 11) for k in range(tracklets))
    bottom = y + tracklets * row + 6
    return Layout(
        width, _even(bottom), 11, Rect(edge, 4, inner, header), places, None, strips, labels, None, None
    )  # fmt: skip


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
