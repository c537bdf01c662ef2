"""Drawing code shared by the film and the contact sheet: overlays on frames, charts, and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from art.eval.report.style import GRID, LINE_COLORS, quiet_axes, tracklet_color
from art.eval.report.tracklets import upsample
from art.terminal import letter_columns, printable, shorten, text_columns
from art.tools.explain.explanation import Explanation

MAP_NAMES = {"evidence": "evidence", "grad_cam": "Grad-CAM", "rollout": "attention rollout"}

_DARK = (16, 19, 24)
_SUPERSAMPLING = 2  # lines are drawn at this multiple of the resolution, for antialiasing
_HEATMAP = colormaps["inferno"]

Frame = UInt8[np.ndarray, "height width 3"]
Bounds = tuple[int, int, int, int]


def available_views(explanation: Explanation) -> list[str]:
    """Return which of the views "tracklets", "evidence", "grad_cam" and "rollout" can be drawn.

    Raises:
        ValueError: There are none.
    """
    arrays = {"tracklets": explanation.maps, **{name: getattr(explanation, name) for name in MAP_NAMES}}
    views = [name for name, array in arrays.items() if array is not None]
    if not views:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in explanation.missing.items())
        raise ValueError(
            f"nothing can be drawn for {explanation.clip}: the model has no tracklets (kind {explanation.kind!r}), and "
            f"its backbone supports no map ({reasons}). Use a checkpoint of kind 'art'"
        )
    return views


def chart_classes(explanation: Explanation, count: int) -> list[int]:
    """Return the classes to plot: the predicted class, then those with the highest probability at any time."""
    peak = explanation.probabilities_over_time.max(0, initial=0.0)
    others = [c for c in np.argsort(-peak, kind="stable").tolist() if c != explanation.predicted]
    return [explanation.predicted, *others[: count - 1]]


def normalized_backbone_map(explanation: Explanation, name: str) -> Float[np.ndarray, "t h w"]:
    """Scale evidence and Grad-CAM by their maximum in the clip, or rollout from its minimum to its maximum.

    Evidence against the class is 0. Rollout has no natural zero because half of each token's attention is the identity.
    """
    values = getattr(explanation, name)
    low = float(values.min()) if name == "rollout" else 0.0
    return np.maximum(values - low, 0) / max(float(values.max()) - low, 1e-12)


def map_title(explanation: Explanation, name: str) -> str:
    """Return the caption of a map in :data:`MAP_NAMES`."""
    target = explanation.class_names[explanation.target]
    if name == "evidence":
        return f"Evidence for “{target}” over “{explanation.class_names[explanation.rival]}”"
    return f"Backbone: {MAP_NAMES[name]}" + (f" of “{target}”" if name == "grad_cam" else "")


def crop_pixels(crop: tuple[float, float, float, float], width: int, height: int) -> Bounds:
    """Convert the bounds of the model's crop to pixels, at least one in each direction: left, top, right, bottom."""
    left, top = round(crop[0] * width), round(crop[1] * height)
    return left, top, max(left + 1, round(crop[2] * width)), max(top + 1, round(crop[3] * height))


def draw_tints(frame: Frame, bounds: Bounds, weights: Float[np.ndarray, "k h w"]) -> Frame:
    """Tint the crop in each tracklet's color where its response is high, and darken everything outside the crop.

    Args:
        bounds: The model's crop, in pixels.
        weights: Responses of the K tracklets within the crop, 0 to 1.
    """
    inside, weight = _crop(frame, bounds, weights)
    palette = np.array([to_rgb(tracklet_color(k)) for k in range(len(weights))], dtype=np.float32) * 255
    peak = weight.max(0)[..., None]
    color = np.tensordot(weight, palette, ((0,), (0,))) / np.maximum(weight.sum(0), 1e-6)[..., None]
    base = _desaturate(inside) * (1 - peak) + inside * peak
    return _darken_and_paste(frame, bounds, base * (1 - 0.6 * peak) + color * (0.6 * peak))


