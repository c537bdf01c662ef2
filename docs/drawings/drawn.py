"""All drawings by name: the folder in docs/pictures/ that a file goes to, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docs.drawings import idea, losses
from docs.drawings.card import Card

FOLDER = Path(__file__).parents[1] / "pictures"

DRAWINGS: dict[str, tuple[str, Callable[[], Card]]] = {
    "pipeline": ("idea", idea.pipeline),
    "asking": ("idea", idea.asking),
    "tracklets": ("idea", idea.tracklets),
    "saliency": ("idea", idea.saliency),
    "losses": ("idea", losses.levels),
    "margin": ("idea", losses.margin),
    "bank": ("idea", losses.bank),
}
