"""The worker process: loads the model, checks each clip against the limits, and explains the prediction for it."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from av import time_base as AV_TIME_BASE

from art.data.decoding.frames import Unreadable
from art.data.decoding.source import VideoSource, open_source
from art.data.decoding.video import VideoError
from art.data.parallel import exit_with_parent
from art.data.prepare.reencode import check_encoder
from art.eval.report.style import LINE_COLORS, tracklet_color
from art.model import find_checkpoint
from art.model.files import NonFiniteError
from art.model.loading import load_model
from art.model.pretrained import VideoClassifier
from art.terminal import printable
from art.tools.explain.drawing import MAP_NAMES, available_views, chart_classes
from art.tools.explain.explanation import Explanation, explain
from art.tools.explain.figures import write_explanation
from art.tools.explain.film import layout_for
from art.tools.serve.jobs import (
    INTERNAL_ERROR,
    SIGNATURE_BYTES,
    Limits,
    Refused,
    RequestOptions,
    check_signature,
    container_format,
)
from art.train.runtime import resolve_device

_PANEL_TITLES = {
    "tracklets": "Tracklets",
    "evidence": "Evidence",
    "grad_cam": "Grad-CAM",
    "rollout": "Attention rollout",
}


def run(connection: Connection, checkpoint: Path, device: str, options: RequestOptions) -> None:
    """Load the model, then process clips until the connection is closed.

    Sends ("ready", description of the model) or ("error", exception). For each received (clip, out) it sends any number
    of ("step", name), then ("result", see :func:`predict_clip`) or ("refused", message).
    """
    exit_with_parent()
    try:
        check_encoder()
        torch_device = resolve_device(device)
        model = load_model(find_checkpoint(checkpoint)).to(torch_device)
    except (ValueError, OSError, ImportError) as error:
        error.__cause__ = error.__context__ = None  # they may not be picklable
        connection.send(("error", error))
        return
    connection.send(("ready", describe(model, torch_device)))
    with suppress(EOFError):
        while True:
            clip, out = connection.recv()
            os.chdir(clip.parent)  # a relative path keeps the temporary directory out of messages and files
            try:
                result = predict_clip(
                    model, Path(clip.name), out, options, lambda step: connection.send(("step", step))
                )
                connection.send(("result", result))
            except Refused as refused:
                connection.send(("refused", str(refused)))
            except Exception:
                traceback.print_exc(file=sys.stderr)
                connection.send(("refused", INTERNAL_ERROR))
            finally:
                os.chdir("/")


def describe(model: VideoClassifier, device: object) -> dict[str, Any]:
    """Return the page's description of the model."""
    return {
        "kind": model.kind,
        "backbone": model.options.backbone,
        "frames": model.num_frames,
        "tracklets": model.num_maps,
        "head": model.options.head if model.kind == "probe" else None,
        "classes": [*map(printable, model.class_names)],
        "device": str(device),
    }


def predict_clip(
    model: VideoClassifier, clip: Path, out: Path, options: RequestOptions, report: Callable[[str], None]
) -> dict[str, Any]:
    """Check and explain a clip, and write the files of ``art explain`` to ``out`` unless nothing can be drawn.

    Args:
        clip: The file, under the name that messages and figures show.
        report: Called with the name of each step.

    Returns:
        :func:`result_for_page` and ``"processing_seconds"``.

    Raises:
        Refused: The clip exceeds a limit or cannot be read.
    """
    start = time.perf_counter()
    report("Reading the clip")
    check_clip(clip, options.limits)
    try:
        report("Running the model")
        explanation = explain(model, clip, timeline_points=options.timeline_points)
        if _is_drawable(explanation):
            report("Rendering the film")
            out.mkdir()
            write_explanation(explanation, out, top_k=options.top_k)
    except VideoError as error:
        raise _unreadable(clip.name, error.reason) from error
    except NonFiniteError as error:
        raise Refused("The model's probabilities are not finite. Use another checkpoint.") from error
    result = result_for_page(explanation, options.top_k)
    return {**result, "processing_seconds": round(time.perf_counter() - start, 2)}


