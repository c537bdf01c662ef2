"""Sample clips: their selection, the model's outputs for them, and their cards in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from art.data.datasets.base import Clip, ClipSet
from art.data.decoding.video import read_clip
from art.eval.metrics import Evaluation
from art.eval.report.style import bar, figure_pixels, jpeg_uri, name_html, percent, tracklet_color
from art.eval.report.tracklets import frame_strip, path_figure, shown_frames, tinted_frames, tracklet_paths
from art.model.pretrained import Query, VideoClassifier, eval_mode

_FRAMES = 8  # frames per clip
_PIXELS = 176  # width of a frame: twice its width on a wide page
_TOP_CLASSES = 3

#: Reads a clip as the model receives it in evaluation: uint8 [T, 3, H, W].
ClipReader = Callable[[Clip], UInt8[Tensor, "t 3 height width"]]


@dataclass(frozen=True)
class SampleClip:
    """A clip with the model's prediction; T frames, K tracklets, Y classes.

    Attributes:
        path: the video file.
        frames: ``[T, H, W, 3]``, as the model received them.
        label: the true class.
        probabilities: ``[Y]``.
        maps: ``[T, K, h, w]``, the response maps. This and the next two are None for a model without maps.
        saliency: ``[T, K]``, the weight of each frame in each tracklet.
        queries: what each of the K maps belongs to.
        joints: ``[T, 2]``, position of the limb that distinguishes the class from similar ones, as fractions of the
            image size; None if no limb does, or if it is unknown.

    Raises:
        ValueError: If shapes do not match, or only some of maps, saliency, and queries are set.
    """

    path: Path
    frames: UInt8[np.ndarray, "t height width 3"]
    label: int
    probabilities: Float[np.ndarray, " y"]
    maps: Float[np.ndarray, "t k h w"] | None = None
    saliency: Float[np.ndarray, "t k"] | None = None
    queries: tuple[Query, ...] | None = None
    joints: Float[np.ndarray, "t 2"] | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ValueError(f"frames is {self.frames.dtype} {self.frames.shape}, expected uint8 [T, H, W, 3]")
        if not 0 <= self.label < len(self.probabilities):
            raise ValueError(f"label is {self.label}, expected a class from 0 to {len(self.probabilities) - 1}")
        frames = len(self.frames)
        if self.joints is not None and self.joints.shape != (frames, 2):
            raise ValueError(f"joints has shape {self.joints.shape}, expected ({frames}, 2)")
        if self.maps is None and self.saliency is None and self.queries is None:
            return
        if self.maps is None or self.saliency is None or self.queries is None:
            raise ValueError("maps, saliency and queries belong together: pass all three or none")
        expected = (frames, len(self.queries))
        if self.maps.ndim != 4 or self.maps.shape[:2] != expected or self.saliency.shape != expected:
            raise ValueError(
                f"maps has shape {self.maps.shape} and saliency {self.saliency.shape}, "
                f"expected [{frames}, {expected[1]}, h, w] and [{frames}, {expected[1]}]"
            )

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())


def clip_reader(model: VideoClassifier) -> ClipReader:
    """Return a function that reads a clip as single-view evaluation does: T frames, center-cropped."""
    crop = model.center_crop

    def read(clip: Clip) -> UInt8[Tensor, "t 3 height width"]:
        video = read_clip(clip.path, model.num_frames, start=clip.start, end=clip.end, sampling=model.sampling)
        return crop(video[None])[0]

    return read


def choose_clips(evaluation: Evaluation, *, right: int, wrong: int, seed: int) -> tuple[list[int], list[int]]:
    """Choose clips with correct and wrong predictions at random, from as different classes as possible.

    Returns:
        Rows of the evaluation: up to ``right`` correct and up to ``wrong`` wrong ones. Deterministic for a given seed.
    """
    correct = evaluation.probabilities.argmax(axis=1) == evaluation.labels
    return _choose(evaluation.labels, correct, right, seed), _choose(evaluation.labels, ~correct, wrong, seed)


def _choose(labels: Int[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], count: int, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(np.flatnonzero(mask))
    seen: dict[int, int] = {}  # number of clips per class
    rounds = []  # the first clip of each class, then the second of each, ...
    for row in order:
        label = int(labels[row])
        rounds.append(seen.get(label, 0))
        seen[label] = rounds[-1] + 1
    return [int(order[i]) for i in np.argsort(rounds, kind="stable")[:count]]


def collect_samples(
    model: VideoClassifier,
    clip_set: ClipSet,
    evaluation: Evaluation,
    *,
    right: int = 6,
    wrong: int = 6,
    seed: int = 0,
    limb: Callable[[Clip], Float[np.ndarray, "t 2"] | None] | None = None,
    read: ClipReader | None = None,
) -> list[SampleClip]:
    """Collect clips with correct predictions, then clips with wrong predictions, with response maps if available.

    The predictions are those of the evaluation. The model runs again, on one view of each clip, for its maps.

    Args:
        model: the model that was evaluated.
        clip_set: the clips that were evaluated; ``evaluation.indices`` are indices into it.
        evaluation: the predictions.
        right: maximum number of clips with correct predictions.
        wrong: maximum number of clips with wrong predictions.
        seed: seed of the random choice.
        limb: returns the position of the distinguishing limb in the frames shown, as fractions of the image size.
        read: reads a clip; the default is :func:`clip_reader`.

    Raises:
        ValueError: If ``right`` or ``wrong`` is negative, or the evaluation belongs to another clip set.
    """
    if right < 0 or wrong < 0:
        raise ValueError(f"right is {right} and wrong is {wrong}, expected numbers of clips, at least 0")
    if int(evaluation.indices.max()) >= len(clip_set):
        raise ValueError(
            f"evaluation contains clip {int(evaluation.indices.max())}, but clip_set has {len(clip_set)} clips: "
            "pass the clip set that was evaluated"
        )
    read = read or clip_reader(model)
    correct_rows, wrong_rows = choose_clips(evaluation, right=right, wrong=wrong, seed=seed)
    samples = []
    with eval_mode(model) as device:
        for row in (*correct_rows, *wrong_rows):
            clip = clip_set.clips[int(evaluation.indices[row])]
            video = read(clip)
            out = model(video[None].to(device), return_maps=True) if model.num_maps else None
            sample = SampleClip(
                path=clip.path,
                frames=video.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
                label=clip.label,
                probabilities=evaluation.probabilities[row],
                maps=out.maps[0].float().cpu().numpy() if out is not None else None,
                saliency=out.saliency[0].float().cpu().numpy() if out is not None else None,
                queries=model.map_queries(out) if out is not None else None,
                joints=limb(clip) if limb else None,
            )
            samples.append(sample)
    return samples


def sample_card(sample: SampleClip, class_names: Sequence[str]) -> str:
    """Return the HTML of a clip: its prediction, and frames with response, path, and saliency of each tracklet."""
    shown = shown_frames(len(sample.frames), _FRAMES)
    if sample.maps is None or sample.saliency is None or sample.queries is None:
        overview, tracks = "", [_frames(sample, sample.frames, shown)]
    else:
        paths, tinted = tracklet_paths(sample.maps), tinted_frames(sample.frames, sample.maps)
        pixels = figure_pixels(path_figure(sample.frames[len(sample.frames) // 2], paths, pixels=240))
        overview = f'<img src="{jpeg_uri(pixels)}" alt="path of each tracklet over the middle frame">'
        largest = float(sample.saliency.max())
        tracks = [
            f'<div class="track" style="--color:{tracklet_color(k)}"><p><i class="dot"></i>'
            f"{name_html(query.title(k))}</p>{_frames(sample, tinted[k], shown, k, paths[:, k])}"
            f"{_saliency_bars(sample.saliency[:, k], largest)}</div>"
            for k, query in enumerate(sample.queries)
        ]
    kind = "correct" if sample.predicted == sample.label else "wrong"
    name = name_html(class_names[sample.label])
    content = "\n".join(tracks)
    return (
        f'<article class="card clip {kind}">\n<div class="prediction">{overview}<div>'
        f"<h3>{name} <em>true class</em></h3>"
        f'{_top_classes(sample, class_names)}<p class="file">{name_html(sample.path.name)}</p></div></div>\n'
        f"{content}\n</article>"
    )


def _top_classes(sample: SampleClip, class_names: Sequence[str]) -> str:
    """List the most probable classes, and the true class if it is not one of them."""
    order = np.argsort(-sample.probabilities, kind="stable").tolist()
    listed = order[:_TOP_CLASSES]
    if sample.label not in listed:
        listed.append(sample.label)
    items = []
    for i in listed:
        kind = "true" if i == sample.label else "predicted" if i == sample.predicted else ""
        rank = order.index(i) + 1
        suffix = f" <em>rank {rank}</em>" if rank > _TOP_CLASSES else ""
        probability = float(sample.probabilities[i])
        name = f'<span class="name">{name_html(class_names[i])}{suffix}</span>'
        items.append(
            f'<li class="{kind}">{name}{bar(probability)}<span class="value">{percent(probability)}</span></li>'
        )
    return f'<ol class="bars">{"".join(items)}</ol>'


def _frames(
    sample: SampleClip,
    frames: UInt8[np.ndarray, "t height width 3"],
    shown: Int[np.ndarray, " n"],
    k: int | None = None,
    path: Float[np.ndarray, "t 2"] | None = None,
) -> str:
    """Return the shown frames as separate images, so that the page can wrap them."""
    color = tracklet_color(k or 0)
    strip = figure_pixels(frame_strip(frames, shown, path=path, color=color, limb=sample.joints, pixels=_PIXELS))
    suffix = "" if k is None else f", response of tracklet {k + 1}"
    images = [
        f'<img src="{jpeg_uri(pixels)}" alt="frame {frame}{suffix}">'
        for frame, pixels in zip(shown, np.split(strip, len(shown), axis=1), strict=True)
    ]
    return f'<div class="frames">{"".join(images)}</div>'


def _saliency_bars(saliency: Float[np.ndarray, " t"], largest: float) -> str:
    """Return a bar for each frame, relative to the ``largest`` saliency of the clip."""
    bars = "".join(
        f'<i style="--value:{value / max(largest, 1e-9):.3f}" title="frame {t}: {percent(float(value))}"></i>'
        for t, value in enumerate(saliency)
    )
    return f'<div class="saliency" role="img" aria-label="saliency of each frame">{bars}</div>'
