"""Compute what a prediction is based on: response maps, saliency, backbone maps and probabilities over time."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from art._deprecated import renamed_attribute
from art.data.decoding.frames import FrameConverter
from art.data.decoding.video import VideoError, frame_times, iterate_frames, read_chosen
from art.data.inputs import input_kind
from art.eval.report.tracklets import map_peak
from art.heads.classifier import ProbeClassifier
from art.model.files import NonFiniteError
from art.model.pretrained import Query, VideoClassifier, eval_mode
from art.tools.explain.backbone_maps import MapUnavailable, attention_rollout, grad_cam, head_grad_cam

#: Frames per second of a directory of frames, which has no presentation times.
DIRECTORY_RATE = 25.0
_BATCH_SIZE = 4  # clip prefixes per forward pass
_FRAMES_AT_ONCE = 32  # read from a directory


@dataclass(frozen=True)
class Explanation:
    """The explanation of a prediction for a clip of F frames, T of which the model sees.

    Positions are fractions of the model's crop (``frames``), with (0, 0) at the top left; ``crop`` locates the crop in
    the source frame. A model without maps has no queries, and None for every array of tracklets.

    Attributes:
        clip: Path of the video file.
        kind: Model kind, "art", "backbone" or "probe".
        class_names: The Y class names.
        size: Height and width of the upright source frames, in pixels.
        crop: Left, top, right and bottom of the model's crop, as fractions of the source frame.
        times: ``[F]``, presentation time of each frame, in seconds.
        sampled: ``[T]``, indices of the frames that the model sees.
        frames: ``[T, S, S, 3]``, those frames as the model sees them, in RGB.
        probabilities: ``[Y]``, predicted class probabilities.
        maps: ``[T, K, h, w]``, response maps; each sums to 1.
        centers: ``[T, K, 2]``, (x, y) of the strongest response: the centroid of the peak cell and its neighbors.
        boxes: ``[T, K, 4]``, left, top, right and bottom around the peak; see :func:`response_boxes`.
        saliency: ``[T, K]``, weight of each frame in each tracklet; sums to 1 over T.
        queries: The text that queries each of the K tracklets, or the learned queries that a map is the mean of.
        timeline: ``[M]``, end time of each clip prefix that was classified, in seconds.
        probabilities_over_time: ``[M, Y]``, predictions for T frames sampled from each prefix, that is, the prediction
            if the clip ended there. The last row is ``probabilities``.
        target: The class that ``grad_cam`` explains.
        grad_cam: ``[T, h, w]``, see :func:`.backbone_maps.grad_cam`, or
            :func:`.backbone_maps.head_grad_cam` for a head on tokens.
        rollout: ``[T, h, w]``, see :func:`.backbone_maps.attention_rollout`.
        rival: The most probable class other than ``target``.
        evidence: ``[T, h, w]``, what each region adds to the logit of ``target`` minus that of ``rival``; None for a
            model that does not add evidence. Attention alone shows where a query looks, not whether it counts.
        missing: The reason why "grad_cam" or "rollout" is None.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", timeline_points=0)
        >>> explanation.maps.shape, explanation.boxes.shape  # 2 frames, 2 tracklets
        ((2, 2, 14, 14), (2, 2, 4))
        >>> explanation.class_names[explanation.predicted] in ("run", "walk")
        True
    """

    clip: Path
    kind: str
    class_names: list[str]
    size: tuple[int, int]
    crop: tuple[float, float, float, float]
    times: Float64[np.ndarray, " f"]
    sampled: Int64[np.ndarray, " t"]
    frames: UInt8[np.ndarray, "t s s 3"]
    probabilities: Float32[np.ndarray, " y"]
    maps: Float32[np.ndarray, "t k h w"] | None
    centers: Float32[np.ndarray, "t k 2"] | None
    boxes: Float[np.ndarray, "t k 4"] | None
    saliency: Float32[np.ndarray, "t k"] | None
    queries: tuple[Query, ...]
    timeline: Float64[np.ndarray, " m"]
    probabilities_over_time: Float32[np.ndarray, "m y"]
    target: int
    grad_cam: Float32[np.ndarray, "t h w"] | None
    rollout: Float32[np.ndarray, "t h w"] | None
    missing: dict[str, str] = field(default_factory=dict)
    rival: int = 0
    evidence: Float32[np.ndarray, "t h w"] | None = None

    @property
    def predicted(self) -> int:
        """Index of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def num_tracklets(self) -> int:
        """K, or 0 without tracklets."""
        return len(self.queries)

    def best(self, count: int) -> list[int]:
        """Return the ``count`` most probable classes in descending order."""
        return np.argsort(-self.probabilities, kind="stable")[:count].tolist()

    def as_json(self) -> dict[str, Any]:
        """Return everything except frames and maps as JSON-serializable values."""
        tracklets = []
        for k, query in enumerate(self.queries):
            assert self.saliency is not None and self.centers is not None and self.boxes is not None
            tracklets.append(
                {
                    "class": query.name if query.label is not None else None,
                    "prompt": query.prompt,
                    "similarity": None if query.similarity is None else round(query.similarity, 6),
                    "saliency": _rounded(self.saliency[:, k]),
                    "centers": _rounded(self.centers[:, k]),
                    "boxes": _rounded(self.boxes[:, k]),
                }
            )
        return {
            "clip": str(self.clip),
            "kind": self.kind,
            "class_names": self.class_names,
            "probabilities": _rounded(self.probabilities),
            "frames": len(self.times),
            "sampled_seconds": _rounded(self.times[self.sampled]),
            "crop": _rounded(np.array(self.crop)),
            "tracklets": tracklets,
            "timeline_seconds": _rounded(self.timeline),
            "probabilities_over_time": _rounded(self.probabilities_over_time),
            "grad_cam_class": self.class_names[self.target],
            "missing": self.missing,
            "evidence": None
            if self.evidence is None
            else {
                "class": self.class_names[self.target],
                "against": self.class_names[self.rival],
                "over_time": _rounded(self.evidence.sum((1, 2))),
            },
        }

    centres = renamed_attribute("centres", "centers")
    beginnings = renamed_attribute("beginnings", "timeline")


