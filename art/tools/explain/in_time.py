"""What is known of the T frames that a model was shown, at every frame between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64


class Place(NamedTuple):
    """A frame between two that were shown.

    Attributes:
        before: which of the T shown frames comes before it, or is it.
        after: which comes after it.
        share: how far it lies between them, 0..1.
        seen: whether it is one that the T frames stand for. Of a window within the clip those before and after are not.
    """

    before: int
    after: int
    share: float
    seen: bool


def place_of(frame: int, sampled: Int64[np.ndarray, " t"]) -> Place:
    """Where a frame lies among those that were shown, whose positions ascend and may repeat.

    The first and the last stand for half the usual distance on their other side.
    """
    last = len(sampled) - 1
    reach = (sampled[-1] - sampled[0]) / max(last, 1) / 2 + 1
    seen = bool(sampled[0] - reach <= frame <= sampled[-1] + reach)
    after = min(int(np.searchsorted(sampled, frame)), last)
    if sampled[after] <= frame or after == 0:
        return Place(after, after, 0.0, seen)
    before = after - 1
    return Place(before, after, float((frame - sampled[before]) / (sampled[after] - sampled[before])), seen)


def at(values: Float[np.ndarray, "t *rest"], place: Place) -> Float[np.ndarray, "*rest"]:
    """Values of the T shown frames at a place between them: on the straight line."""
    return np.asarray(values[place.before] * (1 - place.share) + values[place.after] * place.share)
