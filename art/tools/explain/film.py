"""The film of an explanation: its layout, one scene per frame of the clip, and the MP4 and GIF encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from art.data.decoding.frames import ONE_THREAD
from art.data.prepare.reencode import CODEC, check_encoder
from art.eval.report.style import INK, LINE_COLORS, MUTED, figure_pixels, figure_text, new_figure, tracklet_color
from art.eval.report.tracklets import prominence
from art.tools.explain import drawing
from art.tools.explain.drawing import MAP_NAMES, Frame, available_views, percent, text_width
from art.tools.explain.explanation import Explanation, decode_clip, single_thread

GIF_WIDTH, GIF_RATE, GIF_FRAMES = 480, 10.0, 150
_GIF_COLORS = 128
_TIME_BASE = Fraction(1, 90_000)
_TRAIL_FRACTION, _TRAIL_SECONDS = 0.35, 2.0  # a path fades out within this fraction of the clip, at most this long
_MAX_WIDTH, _MAX_HEIGHT = 1280, 720
_EDGE, _GAP, _CAPTION = 24, 16, 26
_LABELS, _AXIS = 400, 34  # width of the texts right of the strips, height of the time axis


def write_film(explanation: Explanation, mp4: Path, gif: Path, *, top_k: int = 5) -> None:
    """Write an MP4 and a GIF in one pass over the clip. Memory does not grow with the length of the clip.

    Args:
        mp4: H.264, at most 1280×720, with every frame of the clip at its own time.
        gif: 480 pixels wide, 10 frames per second and at most 150 frames; a clip over 15 s plays faster.
        top_k: Number of classes in the chart.

    Raises:
        art.data.decoding.video.VideoError: The clip can no longer be read.
        ValueError: Nothing can be drawn.
        ModuleNotFoundError: PyAV has no H.264 encoder.

    Examples:
        >>> from pathlib import Path
        >>> from art import load_model
        >>> from art.tools.explain import explain, write_film
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", timeline_points=0)
        >>> write_film(explanation, Path("film.mp4"), Path("film.gif"))
        >>> Path("film.mp4").stat().st_size > 0
        True
    """
    check_encoder()
    e, views = explanation, available_views(explanation)
    scene = Scene(e, layout_for(e), views, top_k)
    gif_views = views[:2]
    small = Scene(e, gif_layout(e.size[1] / e.size[0], len(gif_views), e.num_tracklets, GIF_WIDTH), gif_views)
    selected, duration = _gif_frames(e.times)
    pages: list[Image.Image] = []
    with single_thread(), _mp4_writer(mp4, scene.layout, e.times) as add:
        for index, resized in _resizable_frames(e.clip):
            add(scene.draw(index, resized(*scene.layout.panels[0][2:])), float(e.times[index]))
            if index in selected:
                pages.append(Image.fromarray(small.draw(index, resized(*small.layout.panels[0][2:]))))
    _save_gif(gif, pages, duration)


class Rect(NamedTuple):
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Layout:
    """The layout of a scene in pixels: the clip in adjacent panels, and strips over time below them."""

    width: int
    height: int
    text: int  # font size
    header: Rect  # the prediction
    panels: tuple[Rect, ...]  # one per view of the clip, with its caption right above it
    strips: tuple[Rect, ...]  # saliency over time, one per tracklet
    labels: tuple[Rect, ...]  # of the strips
    legend: Rect | None = None  # below the panels
    chart: Rect | None = None  # class probabilities over time
    names: Rect | None = None  # class names next to the chart


def layout_for(explanation: Explanation) -> Layout:
    """Return the layout of the film, with panels in the order of :func:`.drawing.available_views`."""
    e, views = explanation, available_views(explanation)
    legend_lines = len(drawing.legend_lines(e, views))
    chart = len(e.timeline) > 0
    return film_layout(e.size[1] / e.size[0], len(views), e.num_tracklets, chart=chart, legend_lines=legend_lines)


def film_layout(aspect: float, panels: int, tracklets: int, *, chart: bool, legend_lines: int = 1) -> Layout:
    """Lay out a film of at most 1280×720 for clips with a width to height ratio of ``aspect``."""
    below = _EDGE + (136 + _AXIS if chart else 0)
    header, legend = 62, 14 + 18 * legend_lines
    row = min(46, max(20, (_MAX_HEIGHT - header - legend - below - _CAPTION - 200) // max(tracklets, 1)))
    free = _MAX_HEIGHT - header - legend - below - _CAPTION - row * tracklets
    height = min(free, 360, (_MAX_WIDTH - 2 * _EDGE - (panels - 1) * _GAP) / panels / aspect)
    panel_width, panel_height = _even(height * aspect), _even(height)
    row_width = panels * panel_width + (panels - 1) * _GAP
    width = min(_MAX_WIDTH, max(1100, _even(row_width + 2 * _EDGE)))
    left, top = (width - row_width) // 2, header + _CAPTION
    y = top + panel_height + legend
    axis = width - 2 * _EDGE - _LABELS - 44
    strip_left, label_left, label_width = _EDGE + 44, _EDGE + 44 + axis + 14, _LABELS - 14
    strips_end = y + tracklets * row
    return Layout(
        width=width,
        height=_even(strips_end + (136 + _AXIS if chart else 8) + 4),
        text=14,
        header=Rect(_EDGE, 12, width - 2 * _EDGE, header - 12),
        panels=tuple(Rect(left + i * (panel_width + _GAP), top, panel_width, panel_height) for i in range(panels)),
        legend=Rect(_EDGE, top + panel_height + 6, width - 2 * _EDGE, 18 * legend_lines),
        strips=tuple(Rect(strip_left, y + k * row, axis, row - 10) for k in range(tracklets)),
        labels=tuple(Rect(label_left, y + k * row, label_width, row - 10) for k in range(tracklets)),
        chart=Rect(strip_left, strips_end + 8, axis, 124) if chart else None,
        names=Rect(label_left, strips_end + 4, label_width, 132) if chart else None,
    )


def gif_layout(aspect: float, panels: int, tracklets: int, width: int) -> Layout:
    """Lay out a GIF of ``width`` pixels: no chart and no legend, and each label above its strip."""
    edge, gap, header, caption, row = 8, 6, 24, 16, 30
    height = min((width - 2 * edge - (panels - 1) * gap) / panels / aspect, 260)
    panel_width, panel_height = _even(height * aspect), _even(height)
    left = (width - panels * panel_width - (panels - 1) * gap) // 2
    top = header + caption
    y = top + panel_height + 5
    inner = width - 2 * edge
    return Layout(
        width=width,
        height=_even(y + tracklets * row + 6),
        text=11,
        header=Rect(edge, 4, inner, header),
        panels=tuple(Rect(left + i * (panel_width + gap), top, panel_width, panel_height) for i in range(panels)),
        strips=tuple(Rect(edge, y + k * row + 16, inner, 11) for k in range(tracklets)),
        labels=tuple(Rect(edge, y + k * row, inner, 15) for k in range(tracklets)),
    )


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))


class SamplePosition(NamedTuple):
    """The position of a frame relative to the T sampled frames."""

    before: int  # index of the sampled frame at or before it
    after: int  # index of the sampled frame at or after it
    fraction: float  # position between the two, 0 to 1
    covered: bool  # whether the sampled frames represent it; False outside a dense sampling window


def sample_position(frame: int, sampled: Int64[np.ndarray, " t"]) -> SamplePosition:
    """Locate a frame among the sampled ones, whose indices ascend and may repeat.

    The first and the last sampled frame cover half of the mean distance beyond them.
    """
    last = len(sampled) - 1
    reach = (sampled[-1] - sampled[0]) / max(last, 1) / 2 + 1
    covered = bool(sampled[0] - reach <= frame <= sampled[-1] + reach)
    after = min(int(np.searchsorted(sampled, frame)), last)
    if sampled[after] <= frame or after == 0:
        return SamplePosition(after, after, 0.0, covered)
    before = after - 1
    fraction = float((frame - sampled[before]) / (sampled[after] - sampled[before]))
    return SamplePosition(before, after, fraction, covered)


def interpolate(values: Float[np.ndarray, "t *rest"], position: SamplePosition) -> Float[np.ndarray, "*rest"]:
    """Interpolate values of the T sampled frames linearly."""
    before, after, fraction, _ = position
    return np.asarray(values[before] * (1 - fraction) + values[after] * fraction)


class Scene:
    """Draws an explanation frame by frame, with one of ``views`` per panel and ``top_k`` classes in the chart."""

    def __init__(self, explanation: Explanation, layout: Layout, views: list[str], top_k: int = 5) -> None:
        self.explanation, self.layout, self.views = explanation, layout, views
        self._classes = drawing.chart_classes(explanation, top_k)
        self._bounds = drawing.crop_pixels(explanation.crop, layout.panels[0].width, layout.panels[0].height)
        self._maps = {name: drawing.normalized_backbone_map(explanation, name) for name in views if name in MAP_NAMES}
        if "tracklets" in views:
            maps = np.ascontiguousarray(explanation.maps, dtype=np.float32)
            self._maps["tracklets"] = prominence(torch.from_numpy(maps)[None])[0].numpy()

    def draw(self, index: int, frame: Frame) -> Frame:
        """Draw the scene of frame ``index`` of the clip, upright and in the size of the panels."""
        page = self._backdrop.copy()
        position = sample_position(index, self.explanation.sampled)
        for name, panel in zip(self.views, self.layout.panels, strict=True):
            maps = self._maps[name]
            weights = interpolate(maps, position) if position.covered else np.zeros_like(maps[0])
            overlay = drawing.draw_tints if name == "tracklets" else drawing.draw_heatmap
            view = overlay(frame, self._bounds, weights)
            if name == "tracklets" and position.covered:
                view = self._draw_paths(view, index)
            page[panel.top : panel.top + panel.height, panel.left : panel.left + panel.width] = view
        self._draw_cursor(page, index)
        return page

    def _draw_paths(self, view: Frame, index: int) -> Frame:
        e = self.explanation
        assert e.centers is not None and e.boxes is not None
        trail = min(_TRAIL_FRACTION * float(e.times[-1]), _TRAIL_SECONDS)
        start = min(index, int(np.searchsorted(e.times, e.times[index] - trail)))
        # A path is straight between sampled frames; the other points let it fade gradually.
        corners = e.sampled[(e.sampled > start) & (e.sampled < index)]
        points = np.unique(np.concatenate([np.linspace(start, index, 12).astype(np.int64), corners]))
        paths = np.stack([interpolate(e.centers, sample_position(int(point), e.sampled)) for point in points])
        opacities = 1 - (index - points[1:]) / max(1, index - start + 1)
        boxes = interpolate(e.boxes, sample_position(index, e.sampled))
        return drawing.draw_paths(view, self._bounds, paths, boxes, opacities.tolist())

    def _draw_cursor(self, page: Frame, index: int) -> None:
        """Draw a vertical line through strips and chart at the time of the frame."""
        zones = [*self.layout.strips, *([self.layout.chart] if self.layout.chart else [])]
        if not zones:
            return
        first, last = zones[0], zones[-1]
        end = max(float(self.explanation.times[-1]), 1e-9)
        x = first.left + round((first.width - 1) * float(self.explanation.times[index]) / end)
        if self.layout.legend is not None:  # labels are right of the strips, not between them
            zones = [first._replace(height=last.top + last.height - first.top)]
        for zone in zones:
            page[zone.top : zone.top + zone.height, max(0, x - 1) : x + 1] = (31, 36, 48)

    @cached_property
    def _backdrop(self) -> Frame:
        layout = self.layout
        figure = new_figure(layout.width / 100, layout.height / 100, dpi=100, layout=None)
        figure.patch.set(facecolor="white", alpha=1.0)
        self._draw_header(figure)
        for name, panel in zip(self.views, layout.panels, strict=True):
            self._draw_caption(figure, name, panel)
        for k, (strip, label) in enumerate(zip(layout.strips, layout.labels, strict=True)):
            drawing.draw_saliency(self._axes(figure, strip), self.explanation, k)
            self._draw_strip_label(figure, k, strip, label)
        if layout.legend is not None:
            lines = drawing.legend_lines(self.explanation, self.views)
            for number, line in enumerate(lines):
                y = layout.legend.top + layout.legend.height * (number + 0.5) / len(lines)
                self._text(figure, layout.legend.left, y, line, layout.text - 2, layout.legend.width, color=MUTED)
        if layout.chart is not None and layout.names is not None:
            drawing.draw_probabilities(self._axes(figure, layout.chart), self.explanation, self._classes)
            self._draw_class_names(figure, layout.names)
        return figure_pixels(figure)

    def _axes(self, figure: Figure, rect: Rect) -> Axes:
        w, h = self.layout.width, self.layout.height
        return figure.add_axes((rect.left / w, 1 - (rect.top + rect.height) / h, rect.width / w, rect.height / h))

    def _text(self, figure: Figure, x: float, y: float, text: str, size: int, width: float, **style: object) -> float:
        """Write a line of at most ``width`` pixels, centered vertically at y, and return its right end."""
        bold = style.get("fontweight") == "bold"
        text = drawing.truncate_text(text, size, width, bold=bold)
        style = {"color": INK, "va": "center_baseline", **style}
        position = x / self.layout.width, 1 - y / self.layout.height
        figure.text(*position, figure_text(text), fontsize=size * 0.72, **style)  # type: ignore[arg-type]
        return x + text_width(text, size, bold=bold)

    def _draw_header(self, figure: Figure) -> None:
        e, header, size = self.explanation, self.layout.header, self.layout.text
        full_size = self.layout.legend is not None
        large = round(size * 1.45) if full_size else size + 1
        y = header.top + large * 0.75
        probability = f"  {percent(e.probabilities[e.predicted])}"
        width = header.width - text_width(probability, large, bold=True)
        x = self._text(figure, header.left, y, f"“{e.class_names[e.predicted]}”", large, width, fontweight="bold")
        self._text(figure, x, y, probability, large, 200, color=MUTED, fontweight="bold")
        if full_size:
            line = drawing.prediction_line(e)
            self._text(figure, header.left, y + large * 0.75 + 12, line, size, header.width, color=MUTED)

    def _draw_caption(self, figure: Figure, name: str, panel: Rect) -> None:
        e, size = self.explanation, self.layout.text
        if name == "tracklets":
            captions = [f"ART: {e.num_tracklets} tracklet{'s' * (e.num_tracklets != 1)}"]
        else:
            captions = ["Evidence" if name == "evidence" else f"Backbone: {MAP_NAMES[name]}"]
        if name in ("evidence", "grad_cam") and self.layout.legend is not None:
            captions.insert(0, drawing.map_title(e, name))
        fitting = [c for c in captions if text_width(c, size, bold=True) <= panel.width] or captions
        self._text(figure, panel.left, panel.top - size * 0.75, fitting[0], size, panel.width, fontweight="bold")

    def _draw_strip_label(self, figure: Figure, k: int, strip: Rect, label: Rect) -> None:
        query, size = self.explanation.queries[k], self.layout.text
        marker = {"color": tracklet_color(k), "fontweight": "bold"}
        title = query.title(k)
        right = label.left + label.width
        if self.layout.legend is None:  # one line above the strip
            y = label.top + label.height / 2
            x = self._text(figure, label.left, y, "■ ", size, 40, **marker)
            x = self._text(figure, x, y, title, size, right - x)
            note = "Saliency over time"
            if k == 0 and text_width(note, size - 2) + 12 < right - x:
                self._text(figure, right, y, note, size - 2, right - x, color=MUTED, ha="right")
            return
        two_lines = label.height >= 2 * size + 4
        y = label.top + label.height * (0.28 if two_lines else 0.5)
        x = self._text(figure, label.left, y, "■ ", size, 40, **marker)
        self._text(figure, x, y, title, size, right - x)
        if two_lines and query.prompt is not None:
            self._text(figure, x, y + size + 5, f"“{query.prompt}”", size - 2, right - x, color=MUTED)
        y = strip.top + strip.height / 2
        self._text(figure, strip.left - 8, y, "Saliency", size - 4, 60, color=MUTED, ha="right")

    def _draw_class_names(self, figure: Figure, rect: Rect) -> None:
        """List the classes of the chart by their final probability."""
        e, size = self.explanation, self.layout.text
        colors = {c: LINE_COLORS[i % len(LINE_COLORS)] for i, c in enumerate(self._classes)}
        right, step = rect.left + rect.width, min(20, (rect.height - 10) / len(colors))
        for row, c in enumerate(sorted(colors, key=lambda c: -float(e.probabilities[c]))):
            y = rect.top + 10 + row * step
            x = self._text(figure, rect.left, y, "▬ ", size, 40, color=colors[c])
            weight = {"fontweight": "bold"} if c == e.predicted else {}
            self._text(figure, x, y, e.class_names[c], size, right - x - 52, **weight)
            self._text(figure, right, y, percent(e.probabilities[c]), size, 52, color=MUTED, ha="right")
        if len(colors) * step + 26 <= rect.height:
            note = "Prediction for the clip up to each time"
            self._text(figure, rect.left, rect.top + rect.height - 8, note, size - 2, rect.width, color=MUTED)


def _resizable_frames(clip: Path) -> Iterator[tuple[int, Callable[[int, int], Frame]]]:
    """Yield each frame's index and a function that returns the upright frame in a given width and height."""
    reformatter = VideoReformatter()
    for index, frame in enumerate(decode_clip(clip)):
        quarter_turns = round(frame.rotation / 90)

        def resized(width: int, height: int, frame: av.VideoFrame = frame, turns: int = quarter_turns) -> Frame:
            stored_width, stored_height = (height, width) if turns % 2 else (width, height)
            method = Interpolation.AREA if stored_width < frame.width else Interpolation.BICUBIC
            rgb = reformatter.reformat(frame, stored_width, stored_height, "rgb24", interpolation=method, **ONE_THREAD)
            return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))

        yield index, resized


