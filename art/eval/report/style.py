"""Shared appearance of all figures and of the report: colors, matplotlib helpers, CSS, and HTML elements.

Figures use matplotlib's object interface, without pyplot, a display, or changes to global settings. A figure is always
encoded as the same bytes. The page has no script and loads nothing.
"""

from __future__ import annotations

import base64
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.image import imsave
from matplotlib.text import Text

from art.terminal import printable, shorten

_log = logging.getLogger(__name__)

#: Colors of tracklets: the colorblind-safe palette of Okabe and Ito, brightest first, for drawing on video frames.
TRACKLET_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
#: Colors of lines in charts: the same palette, in an order that is legible on white and on black.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CORRECT, WRONG = "#0072B2", "#D55E00"
INK, MUTED, GRID = "#1f2430", "#69707d", "#d9dce3"

#: Colors that follow the page's light or dark theme in inline SVG.
_THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    CORRECT.lower(): "var(--blue)",
    WRONG.lower(): "var(--vermilion)",
}


def tracklet_color(index: int) -> str:
    """Return the color ``#rrggbb`` of a tracklet. The palette of seven colors repeats."""
    return TRACKLET_COLORS[index % len(TRACKLET_COLORS)]


def new_figure(width: float, height: float, *, dpi: float = 150.0, layout: Any = "constrained") -> Figure:
    """Create an empty transparent figure of ``width`` × ``height`` inches with an Agg canvas."""
    figure = _Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    return figure


class _Figure(Figure):
    """Draws letters that the default font does not have, such as CJK, with any installed font that has them."""

    def draw(self, renderer: Any) -> None:
        texts = [text for text in self.findobj(Text) if isinstance(text, Text) and not text.get_text().isascii()]
        _find_families({letter for text in texts for letter in text.get_text()})
        for text in texts:
            families = dict.fromkeys([*text.get_fontfamily(), *filter(None, map(_FAMILIES.get, text.get_text()))])
            text.set_fontfamily(list(families))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # reported by _find_families
            super().draw(renderer)


#: For each letter that was drawn, the font family to use; "" for the default font, or if no font has the letter.
_FAMILIES: dict[str, str] = {}


def _find_families(letters: set[str]) -> None:
    """Add letters to :data:`_FAMILIES`, and warn about those that no installed font has."""
    new = {letter for letter in letters if letter not in _FAMILIES and not letter.isspace()}
    default = FT2Font(findfont("DejaVu Sans"))
    missing = {letter for letter in new if not default.get_char_index(ord(letter))}
    _FAMILIES.update(dict.fromkeys(new, ""))
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if not missing:
            return
        font = FT2Font(entry.fname)
        if font.scalable and not entry.name.startswith("Last Resort"):  # bitmap fonts cannot be drawn
            found = {letter for letter in missing if font.get_char_index(ord(letter))}
            _FAMILIES.update(dict.fromkeys(found, entry.name))
            missing -= found
    if missing:
        some = "".join(sorted(missing)[:20])
        _log.warning("figures show boxes instead of %s: install a font with these letters, such as Noto Sans CJK", some)


def figure_text(text: str, columns: int | None = None) -> str:
    """Return a name for a figure: literal (a dollar sign starts no formula), visible, and shortened to ``columns``."""
    text = printable(text)
    text = (text if columns is None else shorten(text, columns)).replace("$", r"\$")
    # Marks keep the direction of letters from right to left inside the name.
    return f"\u200e{text}\u200e" if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text) else text


def quiet_axes(axes: Axes, *, grid: bool = True) -> None:
    """Remove the frame except for the bottom, shrink the ticks, and draw horizontal grid lines only."""
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
    """Remove frame, ticks, and background, for axes that show an image."""
    axes.set_axis_off()
    axes.patch.set_alpha(0.0)


def to_svg(figure: Figure, *, label: str, prefix: str) -> str:
    """Convert a figure to an inline ``<svg>`` element that scales with its container and follows the page's theme.

    Args:
        label: description for screen readers.
        prefix: prefix of the element's ids, unique on the page.
    """
    buffer = io.StringIO()
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # Keep text as text, and derive ids from the content only.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "art"}):
        figure.savefig(buffer, format="svg", metadata=no_metadata, transparent=False)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None  # matplotlib always writes one
    width = float(box.group(1).split()[2]) * 96 / 72
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)  # they repeat every text

    def adapt(tag: re.Match[str]) -> str:
        adapted = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag[0])
        for color, variable in _THEMED.items():
            adapted = adapted.replace(color, variable)
        return adapted

    body = re.sub(r"<[^>]*>", adapt, body)  # tags only: a class may be named like a color
    return (
        f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(label)}" style="--natural:{width:.0f}px">{body}'
    )


