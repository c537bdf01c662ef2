"""Colours shared by every picture, and how a matplotlib figure becomes text: inline SVG, PNG or JPEG.

Figures are made with matplotlib's object interface: no pyplot, no display, and its global settings stay as they are.
The same figure always turns into the same bytes.
"""

from __future__ import annotations

import base64
import io
import re
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

#: One colour for each tracklet: Okabe and Ito's palette, told apart with any common colour vision, brightest first
#: because they lie on video frames.
TRACKLET_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
#: Lines of a chart, from the same palette, in an order that reads on white and on black.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
RIGHT, WRONG = "#0072B2", "#D55E00"
INK, MUTED, GRID = "#1f2430", "#69707d", "#d9dce3"

#: Colours that follow the page's light or dark theme once a figure is inline in it.
THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    RIGHT.lower(): "var(--blue)",
    WRONG.lower(): "var(--vermilion)",
}


def tracklet_colour(index: int) -> str:
    """Colour ``#rrggbb`` of tracklet ``index``; the palette repeats after its seven colours."""
    return TRACKLET_COLOURS[index % len(TRACKLET_COLOURS)]


def new_figure(width: float, height: float, *, dpi: float = 150.0, layout: Any = "constrained") -> Figure:
    """An empty transparent figure of ``width`` × ``height`` inches with an Agg canvas: ``savefig`` works anywhere."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    return figure


def quiet_axes(axes: Axes, *, grid: bool = True) -> None:
    """Take the frame off, draw ticks small, and only horizontal grid lines."""
    axes.patch.set_alpha(0.0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=8, length=0, pad=4)
    axes.tick_params(axis="both", which="minor", length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=8)
    axes.yaxis.label.set(color=MUTED, fontsize=8)
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)


def blank_axes(axes: Axes) -> None:
    """No frame, ticks or background: a picture only."""
    axes.set_axis_off()
    axes.patch.set_alpha(0.0)


def to_svg(figure: Figure, *, label: str, prefix: str) -> str:
    """The figure as an ``<svg>`` element for a page: it scales with its container and follows the page's theme.

    Args:
        label: what it shows, for readers who do not see it.
        prefix: makes the ids inside unique in a page that holds several figures.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # Text stays text, and ids come from the content alone.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "art"}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=False)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None  # matplotlib always writes one
    width = float(box.group(1).split()[2]) * 96 / 72
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    for colour, variable in THEMED.items():
        body = body.replace(colour, variable)
    return (
        f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(label)}" style="--natural:{width:.0f}px">{body}'
    )


def figure_pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """What the figure looks like, at its own resolution."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def jpeg_uri(pixels: UInt8[np.ndarray, "height width 3"], *, quality: int = 86) -> str:
    """A ``data:`` address that holds the picture itself as JPEG."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="jpeg", pil_kwargs={"quality": quality})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
