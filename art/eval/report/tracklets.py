"""Response maps and tracklets over frames: tinted frames, the path of each tracklet, and the tracklet sheet.

A response map has one weight per region of a frame. Cell (i, j) of an h × w grid covers x from j/w to (j+1)/w and y
from i/h to (i+1)/h; positions are (x, y) as fractions of the image size, with (0, 0) at the top left. Frame strips have
no gaps, so that the report can cut them into frames.
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
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from art.eval.report.style import INK, blank_axes, figure_text, new_figure, quiet_axes, tracklet_color

_SCALES = ("clip", "frame")
_OUTLINE = "#101318"


def map_peak(maps: Float[Tensor, "*lead h w"], *, refine: bool = False) -> Float[Tensor, "*lead 2"]:
    """Return the position of the maximum of each map, (x, y) as fractions of the image size.

    The position is the center of the cell with the largest weight (the first in row-major order if tied), as used by
    :mod:`art.eval.report.localization`.

    Args:
        maps: [..., h, w].
        refine: return the centroid of the weights of that cell and its neighbors (up to eight). This makes paths
            smoother, but the positions are not outputs of the model.

    Raises:
        ValueError: If the maps have no cells, a value is not finite, or (with ``refine``) a weight is negative.

    Examples:
        >>> import torch
        >>> from art.eval.report import map_peak
        >>> maps = torch.zeros(4, 4)
        >>> maps[1, 2] = 1.0
        >>> map_peak(maps).tolist()  # x, y
        [0.625, 0.375]
    """
    if maps.dim() < 2 or maps.shape[-1] == 0 or maps.shape[-2] == 0:
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected [..., h, w] with at least one cell")
    if not torch.isfinite(maps).all():
        raise ValueError("maps has values that are not finite; a response map is a softmax over regions")
    height, width = maps.shape[-2:]
    best = maps.flatten(-2).argmax(-1)
    row, column = best // width, best % width
    peak = torch.stack([(column + 0.5) / width, (row + 0.5) / height], dim=-1).to(maps.dtype)
    if not refine:
        return peak
    if (maps < 0).any():
        raise ValueError("maps has negative weights, which have no centroid; use refine=False")
    rows = torch.arange(height, device=maps.device)
    columns = torch.arange(width, device=maps.device)
    near_row = (rows - row[..., None]).abs() <= 1
    near_column = (columns - column[..., None]).abs() <= 1
    weight = maps * (near_row[..., :, None] & near_column[..., None, :])
    total = weight.sum((-2, -1))
    divisor = torch.where(total > 0, total, torch.ones_like(total))
    x = (weight.sum(-2) * (columns + 0.5)).sum(-1) / divisor / width
    y = (weight.sum(-1) * (rows + 0.5)).sum(-1) / divisor / height
    return torch.where((total > 0)[..., None], torch.stack([x, y], dim=-1), peak)  # a map of zeros has no centroid


def upsample(maps: Float[Tensor, "*lead h w"], size: tuple[int, int]) -> Float[Tensor, "*lead height width"]:
    """Resize maps to ``size`` = (height, width) pixels, bilinearly between the centers of the cells."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return resized.reshape(*maps.shape[:-2], *size)


def prominence(maps: Float[Tensor, "b t k h w"], scale: str = "clip") -> Float[Tensor, "b t k h w"]:
    """Scale the excess of each weight over the mean weight of its frame to 0..1.

    0 is the mean and everything below. 1 is the largest excess of the tracklet in the entire ``"clip"`` or in each
    ``"frame"``, but at least one mean weight. A nearly uniform map therefore stays close to 0 everywhere, whereas
    stretching each map to 0..1 would make its noise look like attention.
    """
    if scale not in _SCALES:
        raise ValueError(f"scale is {scale!r}, expected one of {', '.join(map(repr, _SCALES))}")
    dims = (1, 3, 4) if scale == "clip" else (3, 4)
    mean = maps.mean((3, 4), keepdim=True)
    excess = (maps - mean).clamp_min(0)
    maximum = torch.maximum(excess.amax(dims, keepdim=True), mean.amax(dims, keepdim=True))
    return excess / maximum.clamp_min(torch.finfo(maps.dtype).tiny)