def figure_pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Render a figure at its resolution."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png_bytes(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def jpeg_uri(pixels: UInt8[np.ndarray, "height width 3"], *, quality: int = 86) -> str:
    """Encode an image as a ``data:`` URI with JPEG content."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="jpeg", pil_kwargs={"quality": quality})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


_CSS = """
:root {
  color-scheme: light dark;
  --page: #f4f5f8; --card: #ffffff; --ink: #1f2430; --muted: #646b78; --grid: #d9dce3;
  --line: #e4e6eb; --blue: #0072b2; --vermilion: #d55e00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12141a; --card: #1b1e26; --ink: #e6e8ee; --muted: #9aa1b0; --grid: #363b47;
    --line: #2b303b; --blue: #4fa9e0; --vermilion: #f0803c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1680px; margin: 0 auto; padding: clamp(16px, 3vw, 40px); }
h1 { font-size: clamp(22px, 3vw, 30px); line-height: 1.2; margin: 0 0 10px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 15px; line-height: 1.35; margin: 0; }
h3 em { font-size: 13px; font-weight: 400; font-style: normal; color: var(--muted); }
p { margin: 0; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif !important; }
.note { color: var(--muted); max-width: 96ch; margin: 0 0 14px; font-size: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; }
.empty { color: var(--muted); padding: 26px 16px; text-align: center; }
.scroll { overflow-x: auto; }
.scroll svg { max-width: none; width: 100%; min-width: min(var(--natural), 620px); }
.matrix svg { max-width: calc(var(--natural) * 1.3); }
.wide svg { min-width: min(var(--natural), 1080px); }

.facts { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0; font-size: 14px; }
.facts div { display: flex; gap: 6px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.warning { border-left: 4px solid var(--vermilion); padding: 6px 12px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 0; }
.headline b { display: block; font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em; }
.headline span { color: var(--muted); font-size: 13px; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: 12px; }
.charts .card { padding: 10px; }
.charts svg { width: 100%; }
.split { display: grid; grid-template-columns: minmax(0, 1.5fr) minmax(0, 1fr); gap: 14px; align-items: start; }

.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; align-items: start; }
.columns > div { min-width: 0; display: grid; gap: 14px; }
.side { font-weight: 650; padding-left: 2px; }
.side.correct { color: var(--blue); }
.side.wrong { color: var(--vermilion); }
.side span { color: var(--muted); font-weight: 400; }
.clip { border-top: 3px solid var(--blue); display: grid; gap: 14px; }
.clip.wrong { border-top-color: var(--vermilion); }
.prediction .name { white-space: normal; overflow-wrap: anywhere; line-height: 1.35; }
.clip .file { color: var(--muted); font-size: 12px; overflow-wrap: anywhere; }
.prediction { display: flex; gap: 14px; align-items: flex-start; }
.prediction > img { width: 108px; border-radius: 6px; flex: none; }
.prediction > div { flex: 1; min-width: 0; display: grid; gap: 6px; }
.track { display: grid; gap: 5px; font-size: 13px; }
.track p { color: var(--muted); }
.track p b { color: var(--ink); }
.dot {
  display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 7px; background: var(--color);
  border: 1px solid rgb(0 0 0 / 35%); vertical-align: -0.5px;
}
.frames { display: grid; grid-template-columns: repeat(4, 1fr); gap: 3px; }
.frames img { width: 100%; display: block; border-radius: 4px; }
.saliency { display: flex; gap: 2px; height: 24px; align-items: flex-end; border-bottom: 1px solid var(--grid); }
.saliency i { flex: 1; height: calc(var(--value) * 100%); background: var(--color); border-radius: 2px 2px 0 0; }

.bars { list-style: none; margin: 0; padding: 0; display: grid; gap: 4px; font-size: 13px; }
.bars li {
  display: grid; grid-template-columns: minmax(0, 1fr) minmax(50px, 26%) 46px; gap: 10px; align-items: center;
}
.bars .true .name { font-weight: 650; }
.bars em { color: var(--muted); font-style: normal; font-weight: 400; }
.name { overflow-wrap: anywhere; }
.value { text-align: right; color: var(--muted); }
.bar { height: 7px; border-radius: 4px; background: var(--line); overflow: hidden; display: block; }
.bar i { display: block; height: 100%; border-radius: 4px; background: var(--muted); width: calc(var(--value) * 100%); }
.true .bar i, .bar.correct i { background: var(--blue); }
.predicted .bar i, .bar.wrong i { background: var(--vermilion); }
.classes { display: block; columns: 330px; column-gap: 36px; }
.classes li { display: block; break-inside: avoid; margin-bottom: 5px; }
.classes .row {
  display: grid; grid-template-columns: 11px minmax(0, 1fr) minmax(50px, 24%) 84px; gap: 8px; align-items: center;
}
.classes .row::before { content: ""; }
.classes summary.row { cursor: pointer; list-style: none; }
.classes summary.row::-webkit-details-marker { display: none; }
.classes summary.row::before { content: "▸"; color: var(--muted); }
.classes details[open] summary.row::before { content: "▾"; }
.classes details[open] .name { white-space: normal; overflow-wrap: anywhere; }
.classes details p { padding: 2px 0 6px 19px; overflow-wrap: anywhere; }

.choose { font-size: 14px; line-height: 1.9; }
.choose span { display: inline-block; min-width: 56px; color: var(--muted); }
.choose label { cursor: pointer; white-space: nowrap; margin-right: 12px; }
.choose input { margin: 0 5px 0 0; vertical-align: -1.5px; accent-color: var(--blue); }
.pairs {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 14px;
  margin-top: 8px; align-items: start;
}
.pair { border-top: 3px solid var(--vermilion); display: grid; gap: 10px; min-width: 0; }
.pair h3 { overflow-wrap: anywhere; }
.pair h3 em { display: block; }
.count { color: var(--muted); font-size: 13px; }
.count b { color: var(--ink); font-size: 15px; }
.count .bar { margin-top: 4px; }
.strip { margin: 0; padding-left: 8px; border-left: 3px solid var(--vermilion); min-width: 0; }
.strip.correct { border-left-color: var(--blue); }
.strip img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.strip figcaption { font-size: 12.5px; line-height: 1.4; margin-top: 3px; overflow-wrap: anywhere; }
.strip small { display: block; color: var(--muted); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.all { margin-top: 14px; }
.all summary { cursor: pointer; }

table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { text-align: left; color: var(--muted); font-weight: 500; font-size: 13px; }
td:first-child, th:first-child { padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
tr:last-child td { border-bottom: 0; }
tr.highlight td { font-weight: 650; }
tr.highlight .bar i { background: var(--blue); }
td.number { white-space: nowrap; min-width: 84px; }
td.number .bar { margin-top: 4px; }
td small { color: var(--muted); font-weight: 400; font-size: 12.5px; }

@media (min-width: 1600px) { .frames { grid-template-columns: repeat(8, 1fr); } }
@media (max-width: 1180px) { .split { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 760px) {
  .columns { grid-template-columns: minmax(0, 1fr); }
  .numbers { grid-template-columns: 1fr 1fr; }
  .card { padding: 13px; }
  .prediction .bars li { grid-template-columns: minmax(0, 1fr) auto; gap: 2px 10px; }
  .prediction .bars .bar { grid-row: 2; grid-column: 1 / -1; }
  th, td { padding: 7px 5px; }
  td.number { min-width: 64px; }
  td:first-child { min-width: 104px; }
}
@media print { body { background: none; } .card { break-inside: avoid; } }
"""


def name_html(name: str, columns: int = 160) -> str:
    """Return the HTML of a class name or path: isolated from the direction of the text around it, and shortened to
    ``columns``, with the full name as its tooltip."""
    full = printable(name)
    return f'<bdi title="{escape(full)}">{escape(shorten(full, columns))}</bdi>'


def document(title: str, body: str) -> str:
    """Return a complete HTML page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(identifier: str, heading: str, note: str, *parts: str) -> str:
    """Return a section with a heading, an explanation (plain text), and its parts (HTML)."""
    content = "\n".join([*parts, "</section>"])
    return f'<section id="{identifier}">\n<h2>{escape(heading)}</h2>\n<p class="note">{escape(note)}</p>\n{content}'


def number_card(value: str, label: str, detail: str = "") -> str:
    """Return a card with a headline number."""
    more = f"<span>{escape(detail)}</span>" if detail else ""
    return f'<div class="card headline"><b>{escape(value)}</b><span>{escape(label)}</span>{more}</div>'


def bar(fraction: float, kind: str = "") -> str:
    """Return a bar filled to ``fraction`` (0 to 1)."""
    return f'<span class="bar {kind}" style="--value:{min(max(fraction, 0.0), 1.0):.4f}"><i></i></span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], highlight: int | None = None) -> str:
    """Return a table of HTML cells, with row ``highlight`` emphasized. It scrolls horizontally on narrow pages."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for i, row in enumerate(rows):
        mark = ' class="highlight"' if i == highlight else ""
        lines.append(f"<tr{mark}>" + "".join(row) + "</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def text_cell(text: str, detail: str = "") -> str:
    """Return a table cell of plain text, with a smaller line below it."""
    return f"<td>{name_html(text)}{f'<br><small>{escape(detail)}</small>' if detail else ''}</td>"


def number_cell(content: object) -> str:
    """Return a table cell with a number or other short HTML."""
    return f'<td class="number">{content}</td>'


def percent_cell(fraction: float | None, kind: str = "") -> str:
    """Return a table cell with a percentage and its bar; a dash for None."""
    return number_cell("–" if fraction is None else f"{percent(fraction)}{bar(fraction, kind)}")


def percent(fraction: float) -> str:
    """Format ``0.4567`` as ``45.7 %``."""
    return f"{100 * fraction:.1f} %"
