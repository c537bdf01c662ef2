"""Clips to look at: what the model saw, where it looked, and what it answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from art.data.datasets.clips import Clip, ClipSet
from art.data.decoding.video import read_clip
from art.model.pretrained import VideoClassifier, evaluating

if TYPE_CHECKING:
    from art.eval.metrics import Evaluation

#: Reads a clip as a model is shown it in evaluation: uint8 [T, 3, H, W].
ClipReader = Callable[[Clip], UInt8[Tensor, "t 3 height width"]]


@dataclass(frozen=True)
class SampleClip:
    """One clip with the model's answer; T frames, K tracklets, Y classes.

    Attributes:
        path: the video file.
        frames: ``[T, H, W, 3]``, as the model saw them.
        label: the true class.
        probabilities: ``[Y]``.
        maps: ``[T, K, h, w]``, the response maps; None for a model without (likewise the next two).
        saliency: ``[T, K]``, how much each frame weighed in each tracklet.
        selected: ``[K]``, the class whose text queried each tracklet.
        joints: ``[T, 2]``, position of the limb that tells the class from its neighbours, in shares of the image; None
            where no joint does or it is not known.

    Raises:
        ValueError: the shapes do not agree; only some of maps, saliency and selected are given.
    """

    path: Path
    frames: UInt8[np.ndarray, "t height width 3"]
    label: int
    probabilities: Float[np.ndarray, " y"]
    maps: Float[np.ndarray, "t k h w"] | None = None
    saliency: Float[np.ndarray, "t k"] | None = None
    selected: Int[np.ndarray, " k"] | None = None
    joints: Float[np.ndarray, "t 2"] | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ValueError(f"frames is {self.frames.dtype} {self.frames.shape}, expected uint8 [T, H, W, 3]")
        if not 0 <= self.label < len(self.probabilities):
            raise ValueError(f"label is {self.label}, expected a class from 0 to {len(self.probabilities) - 1}")
        frames = len(self.frames)
        if self.joints is not None and self.joints.shape != (frames, 2):
            raise ValueError(f"joints has shape {self.joints.shape}, expected ({frames}, 2)")
        if self.maps is None and self.saliency is None and self.selected is None:
            return
        if self.maps is None or self.saliency is None or self.selected is None:
            raise ValueError("maps, saliency and selected belong together: give all three or none")
        tracklets = len(self.selected)
        if (
            self.maps.ndim != 4
            or self.maps.shape[:2] != (frames, tracklets)
            or self.saliency.shape != (frames, tracklets)
        ):
            raise ValueError(
                f"maps has shape {self.maps.shape} and saliency {self.saliency.shape}, "
                f"expected [{frames}, {tracklets}, h, w] and [{frames}, {tracklets}]"
            )

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())


def clip_reader(model: VideoClassifier) -> ClipReader:
    """Reads clips as evaluation shows them to ``model`` once: the T frames of its sampling, the centre crop."""
    crop = model.centre_crop

    def read(clip: Clip) -> UInt8[Tensor, "t 3 height width"]:
        video = read_clip(clip.path, model.num_frames, start=clip.start, end=clip.end, sampling=model.sampling)
        return crop(video[None])[0]

    return read


def choose_clips(evaluation: Evaluation, *, right: int, wrong: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions in the evaluation of clips that were predicted right, and wrong: at random, of many classes.

    Returns:
        at most ``right`` and at most ``wrong`` positions, fewer where there are no more; the same for the same seed.
    """
    correct = evaluation.probabilities.argmax(axis=1) == evaluation.labels
    return _spread(evaluation.labels, correct, right, seed), _spread(evaluation.labels, ~correct, wrong, seed)


def _spread(labels: Int[np.ndarray, " n"], among: Bool[np.ndarray, " n"], count: int, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(np.flatnonzero(among))
    turn: dict[int, int] = {}  # how many clips of a class came before
    rounds = []
    for position in order:
        label = int(labels[position])
        rounds.append(turn.get(label, 0))
        turn[label] = rounds[-1] + 1
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
    """Clips that the model predicted right, then such as it predicted wrong, with its maps where it has them.

    The answers are those of the evaluation; the model runs again, on one view of each clip, for its maps.

    Args:
        clip_set: the clips that were evaluated; ``evaluation.indices`` count in it.
        limb: gives the position of the defining limb in the frames shown, shares of the image, to be drawn.
        read: reads a clip; by default as :func:`clip_reader` does.

    Raises:
        ValueError: ``right`` or ``wrong`` is negative, or the evaluation is of another clip set.
    """
    if right < 0 or wrong < 0:
        raise ValueError(f"right is {right} and wrong is {wrong}, expected numbers of clips, at least 0")
    if int(evaluation.indices.max()) >= len(clip_set):
        raise ValueError(
            f"evaluation names clip {int(evaluation.indices.max())}, but clip_set has {len(clip_set)} clips: "
            "pass the clip set that was evaluated"
        )
    read = read or clip_reader(model)
    chosen = choose_clips(evaluation, right=right, wrong=wrong, seed=seed)
    samples = []
    with evaluating(model) as device:
        for position in (*chosen[0], *chosen[1]):
            clip = clip_set.clips[int(evaluation.indices[position])]
            answer = evaluation.probabilities[position]
            samples.append(_sample(model, clip, read(clip), answer, device, limb(clip) if limb else None))
    return samples


def _sample(
    model: VideoClassifier,
    clip: Clip,
    video: UInt8[Tensor, "t 3 height width"],
    probabilities: Float[np.ndarray, " y"],
    device: torch.device,
    joints: Float[np.ndarray, "t 2"] | None,
) -> SampleClip:
    has_maps = model.kind == "art"
    out = model(video[None].to(device), return_maps=True) if has_maps else None
    return SampleClip(
        path=clip.path,
        frames=video.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        label=clip.label,
        probabilities=probabilities,
        maps=out.maps[0].float().cpu().numpy() if out is not None else None,
        saliency=out.saliency[0].float().cpu().numpy() if out is not None else None,
        selected=out.selected[0].cpu().numpy() if out is not None else None,
        joints=joints,
    )