def overlay(
    frames: UInt8[Tensor, "b t 3 height width"],
    maps: Float[Tensor, "b t k h w"],
    *,
    scale: str = "clip",
    strength: float = 0.75,
    dim: float = 0.35,
) -> UInt8[Tensor, "b t k 3 height width"]:
    """Tint a copy of each frame for each tracklet, in the tracklet's color, where its response is above average.

    Args:
        frames: [B, T, 3, H, W] uint8 RGB.
        maps: [B, T, K, h, w] response maps.
        scale: normalization of the tint, see :func:`prominence`.
        strength: opacity of the tint at the strongest response, 0 to 1.
        dim: how much regions without response are darkened and desaturated, 0 to 1.

    Raises:
        ValueError: If frames and maps differ in B or T, the frames are not uint8 RGB, or ``strength`` or ``dim`` is
            outside 0..1.

    Examples:
        >>> import torch
        >>> from art.eval.report import overlay
        >>> frames = torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)
        >>> maps = torch.rand(1, 2, 3, 14, 14).flatten(-2).softmax(-1).unflatten(-1, (14, 14))
        >>> overlay(frames, maps).shape  # each frame once for each of three tracklets
        torch.Size([1, 2, 3, 3, 64, 64])
    """
    if frames.dim() != 5 or frames.shape[2] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames is {frames.dtype} {tuple(frames.shape)}, expected uint8 [B, T, 3, H, W]")
    if maps.dim() != 5 or maps.shape[:2] != frames.shape[:2]:
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected [B, T, K, h, w] with B, T = {frames.shape[:2]}")
    for name, value in (("strength", strength), ("dim", dim)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected a value from 0 to 1")
    height, width = frames.shape[-2:]
    weight = upsample(prominence(maps.float(), scale), (height, width)).clamp(0, 1)[:, :, :, None]  # [B,T,K,1,H,W]
    tint = torch.tensor([to_rgb(tracklet_color(k)) for k in range(maps.shape[2])], device=frames.device)
    image = frames[:, :, None].float() / 255
    gray = image.mean(3, keepdim=True)
    faded = image * (1 - dim) + dim * 0.5 * gray
    base = faded * (1 - weight) + image * weight
    opacity = strength * weight
    mixed = base * (1 - opacity) + tint[:, :, None, None] * opacity
    return (mixed * 255).round().to(torch.uint8)


def shown_frames(num_frames: int, count: int) -> Int[np.ndarray, " n"]:
    """Return the indices of ``count`` evenly spaced frames (the centers of equal segments), or of all if there are
    fewer."""
    if num_frames < 1 or count < 1:
        raise ValueError(f"num_frames and count are {num_frames} and {count}, expected at least 1 of each")
    count = min(num_frames, count)
    return ((np.arange(count) + 0.5) * num_frames / count).astype(np.int64)


def tracklet_paths(maps: Float[np.ndarray, "t k h w"]) -> Float[np.ndarray, "t k 2"]:
    """Return :func:`map_peak` of each response map."""
    return map_peak(torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))).numpy()


def tinted_frames(
    frames: UInt8[np.ndarray, "t height width 3"], maps: Float[np.ndarray, "t k h w"], *, scale: str = "clip"
) -> UInt8[np.ndarray, "k t height width 3"]:
    """Apply :func:`overlay` to a single clip with channels last."""
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None]
    weights = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None]
    return overlay(video, weights, scale=scale)[0].permute(1, 0, 3, 4, 2).numpy()


def frame_strip(
    frames: UInt8[np.ndarray, "t height width 3"],
    shown: Int[np.ndarray, " n"],
    *,
    path: Float[np.ndarray, "t 2"] | None = None,
    color: str = INK,
    limb: Float[np.ndarray, "t 2"] | None = None,
    pixels: int = 160,
) -> Figure:
    """Draw the ``shown`` frames in a row, each ``pixels`` wide, see :func:`draw_strip`."""
    height, width = frames.shape[1:3]
    strip_height = round(pixels * height / width)
    figure = new_figure(len(shown) * pixels / 100, strip_height / 100, dpi=100, layout=None)
    draw_strip(figure.add_axes((0, 0, 1, 1)), frames, shown, path, color, limb)
    return figure


