"""Tracklets through time: the path of each query's strongest response, and how much each frame weighed.

Pictures come as one strip of frames side by side without gaps, so that a page can cut it into its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from art.eval.report.response_maps import map_peak, overlay
from art.eval.report.style import INK, blank_axes, new_figure, quiet_axes, tracklet_colour

_CASING = "#101318"


def shown_frames(num_frames: int, count: int) -> Int[np.ndarray, " n"]:
    """Indices of ``count`` frames spread evenly over a clip (the centre of each of ``count`` parts), at most all."""
    if num_frames < 1 or count < 1:
        raise ValueError(f"num_frames and count are {num_frames} and {count}, expected at least 1 of each")
    count = min(num_frames, count)
    return ((np.arange(count) + 0.5) * num_frames / count).astype(np.int64)


def tracklet_paths(maps: Float[np.ndarray, "t k h w"]) -> Float[np.ndarray, "t k 2"]:
    """The peak (x, y) of each response map, in shares of the image: see :func:`~art.eval.report.map_peak`."""
    return map_peak(torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))).numpy()


def tinted_frames(
    frames: UInt8[np.ndarray, "t height width 3"], maps: Float[np.ndarray, "t k h w"], *, scale: str = "clip"
) -> UInt8[np.ndarray, "k t height width 3"]:
    """The clip once for each tracklet, tinted by its response: :func:`~art.eval.report.overlay`, channels last."""
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None]
    weights = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None]
    return overlay(video, weights, scale=scale)[0].permute(1, 0, 3, 4, 2).numpy()


def frame_strip(
    frames: UInt8[np.ndarray, "t height width 3"],
    shown: Int[np.ndarray, " n"],
    *,
    path: Float[np.ndarray, "t 2"] | None = None,
    colour: str = INK,
    limb: Float[np.ndarray, "t 2"] | None = None,
    pixels: int = 160,
) -> Figure:
    """The ``shown`` frames side by side, each ``pixels`` wide, with the path up to that frame drawn over it.

    Args:
        path: the tracklet's position in every frame of the clip, in shares of the image. The stretch behind a frame
            fades with age; a filled ring marks where the tracklet is.
        limb: position of the limb that tells the class from its neighbours: a white diamond.
    """
    height, width = frames.shape[1:3]
    high = round(pixels * height / width)
    figure = new_figure(len(shown) * pixels / 100, high / 100, dpi=100, layout=None)
    draw_strip(figure.add_axes((0, 0, 1, 1)), frames, shown, path, colour, limb)
    return figure


def path_picture(
    frame: UInt8[np.ndarray, "height width 3"], paths: Float[np.ndarray, "t k 2"], *, pixels: int = 320
) -> Figure:
    """One frame with the whole path of every tracklet over it, from a dot at the first frame to a ring at the last."""
    height, width = frame.shape[:2]
    figure = new_figure(pixels / 100, pixels * height / width / 100, dpi=100, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    blank_axes(axes)
    axes.imshow((frame * 0.8).astype(np.uint8), extent=(0, 1, 1, 0), aspect="auto")
    axes.set(xlim=(0, 1), ylim=(1, 0))
    for k in range(paths.shape[1]):
        # Paths run between cell centres and often over each other: set each one a little apart.
        apart = 0.012 * (k - (paths.shape[1] - 1) / 2)
        x, y = paths[0, k] + apart
        axes.scatter(x, y, s=16, c=tracklet_colour(k), edgecolors=_CASING, linewidths=1, zorder=3)
        _draw_path(axes, paths[:, k] + apart, tracklet_colour(k), fade=False)
    return figure


def tracklet_sheet(
    frames: UInt8[np.ndarray, "t height width 3"],
    maps: Float[np.ndarray, "t k h w"],
    saliency: Float[np.ndarray, "t k"],
    texts: Sequence[str],
    *,
    title: str = "",
    limb: Float[np.ndarray, "t 2"] | None = None,
    count: int = 8,
) -> Figure:
    """A whole clip on one sheet: for each tracklet the text that queried it, its responses and path, its saliency.

    Args:
        texts: K names: the class whose text queried each tracklet.
        limb: position of the limb that tells the class from its neighbours: a white diamond.
        count: frames shown.

    Raises:
        ValueError: the shapes of frames, maps, saliency and texts do not agree.

    Examples:
        >>> import numpy as np
        >>> from art.eval.report import tracklet_sheet
        >>> frames, maps = np.zeros((4, 64, 64, 3), dtype=np.uint8), np.full((4, 2, 14, 14), 1 / 196)
        >>> tracklet_sheet(frames, maps, np.full((4, 2), 0.25), ["walk", "run"]).savefig("tracklets.png")
    """
    steps, tracklets = maps.shape[:2]
    if len(frames) != steps or saliency.shape != (steps, tracklets) or len(texts) != tracklets:
        raise ValueError(
            f"frames {frames.shape}, maps {maps.shape}, saliency {saliency.shape} and {len(texts)} texts do not agree: "
            "expected [T, H, W, 3], [T, K, h, w], [T, K] and K texts"
        )
    shown = shown_frames(steps, count)
    paths, tinted = tracklet_paths(maps), tinted_frames(frames, maps)
    width = 10.0
    high = width / len(shown) * frames.shape[1] / frames.shape[2]
    figure = new_figure(width, tracklets * (high + 0.85) + 0.4)
    figure.patch.set(facecolor="white", alpha=1.0)
    figure.suptitle(title, color=INK, fontsize=12, x=0.01, ha="left")
    rows = figure.subplots(2 * tracklets, 1, squeeze=False, height_ratios=[high, 0.3] * tracklets)[:, 0]
    for k in range(tracklets):
        strip, bars = rows[2 * k], rows[2 * k + 1]
        draw_strip(strip, tinted[k], shown, paths[:, k], tracklet_colour(k), limb)
        strip.set_title(f"tracklet {k + 1}, queried by “{texts[k]}”", loc="left", fontsize=10, color=INK)
        _draw_saliency(bars, saliency, k, shown)
        bars.set_ylabel("saliency", rotation=0, ha="right", va="center")
    return figure


def draw_strip(
    axes: Axes,
    frames: UInt8[np.ndarray, "t height width 3"],
    shown: Int[np.ndarray, " n"],
    path: Float[np.ndarray, "t 2"] | None,
    colour: str,
    limb: Float[np.ndarray, "t 2"] | None = None,
) -> None:
    """Frames side by side, see :func:`frame_strip`.

    Column i of the axes (x from i to i + 1, y from 0 at the top to 1) is frame ``shown[i]``.
    """
    height, width = frames.shape[1:3]
    blank_axes(axes)
    axes.imshow(np.concatenate(list(frames[shown]), axis=1), extent=(0, len(shown), 1, 0), aspect=height / width)
    axes.set(xlim=(0, len(shown)), ylim=(1, 0))
    for column, frame in enumerate(shown):
        corner = np.array([column, 0.0])
        if path is not None:
            _draw_path(axes, path[: frame + 1] + corner, colour, fade=True)
        if limb is not None and bool(((limb[frame] >= 0) & (limb[frame] <= 1)).all()):
            x, y = limb[frame] + corner
            for line_colour, line_width in ((_CASING, 3.0), ("white", 1.4)):
                axes.scatter(x, y, s=42, marker="D", c="none", edgecolors=line_colour, linewidths=line_width, zorder=5)
        number = axes.text(column + 0.04, 0.96, str(frame), color="white", fontsize=9, va="bottom")
        number.set_path_effects([patheffects.withStroke(linewidth=2, foreground=_CASING)])


def _draw_path(axes: Axes, path: Float[np.ndarray, "t 2"], colour: str, *, fade: bool) -> None:
    """A cased line along ``path`` with a ring at its end; with ``fade`` a stretch vanishes in six frames."""
    stretches = list(pairwise(path))
    if stretches:  # there are none in the first frame
        age = np.arange(len(stretches))[::-1]
        opacity = np.clip(1 - age / 6, 0, 1) if fade else np.ones(len(stretches))
        for line_colour, line_width in ((_CASING, 3.6), (colour, 1.8)):
            lines = LineCollection(stretches, colors=line_colour, linewidths=line_width, alpha=opacity)
            lines.set_capstyle("round")
            axes.add_collection(lines, autolim=False)
    x, y = path[-1]
    for line_colour, line_width in ((_CASING, 2.6), ("white", 1.3)):
        axes.scatter(x, y, s=58, c=colour, edgecolors=line_colour, linewidths=line_width, zorder=4)


def _draw_saliency(axes: Axes, saliency: Float[np.ndarray, "t k"], k: int, shown: Int[np.ndarray, " n"]) -> None:
    frames = len(saliency)
    quiet_axes(axes, grid=False)
    axes.bar(np.arange(frames), saliency[:, k], width=0.82, color=tracklet_colour(k))
    axes.set(xlim=(-0.5, frames - 0.5), ylim=(0, 1.05 * max(float(saliency.max()), 1e-9)))
    axes.set_yticks([])
    axes.set_xticks(shown.tolist())
    axes.tick_params(labelsize=7, pad=2)
