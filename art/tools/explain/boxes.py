"""Boxes around what a tracklet responds to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def response_boxes(maps: Float[np.ndarray, "t k h w"], level: float = 0.5) -> Float[np.ndarray, "t k 4"]:
    """Around the peak of each map: the cells next to each other, sideways and up and down, whose weight lies at least
    ``level`` of the way from the map's average up to its peak.

    Returns:
        left, top, right and bottom, shares of the picture. A map that is the same everywhere gives all of it.

    Raises:
        ValueError: ``level`` is not above 0 and at most 1.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is {level}, expected a share above 0, at most 1")
    boxes = np.empty((*maps.shape[:2], 4))
    height, width = maps.shape[2:]
    for index in np.ndindex(*maps.shape[:2]):
        weights = maps[index]
        average = weights.mean()
        rows, columns = np.nonzero(_around_peak(weights, weights >= average + level * (weights.max() - average)))
        boxes[index] = (
            columns.min() / width,
            rows.min() / height,
            (columns.max() + 1) / width,
            (rows.max() + 1) / height,
        )
    return boxes


def _around_peak(weights: Float[np.ndarray, "h w"], high: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Those of the ``high`` cells that are connected with the peak; it is one of them, whatever rounding says."""
    reached = np.zeros_like(high)
    reached[np.unravel_index(weights.argmax(), weights.shape)] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= high | reached
        if (grown == reached).all():
            return reached
        reached = grown
