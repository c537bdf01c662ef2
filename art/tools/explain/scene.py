"""One picture of the film: the clip at one frame in panels, and where that frame lies in time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import ImageFont

from art.eval.report.response_maps import prominence
from art.eval.report.style import GRID, INK, LINE_COLOURS, MUTED, figure_pixels, new_figure, quiet_axes, tracklet_colour
from art.tools.explain.explanation import Explanation
from art.tools.explain.in_time import at, place_of
from art.tools.explain.layout import Layout, Rect
from art.tools.explain.painting import crop_pixels, heated, tinted, with_tracklets

_TRAIL = 0.35  # share of the clip after which a path has vanished
_TRAIL_SECONDS = 2.0  # and at most so long
_NAMED = {"grad_cam": "backbone: Grad-CAM", "rollout": "backbone: attention roll-out", "tracklets": "ART"}


def views_of(explanation: Explanation) -> list[str]:
    """The views of the clip that can be drawn: "tracklets", "grad_cam", "rollout".

    Raises:
        ValueError: there is none.
    """
    views = ["tracklets"] * (explanation.maps is not None)
    views += [name for name in ("grad_cam", "rollout") if getattr(explanation, name) is not None]
    if not views:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in explanation.missing.items())
        raise ValueError(
            f"nothing of {explanation.clip} can be drawn: the model has no tracklets (kind {explanation.kind!r}), and "
            f"of its backbone there is no map ({reasons}). Give a checkpoint of kind 'art'"
        )
    return views


def shown_classes(explanation: Explanation, count: int) -> list[int]:
    """The classes of a chart: the model's best, then those that were most probable at some time."""
    peak = explanation.probabilities_over_time.max(0, initial=0.0)
    best = explanation.best(1)
    return best + [c for c in np.argsort(-peak, kind="stable").tolist() if c not in best][: count - 1]


def shown_as_shares(maps: Float[np.ndarray, "t k h w"]) -> Float[np.ndarray, "t k h w"]:
    """How far each weight lies above the average, 0 to 1: :func:`art.eval.report.response_maps.prominence`."""
    return prominence(torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None])[0].numpy()


def backbone_map(explanation: Explanation, name: str) -> Float[np.ndarray, "t h w"]:
    """Grad-CAM as a share of its maximum in the clip, or roll-out from its least to its most there: it has no zero,
    because half of each token stays where it is.
    """
    values = getattr(explanation, name)
    least = 0.0 if name == "grad_cam" else float(values.min())
    return (values - least) / max(float(values.max()) - least, 1e-12)


def legend_lines(explanation: Explanation, views: Sequence[str]) -> list[str]:
    """What the colours and lines of the panels mean, and which map there is not."""
    says = []
    if "tracklets" in views:
        says.append("tint: response above average · ring: its centre · box: at least half its peak · line: path")
    if "grad_cam" in views or "rollout" in views:
        says.append("yellow: most, dark: least")
    names = {"grad_cam": "Grad-CAM", "rollout": "attention roll-out"}
    told = [f"no {names[name]} of this backbone: {reason}" for name, reason in explanation.missing.items()]
    return ["   |   ".join(says), *(["; ".join(told)] if told else [])]


