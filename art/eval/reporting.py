"""What is told of a run beyond its accuracy: whether tracklets follow the limb that matters, and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from art.data.datasets.clips import Clip, ClipSet
from art.data.loading.shards import ShardSet
from art.data.motion import Joints, defining_joints, read_joints
from art.eval.metrics import Evaluation
from art.eval.report import Localization, collect_pairs, collect_samples, measure_localization, write_report
from art.eval.report.samples import clip_reader
from art.model.pretrained import VideoClassifier


def localize(model: VideoClassifier, clip_set: ClipSet) -> Localization | None:
    """Whether the tracklets follow the limb that tells a class from its neighbours.

    Returns:
        None where that cannot be asked: of a model without response maps, of data without known joints (only those
        of "motion" are known), or in shards.
    """
    if model.kind != "art" or clip_set.name != "motion" or not _one_by_one(clip_set):
        return None
    joints = read_joints(clip_set.root)
    return measure_localization(
        model,
        clip_set,
        lambda clip: _shown(joints, clip, model),
        joint_names=joints.names,
        defining=defining_joints(clip_set.class_names),
    )


def report_run(
    folder: Path,
    *,
    model: VideoClassifier,
    clip_set: ClipSet,
    evaluation: Evaluation,
    localization: Localization | None,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``report.html`` into ``folder``. Of clips in shards it shows a few, and none of each confused pair: for
    each of them a shard is read up to it.

    Args:
        folder: of the run.
        model: what was evaluated.
        clip_set: what it was evaluated on.
        evaluation: of ``model`` on ``clip_set``.
        localization: of :func:`localize`.
        history: the lines of ``metrics.jsonl``; none where there was no training.
        facts: further entries for the head of the page, by name.

    Returns:
        The file.
    """
    summary = {
        "model": model.kind,
        "backbone": model.options.backbone,
        "data": f"{clip_set.name}, {clip_set.split}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        **(facts or {}),
    }
    return write_report(
        folder,
        title=f"{'ART' if model.kind == 'art' else 'Backbone'} on {clip_set.name}",
        history=history,
        evaluation=evaluation,
        class_names=evaluation.class_names,
        samples=collect_samples(model, clip_set, evaluation, limb=defining_limb(clip_set, model)),
        pairs=collect_pairs(clip_set, evaluation, clip_reader(model)) if _one_by_one(clip_set) else [],
        localization=localization,
        summary=summary,
    )


def _one_by_one(clip_set: ClipSet) -> bool:
    """Whether a clip can be read without those beside it."""
    return not isinstance(clip_set, ShardSet)


def _shown(joints: Joints, clip: Clip, model: VideoClassifier) -> Float[np.ndarray, "n joints 2"]:
    """Where the joints are in the square that evaluation shows of each frame of the clip."""
    size = joints.frame_size
    return model.centre_crop.locate(torch.from_numpy(joints.of(clip.path)), size, size).numpy()


def defining_limb(
    clip_set: ClipSet, model: VideoClassifier
) -> Callable[[Clip], Float[np.ndarray, "t 2"] | None] | None:
    """Where the limb that defines a clip's class is in the frames that evaluation shows, shares of the image.

    Returns:
        a function of a clip, which gives None for a class without such a limb; None for data without known joints.
    """
    if clip_set.name != "motion" or not _one_by_one(clip_set):
        return None
    joints, defining = read_joints(clip_set.root), defining_joints(clip_set.class_names)

    def limb(clip: Clip) -> Float[np.ndarray, "t 2"] | None:
        name = defining[clip.label]
        if name is None:
            return None
        positions = _shown(joints, clip, model)
        shown = model.sampling.indices(len(positions), model.num_frames)[0].numpy()
        return positions[shown, joints.names.index(name)]

    return limb
