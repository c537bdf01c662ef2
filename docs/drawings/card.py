"""One style for all drawings: a white card of 720 pixels, for light and dark pages, with boxes, arrows and text.

Positions and sizes are CSS pixels from the top left. Everything drawn is also recorded as text, whose digest is stored
in the file: two cards with the same digest show the same, independent of the version of Matplotlib.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from art.eval.report.style import GRID, INK, MUTED, blank_axes

WIDTH = 720
#: Text sizes in CSS pixels, legible on a phone, where the card is half as wide.
TITLE, TEXT, SMALL = 17.0, 15.0, 13.0
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
PALE = {BLUE: "#d6e8f3", ORANGE: "#fbeccb", GREEN: "#d2efe6", PINK: "#f6e4ee", MUTED: "#eef0f3"}
CARD = "#ffffff"

_FAMILIES = ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"]
_DIGEST = re.compile(r"drawing ([0-9a-f]{64})")


class Card:
    """A drawing of ``height`` pixels; ``label`` is its text alternative."""

    def __init__(self, height: float, label: str) -> None:
        self.height, self.label = height, label
        self._record: list[str] = [repr((WIDTH, height, label))]
        self._figure = Figure(figsize=(WIDTH / 96, height / 96))
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        blank_axes(self._axes)
        self._axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.box(1, 1, WIDTH - 2, height - 2, face=CARD, edge=GRID, radius=10)

    def box(
        self, x: float, y: float, width: float, height: float, text: str = "", *, face: str = CARD, edge: str = INK,
        radius: float = 0.0, size: float = TEXT, color: str = INK, line: float = 1.2, dashed: bool = False,
        bold: bool = False, hatch: str | None = None,
    ) -> None:  # fmt: skip
        """A box with centered text."""
        above = self._note("box", x, y, width, height, face, edge, radius, line, dashed, hatch)
        style: dict[str, Any] = {
            "facecolor": face, "edgecolor": edge, "linewidth": line * 0.75, "linestyle": "--" if dashed else "-",
            "hatch": hatch, "zorder": above,
        }  # fmt: skip
        if radius:
            shape = f"round,pad=0,rounding_size={radius}"
            self._axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, **style))
        else:
            self._axes.add_patch(Rectangle((x, y), width, height, **style))
        if text:
            self.text(x + width / 2, y + height / 2, text, size=size, color=color, at="center", bold=bold)

    def text(
        self, x: float, y: float, text: str, *, size: float = TEXT, color: str = INK, at: str = "left",
        bold: bool = False, turned: bool = False,
    ) -> None:  # fmt: skip
        """Lines of text, vertically centered at ``y``; ``at``: their alignment with ``x``, left, center or right."""
        above = self._note("text", x, y, text, size, color, at, bold, turned)
        lines = text.split("\n")
        for number, line in enumerate(lines):
            off = (number - (len(lines) - 1) / 2) * 1.3 * size
            place = (x + off, y) if turned else (x, y + off)
            self._axes.text(
                *place, line, fontsize=0.75 * size, color=color, ha=at,
                va="center_baseline" if not turned else "center", rotation=90 if turned else 0,
                fontweight="bold" if bold else "normal", parse_math=False, zorder=above,
            )  # fmt: skip

    def note(self, x: float, y: float, text: str, *, at: str = "left") -> None:
        """Secondary text."""
        self.text(x, y, text, size=SMALL, color=MUTED, at=at)

    def title(self, text: str, below: str = "") -> None:
        """The heading of the card, and an optional line below it."""
        self.text(20, 27, text, size=TITLE, bold=True)
        if below:
            self.note(20, 50, below)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], *, color: str = INK, bend: float = 0.0,
        both: bool = False, inward: bool = False, line: float = 1.6, dashed: bool = False,
    ) -> None:  # fmt: skip
        """An arrow; ``bend`` curves it, ``both`` draws two heads, ``inward`` two that point at each other."""
        self._note("arrow", start, end, color, bend, both, inward, line, dashed)
        if inward:
            middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
            for outer in (start, end):
                near = tuple(m + (o - m) * 0.08 for m, o in zip(middle, outer, strict=True))
                self._arrow(outer, near, "-|>", color, bend, line, dashed)
        else:
            self._arrow(start, end, "<|-|>" if both else "-|>", color, bend, line, dashed)

    def line(
        self, xs: Sequence[float], ys: Sequence[float], *, color: str = INK, line: float = 1.6, dashed: bool = False
    ) -> None:
        """A polyline."""
        above = self._note("line", [round(x, 2) for x in xs], [round(y, 2) for y in ys], color, line, dashed)
        self._axes.plot(xs, ys, color=color, linewidth=line * 0.75, linestyle="--" if dashed else "-", zorder=above)

    def circle(
        self, x: float, y: float, radius: float, *, face: str = CARD, edge: str = INK, line: float = 1.2
    ) -> None:
        """A circle."""
        above = self._note("circle", x, y, radius, face, edge, line)
        circle = Circle((x, y), radius, facecolor=face, edgecolor=edge, linewidth=line * 0.75, zorder=above)
        self._axes.add_patch(circle)

    def shape(self, points: Sequence[tuple[float, float]], *, face: str, edge: str = INK, line: float = 1.2) -> None:
        """A polygon."""
        above = self._note("shape", points, face, edge, line)
        shape = Polygon(points, closed=True, facecolor=face, edgecolor=edge, linewidth=line * 0.75, zorder=above)
        self._axes.add_patch(shape)

    def grid(
        self, x: float, y: float, rows: int, columns: int, width: float, height: float, *, face: str = CARD,
        edge: str = MUTED,
    ) -> None:  # fmt: skip
        """A grid of cells; sizes in pixels."""
        self.box(x, y, columns * width, rows * height, face=face, edge=edge, line=1.0)
        for column in range(1, columns):
            self.line([x + column * width] * 2, [y, y + rows * height], color=edge, line=0.7)
        for row in range(1, rows):
            self.line([x, x + columns * width], [y + row * height] * 2, color=edge, line=0.7)

    def digest(self) -> str:
        """SHA-256 of everything drawn."""
        return hashlib.sha256("\n".join(self._record).encode()).hexdigest()

    def svg(self) -> str:
        """The SVG file with the digest; text stays text."""
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Title": self.label, "Description": f"drawing {self.digest()}"}
        style = {"svg.fonttype": "none", "svg.hashsalt": "art", "font.sans-serif": _FAMILIES, "hatch.linewidth": 0.6}
        with mpl.rc_context(style):
            self._figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
        return buffer.getvalue()

    def png(self, width: int) -> bytes:
        """A preview of this width on a dark page."""
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png", dpi=96 * width / WIDTH, facecolor="#0d1117")
        return buffer.getvalue()

    def texts(self) -> list[tuple[float, str]]:
        """Every line of text, with its size in points."""
        return [(text.get_fontsize(), text.get_text()) for text in self._axes.texts]

    def overflowing(self) -> list[str]:
        """Lines of text that exceed the card."""
        card = self._axes.get_window_extent().padded(-4)
        boxes = [(text.get_text(), text.get_window_extent()) for text in self._axes.texts]
        return [line for line, box in boxes if not all(map(card.contains, (box.x0, box.x1), (box.y0, box.y1)))]

    def _arrow(
        self, start: tuple[float, ...], end: tuple[float, ...], style: str, color: str, bend: float, line: float,
        dashed: bool,
    ) -> None:  # fmt: skip
        head = f"{style},head_length=5,head_width=2.6" if line < 2.2 else f"{style},head_length=7,head_width=3.6"
        arrow = FancyArrowPatch(
            start, end, arrowstyle=head, connectionstyle=f"arc3,rad={bend}", color=color, linewidth=line * 0.75,
            shrinkA=0, shrinkB=0, mutation_scale=1.0, linestyle="--" if dashed else "-", zorder=len(self._record),
        )  # fmt: skip
        self._axes.add_patch(arrow)

    def _note(self, *what: Any) -> int:
        """Record what is drawn and return its z-order."""
        self._record.append(repr(what))
        return len(self._record)


def digest_of(svg: str) -> str | None:
    """The digest in a file written by :meth:`Card.svg`, or None."""
    found = _DIGEST.search(svg)
    return None if found is None else found[1]