def explain(
    model: VideoClassifier,
    clip: str | os.PathLike[str],
    *,
    timeline_points: int = 24,
    target: int | None = None,
    moments: int | None = None,
) -> Explanation:
    """Explain the prediction of ``model`` for a video file.

    Args:
        model: A model on any device. The prediction is that of :meth:`art.VideoClassifier.predict`.
        clip: Path of the video file, or of a directory of frames, which are shown at 25 frames per second.
        timeline_points: M, the number of clip prefixes to classify, each in one forward pass; 0 skips them.
        target: The class that Grad-CAM explains; None is the predicted class.
        moments: Deprecated alias of ``timeline_points``.

    Raises:
        art.data.decoding.video.VideoError: The file cannot be read.
        ValueError: ``timeline_points`` is negative, or ``target`` is not a class index.

    Examples:
        >>> from art import load_model
        >>> from art.tools.explain import explain
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", timeline_points=3)
        >>> explanation.probabilities_over_time.shape
        (3, 2)
    """
    if moments is not None:
        warnings.warn("moments is deprecated, use timeline_points", DeprecationWarning, stacklevel=2)
        timeline_points = moments
    if timeline_points < 0:
        raise ValueError(f"timeline_points: got {timeline_points}, expected at least 0")
    if target is not None and not 0 <= target < len(model.class_names):
        raise ValueError(f"target: got {target}, expected a class index from 0 to {len(model.class_names) - 1}")
    frames = _read_clip(Path(clip), model, timeline_points)
    with eval_mode(model) as device:
        video = frames.stack(frames.sampled)[None]
        on_device = video.to(device)
        out = model(on_device, return_maps=True) if model.num_maps else model(on_device)
        probabilities = out.logits[0].float().softmax(0).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise NonFiniteError(f"{clip}: the model's output is not finite; use another checkpoint")
        over_time = _classify_prefixes(model, frames, device)
        target = int(probabilities.argmax()) if target is None else target
        rival = next(c for c in np.argsort(-probabilities, kind="stable").tolist() if c != target)
        difference = model.evidence_maps(out, torch.tensor([[target, rival]], device=device))
        missing: dict[str, str] = {}
        backbone_maps: dict[str, np.ndarray | None] = {}
        for name, compute in (("grad_cam", _grad_cam), ("rollout", _rollout)):
            try:
                backbone_maps[name] = compute(model, on_device, target).float().cpu().numpy()
            except MapUnavailable as reason:
                backbone_maps[name], missing[name] = None, str(reason)
        tracklets: dict[str, Any] = {"maps": None, "centers": None, "boxes": None, "saliency": None, "queries": ()}
        if model.num_maps:
            maps = out.maps[0].float().cpu()
            tracklets = {
                "maps": maps.numpy(),
                "centers": map_peak(maps, refine=True).numpy(),
                "boxes": response_boxes(maps.numpy()),
                "saliency": out.saliency[0].float().cpu().numpy(),
                "queries": model.map_queries(out),
            }
    return Explanation(
        clip=Path(clip),
        kind=model.kind,
        class_names=list(model.class_names),
        size=frames.size,
        crop=_crop_bounds(model, *frames.size),
        times=frames.times,
        sampled=frames.sampled,
        frames=video[0].permute(0, 2, 3, 1).contiguous().numpy(),
        probabilities=probabilities,
        timeline=frames.times[frames.prefix_lengths - 1],
        probabilities_over_time=over_time,
        target=target,
        rival=rival,
        evidence=None if difference is None else (difference[0, :, 0] - difference[0, :, 1]).float().cpu().numpy(),
        missing=missing,
        **backbone_maps,  # type: ignore[arg-type]
        **tracklets,
    )