def path_figure(
    frame: UInt8[np.ndarray, "height width 3"], paths: Float[np.ndarray, "t k 2"], *, pixels: int = 320
) -> Figure:
    """Draw the path of every tracklet over one frame, from a dot at the first position to a ring at the last."""
    height, width = frame.shape[:2]
    figure = new_figure(pixels / 100, pixels * height / width / 100, dpi=100, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    blank_axes(axes)
    axes.imshow((frame * 0.8).astype(np.uint8), extent=(0, 1, 1, 0), aspect="auto")
    axes.set(xlim=(0, 1), ylim=(1, 0))
    for k in range(paths.shape[1]):
        # Paths connect cell centers and often overlap: shift each a little.
        shift = 0.012 * (k - (paths.shape[1] - 1) / 2)
        x, y = paths[0, k] + shift
        axes.scatter(x, y, s=16, c=tracklet_color(k), edgecolors=_OUTLINE, linewidths=1, zorder=3)
        _draw_path(axes, paths[:, k] + shift, tracklet_color(k), fade=False)
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
    """Draw a clip on one sheet: for each tracklet the text that queried it, its responses, path, and saliency.

    Args:
        frames: [T, H, W, 3] uint8.
        maps: [T, K, h, w] response maps.
        saliency: [T, K].
        texts: K names: the class whose text queried each tracklet.
        title: title of the sheet.
        limb: [T, 2] position of the limb that distinguishes the class from similar ones, drawn as a white diamond.
        count: number of frames to show.

    Raises:
        ValueError: If the shapes of frames, maps, saliency, and texts do not match.

    Examples:
        >>> import numpy as np
        >>> from art.eval.report import tracklet_sheet
        >>> frames, maps = np.zeros((4, 64, 64, 3), dtype=np.uint8), np.full((4, 2, 14, 14), 1 / 196)
        >>> tracklet_sheet(frames, maps, np.full((4, 2), 0.25), ["walk", "run"]).savefig("tracklets.png")
    """
    steps, tracklets = maps.shape[:2]
    if len(frames) != steps or saliency.shape != (steps, tracklets) or len(texts) != tracklets:
        raise ValueError(
            f"frames {frames.shape}, maps {maps.shape}, saliency {saliency.shape} and {len(texts)} texts do not match: "
            "expected [T, H, W, 3], [T, K, h, w], [T, K] and K texts"
        )
    shown = shown_frames(steps, count)
    paths, tinted = tracklet_paths(maps), tinted_frames(frames, maps)
    width = 10.0
    strip_height = width / len(shown) * frames.shape[1] / frames.shape[2]
    figure = new_figure(width, tracklets * (strip_height + 0.85) + 0.4)
    figure.patch.set(facecolor="white", alpha=1.0)
    figure.suptitle(figure_text(title, 100), color=INK, fontsize=12, x=0.01, ha="left")
    rows = figure.subplots(2 * tracklets, 1, squeeze=False, height_ratios=[strip_height, 0.3] * tracklets)[:, 0]
    largest = max(float(saliency.max()), 1e-9)
    for k in range(tracklets):
        strip, bars = rows[2 * k], rows[2 * k + 1]
        draw_strip(strip, tinted[k], shown, paths[:, k], tracklet_color(k), limb)
        strip.set_title(
            f"tracklet {k + 1}, queried by “{figure_text(texts[k], 90)}”", loc="left", fontsize=10, color=INK
        )
        quiet_axes(bars, grid=False)
        bars.bar(np.arange(steps), saliency[:, k], width=0.82, color=tracklet_color(k))
        bars.set(xlim=(-0.5, steps - 0.5), ylim=(0, 1.05 * largest))
        bars.set_yticks([])
        bars.set_xticks(shown.tolist())
        bars.tick_params(labelsize=7, pad=2)
        bars.set_ylabel("saliency", rotation=0, ha="right", va="center")
    return figure


def draw_strip(
    axes: Axes,
    frames: UInt8[np.ndarray, "t height width 3"],
    shown: Int[np.ndarray, " n"],
    path: Float[np.ndarray, "t 2"] | None,
    color: str,
    limb: Float[np.ndarray, "t 2"] | None = None,
) -> None:
    """Draw frames in a row: column i of the axes (x from i to i + 1, y from 0 at the top to 1) is frame ``shown[i]``.

    Args:
        axes: axes to draw into.
        frames: [T, H, W, 3] uint8.
        shown: indices of the frames to draw.
        path: [T, 2] position of the tracklet, drawn up to each frame: a ring at the current position and a line that
            fades with age.
        color: color of the path.
        limb: [T, 2] position of the limb that distinguishes the class from similar ones, drawn as a white diamond.
    """
    height, width = frames.shape[1:3]
    blank_axes(axes)
    axes.imshow(np.concatenate(list(frames[shown]), axis=1), extent=(0, len(shown), 1, 0), aspect=height / width)
    axes.set(xlim=(0, len(shown)), ylim=(1, 0))
    for column, frame in enumerate(shown):
        corner = np.array([column, 0.0])
        if path is not None:
            _draw_path(axes, path[: frame + 1] + corner, color, fade=True)
        if limb is not None and bool(((limb[frame] >= 0) & (limb[frame] <= 1)).all()):
            x, y = limb[frame] + corner
            for line_color, line_width in ((_OUTLINE, 3.0), ("white", 1.4)):
                axes.scatter(x, y, s=42, marker="D", c="none", edgecolors=line_color, linewidths=line_width, zorder=5)
        number = axes.text(column + 0.04, 0.96, str(frame), color="white", fontsize=9, va="bottom")
        number.set_path_effects([patheffects.withStroke(linewidth=2, foreground=_OUTLINE)])


def _draw_path(axes: Axes, path: Float[np.ndarray, "t 2"], color: str, *, fade: bool) -> None:
    """Draw an outlined line along ``path`` with a ring at its end; with ``fade``, segments vanish after six frames."""
    segments = list(pairwise(path))
    if segments:  # there are none in the first frame
        age = np.arange(len(segments))[::-1]
        opacity = np.clip(1 - age / 6, 0, 1) if fade else np.ones(len(segments))
        for line_color, line_width in ((_OUTLINE, 3.6), (color, 1.8)):
            lines = LineCollection(segments, colors=line_color, linewidths=line_width, alpha=opacity)
            lines.set_capstyle("round")
            axes.add_collection(lines, autolim=False)
    x, y = path[-1]
    for line_color, line_width in ((_OUTLINE, 2.6), ("white", 1.3)):
        axes.scatter(x, y, s=58, c=color, edgecolors=line_color, linewidths=line_width, zorder=4)