def result_for_page(explanation: Explanation, top_k: int) -> dict[str, Any]:
    """Convert an explanation to JSON for the page: times in seconds, positions in the film in pixels, and names without
    invisible characters."""
    e, names = explanation, [*map(printable, explanation.class_names)]
    return {
        "clip": e.clip.name,
        "frames": len(e.times),
        "seconds": round(float(e.times[-1]), 3),
        "classes": [{"name": names[c], "probability": float(e.probabilities[c])} for c in e.best(top_k)],
        "film": _film(e) if _is_drawable(e) else None,
        "tracklets": _tracklets(e),
        "timeline": _timeline(e, top_k),
        "notes": _notes(e),
    }


def _is_drawable(e: Explanation) -> bool:
    return e.maps is not None or any(getattr(e, name) is not None for name in MAP_NAMES)


def _film(e: Explanation) -> dict[str, Any]:
    layout = layout_for(e)
    panels = [
        {"title": _PANEL_TITLES[view], **panel._asdict()}
        for view, panel in zip(available_views(e), layout.panels, strict=True)
    ]
    return {"width": layout.width, "height": layout.height, "panels": panels}


def _tracklets(e: Explanation) -> list[dict[str, Any]]:
    if e.saliency is None:
        return []
    seconds = np.round(e.times[e.sampled], 4).tolist()
    return [
        {
            "color": tracklet_color(k),
            "title": printable(query.title(k)),
            "class": None if query.label is None else printable(query.name),
            "prompt": None if query.prompt is None else printable(query.prompt),
            "saliency": [
                {"seconds": time, "weight": float(weight)}
                for time, weight in zip(seconds, e.saliency[:, k], strict=True)
            ],
        }
        for k, query in enumerate(e.queries)
    ]


def _timeline(e: Explanation, top_k: int) -> dict[str, Any] | None:
    if not len(e.timeline):
        return None
    lines = [
        {
            "name": printable(e.class_names[c]),
            "color": LINE_COLORS[i % len(LINE_COLORS)],
            "probabilities": e.probabilities_over_time[:, c].astype(float).tolist(),
        }
        for i, c in enumerate(chart_classes(e, top_k))
    ]
    return {"seconds": np.round(e.timeline, 4).tolist(), "lines": lines}


def _notes(e: Explanation) -> list[str]:
    notes = ["This model is a backbone without tracklets (kind=backbone)."] if e.kind == "backbone" else []
    return notes + [f"No {MAP_NAMES[name]} for this backbone: {reason}." for name, reason in e.missing.items()]


def check_clip(path: Path, limits: Limits) -> None:
    """Raise Refused unless a clip can be opened and is within the limits.

    No frame is decoded, and no packets are read beyond the limits.

    Args:
        path: The clip, under the name that messages show.
    """
    with path.open("rb") as file:
        signature = file.read(SIGNATURE_BYTES)
    check_signature(signature, path.name)
    try:
        with open_source(path) as source:
            # The signature and FFmpeg must agree on the format.
            if container_format(signature) not in source.container.format.name.split(","):
                raise Unreadable(
                    f"has the signature of another format than its content ({source.container.format.name})"
                )
            _check_frame_size(source, path.name, limits)
            _check_length(source, path.name, limits)
    except (Unreadable, OSError) as error:
        raise _unreadable(path.name, str(error)) from error


def _unreadable(name: str, reason: str) -> Refused:
    return Refused(f"“{name}” {reason}. The file may be damaged or incomplete: check that it plays, or save it again.")


def _check_frame_size(source: VideoSource, name: str, limits: Limits) -> None:
    width, height = source.stream.width, source.stream.height
    if width * height > limits.megapixels * 1e6:
        raise Refused(
            f"The frames of “{name}” are {width}×{height} ({width * height / 1e6:.3g} megapixels), larger than the "
            f"limit of {limits.megapixels:g} megapixels. Save the clip at a lower resolution."
        )


def _check_length(source: VideoSource, name: str, limits: Limits) -> None:
    count = 0
    for packet in source.packets_from(source.origin):
        if packet.size == 0:
            continue
        time = count if source.no_timestamps else packet.pts
        count += 1
        if time is not None and source.seconds(time) > limits.seconds:
            duration = (source.container.duration or 0) / AV_TIME_BASE
            actual = f" ({duration:.1f} s)" if duration > limits.seconds else ""
            raise Refused(f"“{name}” is longer than the limit of {limits.seconds:g} s{actual}. Trim the clip.")
        if count > limits.frames:
            raise Refused(
                f"“{name}” has more frames than the limit of {limits.frames}. Trim the clip, or save it at a lower "
                "frame rate."
            )
