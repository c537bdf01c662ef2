"""What lies over a frame: responses as tints, and paths, centres and boxes as lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

from art.eval.report.response_maps import upsample
from art.eval.report.style import tracklet_colour

_CASING = (16, 19, 24)
_FINER = 2  # lines are drawn so many times larger, and so get soft edges
_HEAT = colormaps["inferno"]

Picture = UInt8[np.ndarray, "height width 3"]
Square = tuple[int, int, int, int]


def crop_pixels(crop: tuple[float, float, float, float], width: int, height: int) -> Square:
    """Left, top, right and bottom of what the model is shown, in pixels of a panel."""
    left, top, right, bottom = crop
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def tinted(picture: Picture, square: Square, weights: Float[np.ndarray, "k h w"]) -> Picture:
    """Each tracklet's colour where its response is high; what lies around the square is dark.

    Args:
        square: what the model was shown.
        weights: of K tracklets, 0 none to 1 most, on the square.
    """
    result, inside = _darkened(picture, square)
    if inside.size == 0:
        return result
    weight = _enlarged(weights, inside.shape[:2])
    colours = np.array([to_rgb(tracklet_colour(k)) for k in range(len(weights))], dtype=np.float32) * 255
    most = weight.max(0)[..., None]
    colour = np.tensordot(weight, colours, ((0,), (0,))) / np.maximum(weight.sum(0), 1e-6)[..., None]
    base = _faded(inside) * (1 - most) + inside * most
    return _with_inside(result, square, base * (1 - 0.6 * most) + colour * (0.6 * most))


def heated(picture: Picture, square: Square, weights: Float[np.ndarray, "h w"]) -> Picture:
    """One map, 0 to 1, from dark over red to yellow."""
    result, inside = _darkened(picture, square)
    if inside.size == 0:
        return result
    weight = _enlarged(weights[None], inside.shape[:2])[0]
    colour = _HEAT((30 + 225 * weight).astype(np.uint8), bytes=True)[..., :3].astype(np.float32)
    opacity = (0.15 + 0.6 * weight)[..., None]
    return _with_inside(result, square, _faded(inside) * (1 - opacity) + colour * opacity)


def _darkened(picture: Picture, square: Square) -> tuple[Picture, Float[np.ndarray, "h w 3"]]:
    left, top, right, bottom = square
    return (picture * np.float32(0.35)).astype(np.uint8), picture[top:bottom, left:right].astype(np.float32)


def _faded(inside: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    return inside * np.float32(0.7) + inside.mean(2, keepdims=True) * np.float32(0.2)


def _with_inside(result: Picture, square: Square, inside: Float[np.ndarray, "h w 3"]) -> Picture:
    left, top, right, bottom = square
    result[top:bottom, left:right] = inside.clip(0, 255).astype(np.uint8)
    return result


def _enlarged(weights: Float[np.ndarray, "k h w"], size: tuple[int, ...]) -> Float[np.ndarray, "k height width"]:
    enlarged = upsample(torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32)), (size[0], size[1]))
    return enlarged.clamp(0, 1).numpy()


def with_tracklets(
    picture: Picture,
    square: Square,
    paths: Float[np.ndarray, "n k 2"],
    boxes: Float[np.ndarray, "k 4"],
    reach: Sequence[float],
) -> Picture:
    """Draw the path of each tracklet up to now, a ring where it is, and its box.

    Args:
        square: in which paths and boxes are shares.
        paths: the centres up to now, the last one being now.
        boxes: left, top, right, bottom.
        reach: opacity of each stretch of the path, one less than there are centres.
    """
    height, width = picture.shape[:2]
    layer = Image.new("RGBA", (width * _FINER, height * _FINER))
    draw = ImageDraw.Draw(layer)
    origin = np.array(square[:2], dtype=np.float64)
    extent = np.array(square[2:]) - origin
    unit = _FINER * max(1.0, height / 240)
    for k in range(paths.shape[1]):
        colour = tuple(round(255 * part) for part in to_rgb(tracklet_colour(k)))
        _outline(draw, (np.concatenate([origin, origin]) + boxes[k] * np.tile(extent, 2)) * _FINER, k, unit)
        points = [tuple(point) for point in ((origin + paths[:, k] * extent) * _FINER).tolist()]
        for line, wide in ((_CASING, 4.4), (colour, 2.4)):
            for start, end, opacity in zip(points, points[1:], reach, strict=False):
                if opacity > 0:
                    draw.line((start, end), fill=(*line, round(255 * opacity)), width=round(wide * unit))
        x, y = points[-1]
        for radius, fill in ((6.4, _CASING), (5.4, (255, 255, 255)), (3.8, colour)):
            r = radius * unit
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(*fill, 255))
    layer = layer.reduce(_FINER)
    result = Image.fromarray(picture)
    result.paste(layer, mask=layer.getchannel("A"))
    return np.asarray(result)


def _outline(draw: ImageDraw.ImageDraw, box: Float[np.ndarray, " 4"], k: int, unit: float) -> None:
    """A frame in the tracklet's colour, a little inside of its box, so that those of two tracklets on the same cells
    are both seen; at most a quarter of a small box is given up on each side."""
    size = box[2:] - box[:2]
    inset = np.minimum(1.5 * unit * (1 + k), size / 4)
    outer = np.concatenate([box[:2] + inset, box[2:] - inset])
    line = min(0.7 * unit, *(size / 8))
    inner = outer + np.array([line, line, -line, -line])
    colour = tuple(round(255 * part) for part in to_rgb(tracklet_colour(k)))
    for corners, ink, width in ((outer, (*_CASING, 200), 2.6), (inner, (*colour, 255), 1.3)):
        straight = min(corners[2:] - corners[:2]) - 4  # Pillow fails where corners leave a side hardly any length
        radius = min(3 * unit, max(0.0, straight / 2))
        draw.rounded_rectangle(tuple(corners.tolist()), radius, outline=ink, width=max(1, round(width * unit)))
