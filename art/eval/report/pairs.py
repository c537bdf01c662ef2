"""Clips of the pairs of classes that are confused most, small, to see what they look like side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8

from art.data.datasets.clips import ClipSet
from art.data.transforms.augment import CentreCrop
from art.eval.report.confusion import ConfusedPair, most_confused
from art.eval.report.samples import ClipReader
from art.eval.report.tracklets import shown_frames

if TYPE_CHECKING:
    from art.eval.metrics import Evaluation

#: So many pairs are shown with clips, each with so many mistaken ones, and so many frames of each clip.
SHOWN_PAIRS, SHOWN_MISTAKES, SHOWN_FRAMES = 36, 2, 4
_PIXELS = 96


@dataclass(frozen=True)
class ExampleClip:
    """A few frames of a clip.

    Attributes:
        name: its file, and which part of it.
        frames: ``[n, h, w, 3]``, evenly over what the model saw.
        probability: of the class that it was predicted as, 0..1.
    """

    name: str
    frames: UInt8[np.ndarray, "n h w 3"]
    probability: float


@dataclass(frozen=True)
class PairExamples:
    """Clips of a confused pair.

    Attributes:
        pair: which one.
        mistaken: clips of the true class that were predicted as the other one, the surest mistakes first.
        true_right: the clip of the true class that was most surely predicted right; None where none was.
        predicted_right: likewise of the class that it was taken for.
    """

    pair: ConfusedPair
    mistaken: tuple[ExampleClip, ...]
    true_right: ExampleClip | None
    predicted_right: ExampleClip | None


def collect_pairs(
    clip_set: ClipSet,
    evaluation: Evaluation,
    read: ClipReader,
    *,
    limit: int = SHOWN_PAIRS,
    mistakes: int = SHOWN_MISTAKES,
) -> list[PairExamples]:
    """Clips of the most confused pairs.

    Args:
        clip_set: the clips that were evaluated; ``evaluation.indices`` count in it.
        evaluation: the answers.
        read: reads a clip, see :func:`.samples.clip_reader`. A clip that serves several pairs is read once.
        limit: how many pairs.
        mistakes: clips of each that were taken for the other class.

    Raises:
        ValueError: ``limit`` or ``mistakes`` is negative.
    """
    if limit < 0 or mistakes < 0:
        raise ValueError(f"limit is {limit} and mistakes is {mistakes}, expected numbers of at least 0")
    called = evaluation.probabilities.argmax(axis=1)
    known: dict[int, ExampleClip] = {}

    def example(position: int) -> ExampleClip:
        if position not in known:
            known[position] = _example(clip_set, evaluation, position, read)
        return known[position]

    def examples(true: int, predicted: int, count: int) -> tuple[ExampleClip, ...]:
        own = np.flatnonzero((evaluation.labels == true) & (called == predicted))
        surest = own[np.argsort(-evaluation.probabilities[own, predicted], kind="stable")]
        return tuple(example(position) for position in surest[:count].tolist())

    return [
        PairExamples(
            pair,
            examples(pair.true, pair.predicted, mistakes),
            next(iter(examples(pair.true, pair.true, 1)), None),
            next(iter(examples(pair.predicted, pair.predicted, 1)), None),
        )
        for pair in most_confused(evaluation.confusion, limit)
    ]


def _example(clip_set: ClipSet, evaluation: Evaluation, position: int, read: ClipReader) -> ExampleClip:
    index = int(evaluation.indices[position])
    clip = clip_set.clips[index]
    video = read(clip)
    chosen = video[torch.from_numpy(shown_frames(len(video), SHOWN_FRAMES))]
    small = CentreCrop(_PIXELS)(chosen[None])[0]
    span = str(clip).removeprefix(str(clip.path))
    return ExampleClip(
        name=f"{clip_set.relative_path(index)}{span}",
        frames=small.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        probability=float(evaluation.probabilities[position].max()),
    )
