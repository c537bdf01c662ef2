"""One clip in the report: its answer, and for each tracklet its frames with response and path."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Int, UInt8

from art.eval.report.page import bar, percent
from art.eval.report.samples import SampleClip
from art.eval.report.style import figure_pixels, jpeg_uri, tracklet_colour
from art.eval.report.tracklets import frame_strip, path_picture, shown_frames, tinted_frames, tracklet_paths

_SHOWN = 8
_PIXELS = 176  # of a frame: twice its size on a wide page
_TOP = 3


def sample_card(sample: SampleClip, class_names: Sequence[str]) -> str:
    """The clip as a piece of HTML."""
    shown = shown_frames(len(sample.frames), _SHOWN)
    right = sample.predicted == sample.label
    if sample.maps is None or sample.saliency is None or sample.selected is None:
        picture, tracks = "", [_frames(sample, sample.frames, shown, None)]
    else:
        paths, tinted = tracklet_paths(sample.maps), tinted_frames(sample.frames, sample.maps)
        overview = figure_pixels(path_picture(sample.frames[len(sample.frames) // 2], paths, pixels=240))
        picture = f'<img src="{jpeg_uri(overview)}" alt="path of each tracklet over the middle frame">'
        largest = float(sample.saliency.max())
        tracks = [
            f'<div class="track" style="--colour:{tracklet_colour(k)}"><p><i class="dot"></i>tracklet {k + 1}, queried '
            f"by <b>{escape(class_names[int(name)])}</b></p>{_frames(sample, tinted[k], shown, k)}"
            f"{_saliency(sample.saliency[:, k], largest)}</div>"
            for k, name in enumerate(sample.selected)
        ]
    kind = "right" if right else "wrong"
    name = escape(class_names[sample.label])
    return (
        f'<article class="card clip {kind}">\n<div class="answer">{picture}<div><h3>{name} <em>true class</em></h3>'
        f'{_answers(sample, class_names)}<p class="file">{escape(sample.path.name)}</p></div></div>\n'
        + "\n".join(tracks)
        + "\n</article>"
    )


def _answers(sample: SampleClip, class_names: Sequence[str]) -> str:
    """The most probable classes, and the true one where it is not among them."""
    order = np.argsort(-sample.probabilities, kind="stable")
    listed = order[:_TOP].tolist()
    if sample.label not in listed:
        listed.append(sample.label)
    lines = []
    for i in listed:
        kind = "true" if i == sample.label else "called" if i == sample.predicted else ""
        rank = int(np.flatnonzero(order == i)[0]) + 1
        place = f" <em>rank {rank}</em>" if rank > _TOP else ""
        share = float(sample.probabilities[i])
        name = escape(class_names[i])
        lines.append(
            f'<li class="{kind}"><span class="name" title="{name}">{name}{place}</span>'
            f'{bar(share)}<span class="value">{percent(share)}</span></li>'
        )
    return f'<ol class="bars">{"".join(lines)}</ol>'


def _frames(
    sample: SampleClip, frames: UInt8[np.ndarray, "t height width 3"], shown: Int[np.ndarray, " n"], k: int | None
) -> str:
    """The shown frames as separate pictures, so that the page may break them into lines."""
    path = None if k is None or sample.maps is None else tracklet_paths(sample.maps)[:, k]
    colour = tracklet_colour(k or 0)
    strip = figure_pixels(frame_strip(frames, shown, path=path, colour=colour, limb=sample.joints, pixels=_PIXELS))
    of = "" if k is None else f", response of tracklet {k + 1}"
    pictures = [
        f'<img src="{jpeg_uri(picture)}" alt="frame {frame}{of}">'
        for frame, picture in zip(shown, np.split(strip, len(shown), axis=1), strict=True)
    ]
    return f'<div class="frames">{"".join(pictures)}</div>'


def _saliency(saliency: Float[np.ndarray, " t"], largest: float) -> str:
    """A bar for each frame, relative to the ``largest`` saliency of the clip."""
    bars = "".join(
        f'<i style="--share:{value / max(largest, 1e-9):.3f}" title="frame {t}: {percent(float(value))}"></i>'
        for t, value in enumerate(saliency)
    )
    return f'<div class="saliency" role="img" aria-label="saliency of each frame">{bars}</div>'