class Scene:
    """Draws an explanation frame by frame.

    Args:
        views: of :func:`views_of`, one for each panel of the layout.
        top_k: classes in the chart.
    """

    def __init__(self, explanation: Explanation, layout: Layout, views: list[str], top_k: int = 5) -> None:
        self.explanation, self.layout, self.views = explanation, layout, views
        self.top_k = top_k
        panel = layout.panels[0]
        self._square = crop_pixels(explanation.crop, panel.width, panel.height)
        self._maps = {
            name: shown_as_shares(_there(explanation.maps)) if name == "tracklets" else backbone_map(explanation, name)
            for name in views
        }

    def draw(self, frame: int, picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """The picture of one frame of the clip.

        Args:
            frame: its position.
            picture: the frame itself, upright, of the panels' size.
        """
        page = self._backdrop.copy()
        place = place_of(frame, self.explanation.sampled)
        for name, panel in zip(self.views, self.layout.panels, strict=True):
            weights = at(self._maps[name], place) if place.seen else np.zeros_like(self._maps[name][0])
            paint = tinted if name == "tracklets" else heated
            view = paint(picture, self._square, weights)
            if name == "tracklets" and place.seen:
                view = self._with_lines(view, frame)
            page[panel.top : panel.top + panel.height, panel.left : panel.left + panel.width] = view
        self._draw_now(page, frame)
        return page

    def _with_lines(self, view: UInt8[np.ndarray, "h w 3"], frame: int) -> UInt8[np.ndarray, "h w 3"]:
        e, begin = self.explanation, self._first_of_trail(frame)
        # Between frames that were shown a path is straight; the steps are there to let it fade.
        corners = e.sampled[(e.sampled > begin) & (e.sampled < frame)]
        frames = np.unique(np.concatenate([np.linspace(begin, frame, 12).astype(np.int64), corners]))
        paths = np.stack([at(_there(e.centres), place_of(int(f), e.sampled)) for f in frames])
        fresh = 1 - (frame - frames[1:]) / max(1, frame - begin + 1)
        return with_tracklets(
            view, self._square, paths, at(_there(e.boxes), place_of(frame, e.sampled)), fresh.tolist()
        )

    def _first_of_trail(self, frame: int) -> int:
        times = self.explanation.times
        back = min(_TRAIL * float(times[-1]), _TRAIL_SECONDS)
        return min(frame, int(np.searchsorted(times, times[frame] - back)))

    def _draw_now(self, page: UInt8[np.ndarray, "height width 3"], frame: int) -> None:
        """A line through strips and chart at the time of the frame."""
        zones = [*self.layout.strips, *([self.layout.chart] if self.layout.chart else [])]
        if not zones:
            return
        span = max(float(self.explanation.times[-1]), 1e-9)
        x = zones[0].left + round((zones[0].width - 1) * float(self.explanation.times[frame]) / span)
        if self.layout.legend is not None:  # texts stand beside the strips, and not between them
            zones = [Rect(zones[0].left, zones[0].top, zones[0].width, zones[-1].top + zones[-1].height - zones[0].top)]
        for zone in zones:
            page[zone.top : zone.top + zone.height, max(0, x - 1) : x + 1] = (31, 36, 48)

    @cached_property
    def _backdrop(self) -> UInt8[np.ndarray, "height width 3"]:
        layout = self.layout
        figure = new_figure(layout.width / 100, layout.height / 100, dpi=100, layout=None)
        figure.patch.set(facecolor="white", alpha=1.0)
        self._header(figure)
        for name, panel in zip(self.views, layout.panels, strict=True):
            self._caption(figure, name, panel)
        for k, (strip, label) in enumerate(zip(layout.strips, layout.labels, strict=True)):
            self._strip(figure, k, strip, label)
        if layout.legend is not None:
            self._legend(figure, layout.legend)
        if layout.chart is not None and layout.names is not None:
            draw_probabilities(
                self._axes(figure, layout.chart), self.explanation, shown_classes(self.explanation, self.top_k)
            )
            self._names(figure, layout.names)
        return figure_pixels(figure)

    def _axes(self, figure: Figure, rect: Rect) -> Axes:
        w, h = self.layout.width, self.layout.height
        return figure.add_axes((rect.left / w, 1 - (rect.top + rect.height) / h, rect.width / w, rect.height / h))

    def _text(self, figure: Figure, x: float, y: float, text: str, size: int, room: float, **style: object) -> float:
        """Write at the pixel (x, y), the middle of the line on the left; gives the x behind it."""
        text = fitted(text, size, room, bold=style.get("fontweight") == "bold")
        style = {"color": INK, "va": "center_baseline", **style}
        figure.text(x / self.layout.width, 1 - y / self.layout.height, text, fontsize=size * 0.72, **style)  # type: ignore[arg-type]
        return x + text_width(text, size, bold=style.get("fontweight") == "bold")

    def _header(self, figure: Figure) -> None:
        e, header, size = self.explanation, self.layout.header, self.layout.text
        large = round(size * 1.45) if self.layout.chart or self.layout.legend else size + 1
        y = header.top + large * 0.75
        answer = f"“{e.class_names[e.predicted]}”"
        share = f"  {100 * float(e.probabilities[e.predicted]):.0f} %"
        room = header.width - text_width(share, large, bold=True)
        x = self._text(figure, header.left, y, answer, large, room, fontweight="bold")
        x = self._text(figure, x, y, share, large, 200, color=MUTED, fontweight="bold")
        if self.layout.legend is not None:
            others = ", ".join(f"{e.class_names[c]} {100 * float(e.probabilities[c]):.0f} %" for c in e.best(3)[1:])
            line = f"is the model's answer to {e.clip.name}; after it {others}"
            self._text(figure, header.left, y + large * 0.75 + 12, line, size, header.width, color=MUTED)

    def _caption(self, figure: Figure, name: str, panel: Rect) -> None:
        e, size = self.explanation, self.layout.text
        captions = [_NAMED[name]]
        if name == "tracklets":
            captions = [f"ART: {e.num_tracklets} tracklet{'s' * (e.num_tracklets != 1)}"]
        if name == "grad_cam" and self.layout.legend is not None:
            captions.insert(0, f"{_NAMED[name]} of “{e.class_names[e.target]}”")
        fit = [c for c in captions if text_width(c, size, bold=True) <= panel.width] or captions
        self._text(figure, panel.left, panel.top - size * 0.75, fit[0], size, panel.width, fontweight="bold")

    def _strip(self, figure: Figure, k: int, strip: Rect, label: Rect) -> None:
        e, size = self.explanation, self.layout.text
        draw_saliency(self._axes(figure, strip), e, k)
        query = e.queries[k]
        dot = {"color": tracklet_colour(k), "fontweight": "bold"}
        if self.layout.legend is None:  # one line above the strip
            y = label.top + label.height / 2
            x = self._text(figure, label.left, y, "■ ", size, 40, **dot)
            x = self._text(figure, x, y, f"asks for “{query.name}”", size, label.left + label.width - x)
            right, note = label.left + label.width, "how much each frame weighs"
            if k == 0 and text_width(note, size - 2) + 12 < right - x:
                self._text(figure, right, y, note, size - 2, right - x, color=MUTED, ha="right")
            return
        lines = 2 if label.height >= 2 * size + 4 else 1
        y = label.top + label.height * (0.28 if lines == 2 else 0.5)
        x = self._text(figure, label.left, y, "■ ", size, 40, **dot)
        room = label.left + label.width - x
        self._text(figure, x, y, f"tracklet {k + 1} asks for “{query.name}”", size, room)
        if lines == 2:
            prompt = f"“{query.prompt}”"
            self._text(figure, x, y + size + 5, prompt, size - 2, room, color=MUTED)
        left = strip.left - 8
        self._text(figure, left, strip.top + strip.height / 2, "saliency", size - 4, 60, color=MUTED, ha="right")

    def _legend(self, figure: Figure, rect: Rect) -> None:
        size = self.layout.text - 2
        lines = legend_lines(self.explanation, self.views)
        for number, line in enumerate(lines):
            y = rect.top + rect.height * (number + 0.5) / len(lines)
            self._text(figure, rect.left, y, line, size, rect.width, color=MUTED)

    def _names(self, figure: Figure, rect: Rect) -> None:
        """The classes of the chart, in the order of their lines at the end."""
        e, size = self.explanation, self.layout.text
        classes = shown_classes(e, self.top_k)
        lines = {c: LINE_COLOURS[i % len(LINE_COLOURS)] for i, c in enumerate(classes)}
        step = min(20, (rect.height - 10) / len(classes))
        for place, c in enumerate(sorted(classes, key=lambda c: -float(e.probabilities[c]))):
            y = rect.top + 10 + place * step
            x = self._text(figure, rect.left, y, "▬ ", size, 40, color=lines[c])
            share = f"{100 * float(e.probabilities[c]):.0f} %"
            bold = {"fontweight": "bold"} if c == e.predicted else {}
            room = rect.left + rect.width - x - 52
            self._text(figure, x, y, e.class_names[c], size, room, **bold)
            self._text(figure, rect.left + rect.width, y, share, size, 52, color=MUTED, ha="right")
        if len(classes) * step + 26 <= rect.height:
            y = rect.top + rect.height - 8
            self._text(
                figure, rect.left, y, "what it answers to the clip up to each time", size - 2, rect.width, color=MUTED
            )


def draw_probabilities(axes: Axes, explanation: Explanation, classes: list[int]) -> None:
    """A line for each of ``classes``: the answer to the clip up to each time, in per cent; time in seconds."""
    e = explanation
    quiet_axes(axes)
    for i, c in reversed(list(enumerate(classes))):
        colour = LINE_COLOURS[i % len(LINE_COLOURS)]
        values = 100 * e.probabilities_over_time[:, c]
        axes.plot(e.beginnings, values, color=colour, linewidth=2.4 if c == e.predicted else 1.4)
        if len(values) == 1:
            axes.plot(e.beginnings, values, "o", color=colour)
    axes.set(xlim=(0, max(float(e.times[-1]), 1e-9)), ylim=(0, 103))
    axes.set_yticks([0, 50, 100], ["0 %", "50", "100"])
    axes.set_xlabel("seconds", labelpad=1)


def draw_saliency(axes: Axes, explanation: Explanation, k: int) -> None:
    """How much each of the T frames weighs in tracklet ``k``: a bar over the time for which the frame stands."""
    e = explanation
    saliency = _there(e.saliency)
    at_seconds = e.times[e.sampled]
    between = (at_seconds[1:] + at_seconds[:-1]) / 2
    half = float(np.diff(at_seconds).mean()) / 2 if len(at_seconds) > 1 else float(e.times[-1])
    edges = np.concatenate([[at_seconds[0] - half], between, [at_seconds[-1] + half]]).clip(
        0, max(float(e.times[-1]), 1e-9)
    )
    axes.set_axis_off()
    axes.axhspan(0, 1, color=GRID, alpha=0.5, linewidth=0)
    wide = np.diff(edges)
    heights = saliency[:, k] / max(float(saliency.max()), 1e-9)
    axes.bar(edges[:-1] + 0.04 * wide, heights, width=0.92 * wide, align="edge", color=tracklet_colour(k))
    axes.set(xlim=(0, max(float(e.times[-1]), 1e-9)), ylim=(0, 1))


def fitted(text: str, size: int, room: float, *, bold: bool = False) -> str:
    """The text, with … for what does not fit into ``room`` pixels."""
    if text_width(text, size, bold=bold) <= room:
        return text
    while text and text_width(text + "…", size, bold=bold) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Pixels of a line of Matplotlib's own font."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return float(ImageFont.truetype(str(path), size).getlength(text))


def _there(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array
