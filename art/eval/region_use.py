"""Does a model use its regions? Measured without annotations, by changing what the classifier receives.

A model can have maps and be accurate although its maps are the same for every clip and its tracklets change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from art.data.datasets.base import Clip, ClipSet
from art.data.decoding.video import VideoError
from art.eval.metrics import RegionUse
from art.eval.report.samples import ClipReader, clip_reader
from art.model.files import NonFiniteError
from art.model.pretrained import VideoClassifier, eval_mode

#: Largest number of clips that are measured, evenly spaced over the clip set.
MAX_CLIPS = 1280
_BATCH = 8


def measure_region_use(
    model: VideoClassifier, clip_set: ClipSet, *, max_clips: int = MAX_CLIPS, read: ClipReader | None = None
) -> RegionUse | None:
    """Measure :class:`RegionUse`; None for a model without maps, or if no clip can be read.

    Args:
        model: on any device.
        clip_set: clips of the evaluation.
        max_clips: the number of clips is limited to this.
        read: reads a clip; the default is :func:`art.eval.report.samples.clip_reader`.
    """
    if not model.num_maps:
        return None
    read = read or clip_reader(model)
    count = min(max_clips, len(clip_set))
    chosen = [clip_set.clips[number * len(clip_set) // count] for number in range(count)]
    maps = _MapStatistics()
    labels: list[int] = []
    parts: list[tuple[Tensor, ...]] = []
    logits: list[Tensor] = []
    with eval_mode(model) as device:
        for start in range(0, count, _BATCH):
            videos, own_labels = _readable(chosen[start : start + _BATCH], read)
            if not videos:
                continue
            output = model(torch.stack(videos).to(device), return_maps=True)
            if not bool(output.logits.isfinite().all()):
                raise NonFiniteError(f"the model's output is not finite for clips near {chosen[start].path}")
            maps.add(output.maps.float().cpu())
            logits.append(output.logits.float().cpu())
            labels += own_labels
            if (part := model.region_parts(output)) is not None:
                parts.append(tuple(tensor.float().cpu() for tensor in part))
        if not labels:
            return None
        truth = torch.tensor(labels)
        zeroed = shuffled = query = None
        if parts:
            context, regions, tracklets, selected = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            permutation = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))
            zeroed, shuffled = (
                _accuracy(model.combine_parts(context.to(device), changed.to(device)).cpu(), truth)
                for changed in (torch.zeros_like(regions), regions[permutation])
            )
            query = _explained(tracklets.flatten(0, 1), selected.flatten().long())
    return RegionUse(
        clips=len(truth), top1=_accuracy(torch.cat(logits), truth), top1_zeroed=zeroed, top1_shuffled=shuffled,
        constant=maps.constant, within_clip=maps.within_clip, query=query,
    )  # fmt: skip


def _readable(clips: Sequence[Clip], read: ClipReader) -> tuple[list[Tensor], list[int]]:
    videos, labels = [], []
    for clip in clips:
        try:
            videos.append(read(clip))
        except VideoError:  # counted and reported by the evaluation
            continue
        labels.append(clip.label)
    return videos, labels


def _accuracy(logits: Float[Tensor, "n y"], labels: Int[Tensor, " n"]) -> float:
    return float((logits.argmax(1) == labels).double().mean())


class _MapStatistics:
    """Energies of maps, accumulated over batches."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count, self._energy, self._within = 0, 0.0, 0.0

    def add(self, maps: Float[Tensor, "b t k h w"]) -> None:
        maps = maps.double()
        total = maps.sum((0, 1, 2))
        self._sum = total if self._sum is None else self._sum + total
        self._count += maps.shape[:3].numel()
        self._energy += float(maps.square().sum())
        self._within += float((maps - maps.mean(1, keepdim=True)).square().sum())

    @property
    def constant(self) -> float:
        assert self._sum is not None
        return float((self._sum / self._count).square().sum()) * self._count / self._energy

    @property
    def within_clip(self) -> float:
        return self._within / self._energy


def _explained(vectors: Float[Tensor, "n d"], groups: Int[Tensor, " n"]) -> float:
    """Return the fraction of the variance of vectors that is between the means of their groups."""
    vectors = vectors.double()
    centered = vectors - vectors.mean(0)
    members = np.unique(groups.numpy())
    between = sum(int((groups == g).sum()) * float(centered[groups == g].mean(0).square().sum()) for g in members)
    return between / max(float(centered.square().sum()), 1e-300)
