"""All drawings by name: the directory in docs/pictures/ and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docs.drawings import attention, idea, losses, tracklet_kernels
from docs.drawings.card import Card

PICTURES = Path(__file__).parents[1] / "pictures"

DRAWINGS: dict[str, tuple[str, Callable[[], Card]]] = {
    "pipeline": ("idea", idea.pipeline),
    "asking": ("idea", idea.asking),
    "tracklets": ("idea", idea.tracklets),
    "saliency": ("idea", idea.saliency),
    "losses": ("idea", losses.levels),
    "margin": ("idea", losses.margin),
    "bank": ("idea", losses.bank),
    "attention-forward": ("kernels", attention.forward),
    "attention-chunks": ("kernels", attention.chunks),
    "attention-splits": ("kernels", attention.splits),
    "attention-backward": ("kernels", attention.backward),
    "attention-parts": ("kernels", attention.parts),
    "pooling": ("kernels", tracklet_kernels.pooling),
    "contrast": ("kernels", tracklet_kernels.contrast),
    "nce": ("kernels", tracklet_kernels.nce),
    "assignment-lanes": ("kernels", tracklet_kernels.lanes),
    "linking-frames": ("kernels", tracklet_kernels.linking),
}