def draw_heatmap(frame: Frame, bounds: Bounds, weights: Float[np.ndarray, "h w"]) -> Frame:
    """Overlay one map with values from 0 to 1 on the crop, and darken everything outside the crop."""
    inside, (weight,) = _crop(frame, bounds, weights[None])
    color = _HEATMAP((30 + 225 * weight).astype(np.uint8), bytes=True)[..., :3].astype(np.float32)
    opacity = (0.15 + 0.6 * weight)[..., None]
    return _darken_and_paste(frame, bounds, _desaturate(inside) * (1 - opacity) + color * opacity)


def _crop(
    frame: Frame, bounds: Bounds, weights: Float[np.ndarray, "k h w"]
) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "k height width"]]:
    """Return the crop, and the weights resized to it."""
    left, top, right, bottom = bounds
    inside = frame[top:bottom, left:right].astype(np.float32)
    maps = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))
    return inside, upsample(maps, (inside.shape[0], inside.shape[1])).clamp(0, 1).numpy()


def _desaturate(inside: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    return inside * np.float32(0.7) + inside.mean(2, keepdims=True) * np.float32(0.2)


def _darken_and_paste(frame: Frame, bounds: Bounds, inside: Float[np.ndarray, "h w 3"]) -> Frame:
    left, top, right, bottom = bounds
    result = (frame * np.float32(0.35)).astype(np.uint8)
    result[top:bottom, left:right] = inside.clip(0, 255).astype(np.uint8)
    return result


def draw_paths(
    frame: Frame,
    bounds: Bounds,
    paths: Float[np.ndarray, "n k 2"],
    boxes: Float[np.ndarray, "k 4"],
    opacities: Sequence[float],
) -> Frame:
    """Draw each tracklet's path, a ring at its current position, and its box.

    Args:
        bounds: The model's crop in pixels; paths and boxes are fractions of it.
        paths: Centers up to the current frame, which is last.
        boxes: Left, top, right and bottom.
        opacities: Opacity of each of the N - 1 segments of the paths.
    """
    height, width = frame.shape[:2]
    layer = Image.new("RGBA", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(layer)
    origin = np.array(bounds[:2], dtype=np.float64)
    extent = np.array(bounds[2:]) - origin
    unit = _SUPERSAMPLING * max(1.0, height / 240)
    for k in range(paths.shape[1]):
        color = _rgb(k)
        _draw_box(draw, (np.tile(origin, 2) + boxes[k] * np.tile(extent, 2)) * _SUPERSAMPLING, k, unit)
        points = [tuple(point) for point in ((origin + paths[:, k] * extent) * _SUPERSAMPLING).tolist()]
        for line, line_width in ((_DARK, 4.4), (color, 2.4)):
            for start, end, opacity in zip(points, points[1:], opacities, strict=False):
                if opacity > 0:
                    draw.line((start, end), fill=(*line, round(255 * opacity)), width=round(line_width * unit))
        x, y = points[-1]
        for radius, fill in ((6.4, _DARK), (5.4, (255, 255, 255)), (3.8, color)):
            r = radius * unit
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(*fill, 255))
    layer = layer.reduce(_SUPERSAMPLING)
    result = Image.fromarray(frame)
    result.paste(layer, mask=layer.getchannel("A"))
    return np.asarray(result)


def _rgb(k: int) -> tuple[int, ...]:
    return tuple(round(255 * channel) for channel in to_rgb(tracklet_color(k)))


def _draw_box(draw: ImageDraw.ImageDraw, box: Float[np.ndarray, " 4"], k: int, unit: float) -> None:
    """Draw an outline inset by an amount that grows with ``k``, so that equal boxes of two tracklets are both visible.

    The inset is at most a quarter of the box on each side.
    """
    size = box[2:] - box[:2]
    inset = np.minimum(1.5 * unit * (1 + k), size / 4)
    outer = np.concatenate([box[:2] + inset, box[2:] - inset])
    line = min(0.7 * unit, *(size / 8))
    inner = outer + np.array([line, line, -line, -line])
    for corners, ink, width in ((outer, (*_DARK, 200), 2.6), (inner, (*_rgb(k), 255), 1.3)):
        straight = min(corners[2:] - corners[:2]) - 4  # Pillow raises if rounded corners use up a whole side
        radius = min(3 * unit, max(0.0, straight / 2))
        draw.rounded_rectangle(tuple(corners.tolist()), radius, outline=ink, width=max(1, round(width * unit)))


def draw_probabilities(axes: Axes, explanation: Explanation, classes: list[int]) -> None:
    """Plot the probability of each class, in percent, over the end time of the clip prefix, in seconds."""
    e = explanation
    quiet_axes(axes)
    for i, c in reversed(list(enumerate(classes))):
        color = LINE_COLORS[i % len(LINE_COLORS)]
        values = 100 * e.probabilities_over_time[:, c]
        axes.plot(e.timeline, values, color=color, linewidth=2.4 if c == e.predicted else 1.4)
        if len(values) == 1:
            axes.plot(e.timeline, values, "o", color=color)
    axes.set(xlim=(0, max(float(e.times[-1]), 1e-9)), ylim=(0, 103))
    axes.set_yticks([0, 50, 100], ["0%", "50%", "100%"])
    axes.set_xlabel("Seconds", labelpad=1)


def draw_saliency(axes: Axes, explanation: Explanation, k: int) -> None:
    """Draw the saliency of tracklet ``k`` as a bar per sampled frame, as wide as the time that the frame represents."""
    e = explanation
    assert e.saliency is not None
    seconds = e.times[e.sampled]
    between = (seconds[1:] + seconds[:-1]) / 2
    half = float(np.diff(seconds).mean()) / 2 if len(seconds) > 1 else float(e.times[-1])
    end = max(float(e.times[-1]), 1e-9)
    edges = np.concatenate([[seconds[0] - half], between, [seconds[-1] + half]]).clip(0, end)
    axes.set_axis_off()
    axes.axhspan(0, 1, color=GRID, alpha=0.5, linewidth=0)
    widths = np.diff(edges)
    heights = e.saliency[:, k] / max(float(e.saliency.max()), 1e-9)
    axes.bar(edges[:-1] + 0.04 * widths, heights, width=0.92 * widths, align="edge", color=tracklet_color(k))
    axes.set(xlim=(0, end), ylim=(0, 1))


def percent(probability: float) -> str:
    """Format a probability as a whole percentage."""
    return f"{100 * float(probability):.0f}%"


def prediction_line(explanation: Explanation) -> str:
    """Return a line that names the clip and the classes after the predicted one."""
    e = explanation
    names = [shorten(printable(name), 48) for name in (e.clip.name, *(e.class_names[c] for c in e.best(3)[1:]))]
    others = ", ".join(
        f"{name} {percent(e.probabilities[c])}" for name, c in zip(names[1:], e.best(3)[1:], strict=True)
    )
    return f"Prediction for {names[0]}" + (f"; next: {others}" if others else "")


def legend_lines(explanation: Explanation, views: Sequence[str]) -> list[str]:
    """Return the legend of the panels, and a line with the reasons for missing maps if there are any."""
    legend = []
    if "tracklets" in views:
        legend.append("Tint: response above average · Ring: center · Box: at least half of the peak · Line: path")
    if any(name in views for name in MAP_NAMES):
        legend.append("Yellow: high, dark: low")
    missing = [f"No {MAP_NAMES[name]} for this backbone: {reason}" for name, reason in explanation.missing.items()]
    return ["   |   ".join(legend), *(["; ".join(missing)] if missing else [])]


def truncate_text(text: str, size: int, max_width: float, *, bold: bool = False) -> str:
    """Escape invisible characters, and replace the middle with an ellipsis if the text is wider than ``max_width``
    pixels."""
    text = printable(text)
    low, high = 1, min(text_columns(text), int(5 * max_width / size) + 1)  # no letter is narrower than size / 5
    if text_columns(text) == high and text_width(text, size, bold=bold) <= max_width:
        return text
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(shorten(text, middle), size, bold=bold) <= max_width:
            low = middle
        else:
            high = middle - 1
    return shorten(text, low)


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Measure a line of text in pixels in Matplotlib's default font, which has no wide letters: these are counted as
    wide as the boxes that are drawn if no font has them."""
    text = printable(text)
    wide = sum(letter_columns(letter) == 2 for letter in text)
    text = "".join(letter for letter in text if letter_columns(letter) != 2)
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return float(ImageFont.truetype(str(path), size).getlength(text)) + 1.15 * size * wide