def _grad_cam(model: VideoClassifier, video: Tensor, target: int) -> Tensor:
    if isinstance(model, ProbeClassifier) and model.video_head is None:
        return head_grad_cam(model, video, target)
    head: Any = model.video_head
    return grad_cam(model.backbone, head, video, target)


def _rollout(model: VideoClassifier, video: Tensor, target: int) -> Tensor:
    if isinstance(model, ProbeClassifier) and model.video_head is None:
        raise MapUnavailable("the head classifies its tokens, not its global feature")
    return attention_rollout(model.backbone, video)


def response_boxes(maps: Float[np.ndarray, "t k h w"], level: float = 0.5) -> Float[np.ndarray, "t k 4"]:
    """Compute a box around the peak of each map.

    The box contains the cells connected to the peak (horizontally or vertically) whose weight is at least ``level`` of
    the way from the mean of the map to its peak.

    Returns:
        Left, top, right and bottom, as fractions of the map's width and height. A constant map yields the full frame.

    Raises:
        ValueError: ``level`` is not in (0, 1].
    """
    if not 0 < level <= 1:
        raise ValueError(f"level: got {level}, expected a fraction above 0 and at most 1")
    boxes = np.empty((*maps.shape[:2], 4))
    height, width = maps.shape[2:]
    for index in np.ndindex(*maps.shape[:2]):
        weights = maps[index]
        mean = weights.mean()
        rows, columns = np.nonzero(_peak_component(weights, weights >= mean + level * (weights.max() - mean)))
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        boxes[index] = left / width, top / height, right / width, bottom / height
    return boxes