@contextmanager
def _mp4_writer(path: Path, layout: Layout, times: np.ndarray) -> Iterator[Callable[[Frame, float], None]]:
    """Open an MP4, and yield a function that appends a frame at a time in seconds."""
    mean_step = float(np.diff(times).mean()) if len(times) > 1 else 1.0
    rate = Fraction(1 / max(mean_step, 1e-3)).limit_denominator(1001)
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(CODEC, rate=rate, options={"preset": "veryfast", "crf": "21"})
        stream.width, stream.height, stream.pix_fmt = layout.width, layout.height, "yuv420p"
        stream.codec_context.time_base = _TIME_BASE
        last = -1

        def add(page: Frame, seconds: float) -> None:
            nonlocal last
            frame = av.VideoFrame.from_ndarray(page, format="rgb24")
            last = max(round(seconds / _TIME_BASE), last + 1)
            frame.pts, frame.time_base = last, _TIME_BASE
            container.mux(stream.encode(frame))

        yield add
        container.mux(stream.encode(None))


def _gif_frames(times: np.ndarray) -> tuple[set[int], float]:
    """Select the frames of the GIF, and compute the duration of each in milliseconds."""
    mean_step = float(np.diff(times).mean()) if len(times) > 1 else 1.0
    length = float(times[-1]) + mean_step
    count = max(1, min(len(times), round(length * GIF_RATE), GIF_FRAMES))
    selected = ((np.arange(count) + 0.5) * len(times) / count).astype(int)
    return set(selected.tolist()), min(1000 * length / count, 1000 / GIF_RATE if count == GIF_FRAMES else 1000.0)


def _save_gif(path: Path, pages: list[Image.Image], duration: float) -> None:
    """Save the pages with one palette, computed from eight of them, so that unchanged regions are not stored again."""
    examples = Image.fromarray(np.concatenate([np.asarray(page) for page in pages[:: -(-len(pages) // 8)]]))
    palette = examples.quantize(_GIF_COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    first, *others = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages)
    first.save(path, "GIF", save_all=True, append_images=others, duration=round(duration / 10) * 10, loop=0)
