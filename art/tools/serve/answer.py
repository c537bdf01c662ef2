"""A clip looked at by a model: what the page shows of it, and the files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from art.data.decoding.video import VideoError
from art.eval.report.style import LINE_COLOURS, tracklet_colour
from art.model.pretrained import VideoClassifier
from art.tools.explain import Explanation, explain
from art.tools.explain.film import layout_of
from art.tools.explain.scene import shown_classes, views_of
from art.tools.explain.write import write_explanation
from art.tools.serve.checking import check_clip, unreadable
from art.tools.serve.limits import Asking

_TITLES = {"tracklets": "Tracklets", "grad_cam": "Grad-CAM", "rollout": "Attention roll-out"}

_MISSING = {"grad_cam": "Grad-CAM", "rollout": "attention roll-out"}


def describe(model: VideoClassifier, device: object) -> dict[str, Any]:
    """What the page says of the model."""
    return {
        "kind": model.kind,
        "backbone": model.options.backbone,
        "frames": model.num_frames,
        "tracklets": model.options.num_tracklets if model.kind == "art" else 0,
        "classes": list(model.class_names),
        "device": str(device),
    }


def answer_clip(
    model: VideoClassifier, clip: Path, out: Path, asking: Asking, step: Callable[[str], None]
) -> dict[str, Any]:
    """Look at a clip and write the files of ``art explain`` into ``out``, where there is anything to draw.

    Args:
        clip: the file, as errors and pictures are to call it.
        step: told what is done next.

    Returns:
        What the page shows, as JSON has it: see :func:`as_shown`.

    Raises:
        Refused: the clip is not within the limits or cannot be read.
    """
    begun = time.perf_counter()
    step("Reading the clip")
    check_clip(clip, asking.limits)
    try:
        step("Asking the model")
        explanation = explain(model, clip, moments=asking.moments)
        if _can_be_drawn(explanation):
            step("Drawing the film")
            out.mkdir()
            write_explanation(explanation, out, top_k=asking.top_k)
    except VideoError as error:
        raise unreadable(clip.name, error.reason) from error
    return {**as_shown(explanation, asking.top_k), "took": round(time.perf_counter() - begun, 2)}


def as_shown(explanation: Explanation, top_k: int) -> dict[str, Any]:
    """An explanation as the page shows it: times in seconds, shares 0 to 1, places in the film in pixels."""
    e = explanation
    return {
        "clip": e.clip.name,
        "frames": len(e.times),
        "seconds": round(float(e.times[-1]), 3),
        "classes": [{"name": e.class_names[c], "share": float(e.probabilities[c])} for c in e.best(top_k)],
        "film": _film(e) if _can_be_drawn(e) else None,
        "tracklets": _tracklets(e),
        "over_time": _over_time(e, top_k),
        "notes": _notes(e),
    }


def _can_be_drawn(e: Explanation) -> bool:
    return any(maps is not None for maps in (e.maps, e.grad_cam, e.rollout))


def _film(e: Explanation) -> dict[str, Any]:
    layout, views = layout_of(e), views_of(e)
    panels = [
        {"title": _TITLES[name], "left": p.left, "top": p.top, "width": p.width, "height": p.height}
        for name, p in zip(views, layout.panels, strict=True)
    ]
    return {"width": layout.width, "height": layout.height, "panels": panels}


def _tracklets(e: Explanation) -> list[dict[str, Any]]:
    if e.saliency is None:
        return []
    times = np.round(e.times[e.sampled], 4).tolist()
    return [
        {
            "colour": tracklet_colour(k),
            "class": query.name,
            "prompt": query.prompt,
            "saliency": [{"at": at, "share": float(share)} for at, share in zip(times, e.saliency[:, k], strict=True)],
        }
        for k, query in enumerate(e.queries)
    ]


def _over_time(e: Explanation, top_k: int) -> dict[str, Any] | None:
    if not len(e.beginnings):
        return None
    lines = [
        {
            "name": e.class_names[c],
            "colour": LINE_COLOURS[i % len(LINE_COLOURS)],
            "shares": [float(share) for share in e.probabilities_over_time[:, c]],
        }
        for i, c in enumerate(shown_classes(e, top_k))
    ]
    return {"seconds": np.round(e.beginnings, 4).tolist(), "lines": lines}


def _notes(e: Explanation) -> list[str]:
    notes = []
    if e.kind == "backbone":
        notes.append("This model is a backbone alone (kind=backbone): it has no tracklets to draw.")
    notes += [f"No {_MISSING[name]} of this backbone: {reason}." for name, reason in e.missing.items()]
    return notes