def _peak_component(weights: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the 4-connected component of ``mask`` that contains the peak; the peak is included despite rounding."""
    component = np.zeros_like(mask)
    component[np.unravel_index(weights.argmax(), weights.shape)] = True
    while True:
        grown = component.copy()
        grown[1:] |= component[:-1]
        grown[:-1] |= component[1:]
        grown[:, 1:] |= component[:, :-1]
        grown[:, :-1] |= component[:, 1:]
        grown &= mask | component
        if (grown == component).all():
            return component
        component = grown


@contextmanager
def single_thread() -> Iterator[None]:
    """Run PyTorch in one thread: for one frame at a time, thread synchronization costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _ClipFrames:
    """The frames of a clip that the model sees: T of the whole clip, and T of each of its M prefixes."""

    size: tuple[int, int]  # height and width of the upright source frames, in pixels
    times: Float64[np.ndarray, " f"]  # presentation times, in seconds since the first frame
    sampled: Int64[np.ndarray, " t"]  # indices of the frames sampled from the whole clip
    prefix_lengths: Int64[np.ndarray, " m"]  # number of frames in each prefix; the last is F
    prefix_sampled: Int64[np.ndarray, "m t"]  # indices of the frames sampled from each prefix
    crops: dict[int, UInt8[Tensor, "3 s s"]]  # the model's crop of each of those frames, by index

    def stack(self, indices: Iterable[int]) -> UInt8[Tensor, "t 3 s s"]:
        return torch.stack([self.crops[int(index)] for index in indices])


def decode_clip(clip: Path) -> Iterator[av.VideoFrame]:
    """Decode the frames of a video file or a directory of frames one at a time.

    Raises:
        art.data.decoding.video.VideoError: The clip cannot be read.
    """
    if input_kind(clip) != "directory":
        yield from (decoded.frame for decoded in iterate_frames(clip))
        return
    count = len(_times(clip))
    for start in range(0, count, _FRAMES_AT_ONCE):
        indices = range(start, min(start + _FRAMES_AT_ONCE, count))
        frames = read_chosen(clip, lambda _, indices=indices: indices)  # type: ignore[misc]
        for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
            yield av.VideoFrame.from_ndarray(frame, format="rgb24")


def _times(clip: Path) -> Float64[np.ndarray, " f"]:
    """Return the presentation time of each frame; frames in a directory have none, and are shown at a constant rate."""
    if input_kind(clip) != "directory":
        return np.array(frame_times(clip))
    counts = []

    def first(count: int) -> list[int]:
        counts.append(count)
        return [0]

    read_chosen(clip, first)
    return np.arange(counts[0]) / DIRECTORY_RATE


def _read_clip(clip: Path, model: VideoClassifier, num_prefixes: int) -> _ClipFrames:
    """Read the frames in one pass; only frames that are needed are converted, and only their crops are kept.

    Prefixes end at equal steps; there are no more of them than frames.
    """
    times = _times(clip)
    count = len(times)
    sampled = model.sampling.indices(count, model.num_frames)[0].numpy()
    steps = min(num_prefixes, count)
    lengths = np.array([math.ceil((step + 1) * count / steps) for step in range(steps)], dtype=np.int64)
    per_prefix = [model.sampling.indices(int(length), model.num_frames)[0].numpy() for length in lengths]
    prefix_sampled = np.stack(per_prefix) if per_prefix else np.empty((0, model.num_frames), dtype=np.int64)
    needed = set(sampled.tolist()) | set(prefix_sampled.flatten().tolist())
    convert = FrameConverter().convert
    crops: dict[int, Tensor] = {}
    size: tuple[int, int] | None = None
    with single_thread():
        for index, decoded in enumerate(decode_clip(clip)):
            if index not in needed:
                continue
            rgb = convert(decoded)
            if size is not None and rgb.shape[:2] != size:
                raise VideoError(clip, "changes its frame size; re-encode it with one size")
            size = (rgb.shape[0], rgb.shape[1])
            frame = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
            crops[index] = model.center_crop(frame[None, None])[0, 0].clone()
    if size is None or len(crops) < len(needed):
        raise VideoError(clip, f"has only {len(crops)} of the {len(needed)} frames that were sampled")
    return _ClipFrames(size, times, sampled, lengths, prefix_sampled, crops)


def _classify_prefixes(model: VideoClassifier, frames: _ClipFrames, device: torch.device) -> Float32[np.ndarray, "m y"]:
    probabilities: list[Tensor] = [torch.empty(0, len(model.class_names))]
    for start in range(0, len(frames.prefix_sampled), _BATCH_SIZE):
        batch = torch.stack([frames.stack(indices) for indices in frames.prefix_sampled[start : start + _BATCH_SIZE]])
        probabilities.append(model(batch.to(device)).logits.float().softmax(1).cpu())
    return torch.cat(probabilities).numpy()


def _crop_bounds(model: VideoClassifier, height: int, width: int) -> tuple[float, float, float, float]:
    """Locate the crop in the source frame, by inverting the positions of the frame's corners in the crop."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    start, end = model.center_crop.locate(corners, height, width)
    low, high = -start / (end - start), (1 - start) / (end - start)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _rounded(array: np.ndarray) -> Any:
    return np.round(array.astype(np.float64), 6).tolist()
