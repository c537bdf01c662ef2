"""Does a tracklet follow the limb that makes the difference?

The measure: the share of frames in which the peak of a response map (the centre of its strongest cell) lies within a
radius of the image of the joint that tells the clip's class from its neighbours. Nothing in training names that joint.

A share alone says little, because the regions of a good model lie on the body and the limb is a part of it. So each
share comes with what regions give that know of the body and not of the limb: exact expectations, not samples.
The paper shows response maps and does not measure them: this measure is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from art.data.datasets.clips import Clip, ClipSet
from art.eval.report.body import HUMAN_BONES, Points, bone_indices
from art.eval.report.limb_score import LimbScore, score_clip, summarize
from art.eval.report.response_maps import map_peak
from art.eval.report.samples import ClipReader, clip_reader
from art.model.pretrained import VideoClassifier, evaluating


@dataclass(frozen=True)
class Localization:
    """The measure over a set of clips: ``overall``, and apart for each joint that defines some class.

    Attributes:
        radius: a share of the image's width and height.
        grid: (h, w) of the response maps.
        skipped_clips: clips not counted because their class has no defining joint.
    """

    overall: LimbScore
    per_joint: dict[str, LimbScore]
    radius: float
    grid: tuple[int, int]
    skipped_clips: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and dicts, ready for JSON."""
        return asdict(self)


def measure_localization(
    model: VideoClassifier,
    clip_set: ClipSet,
    joints: Callable[[Clip], Points],
    *,
    joint_names: Sequence[str],
    defining: Sequence[str | None],
    bones: Sequence[tuple[str, str]] = HUMAN_BONES,
    indices: Callable[[int, int], Int[np.ndarray, " t"]] | None = None,
    radius: float = 0.1,
    reach: float = 0.5,
    read: ClipReader | None = None,
) -> Localization:
    """Show the model every clip whose class has a defining joint, and measure whether its tracklets follow that joint.

    Args:
        joints: gives a clip's joint positions ``[n, J, 2]`` in each frame of the file, as shares of the image that the
            model is shown.
        joint_names: J names.
        defining: for each class the joint that tells it from its neighbours, or None where no joint does.
        bones: pairs of joint names between which the body extends.
        indices: which of n frames the model is shown, called with (n, T): must be the choice that ``read`` makes, and
            by default is that of evaluation, as the model samples.
        radius: how near is near, as a share of the image.
        reach: how far from the skeleton a cell still counts as body, in cells.
        read: reads a clip; by default as :func:`~art.eval.report.samples.clip_reader` does.

    Raises:
        ValueError: the model has no response maps; ``defining`` does not fit the classes or names an unknown joint;
            bones name an unknown joint; no class has a defining joint, or it is never in view.
    """
    if model.kind != "art":
        raise ValueError(f"model is of kind {model.kind!r}, which has no response maps to measure; expected 'art'")
    places = _places(defining, joint_names, clip_set)
    pairs = bone_indices(joint_names, bones)
    read = read or clip_reader(model)
    chosen = indices or (lambda count, num_frames: model.sampling.indices(count, num_frames)[0].numpy())
    scores, grid = [], (0, 0)
    with evaluating(model) as device:
        for clip in clip_set:
            limb = places[clip.label]
            if limb is None:
                continue
            maps = model(read(clip)[None].to(device), return_maps=True).maps[0].float().cpu()
            grid = (maps.shape[-2], maps.shape[-1])
            positions = joints(clip)
            positions = positions[chosen(len(positions), model.num_frames)]
            peaks = map_peak(maps).double().numpy()
            name = joint_names[limb]
            scores.append(score_clip(peaks, positions, limb, pairs, grid, joint_name=name, radius=radius, reach=reach))
    by_joint = {name: [s for s in scores if s.joint == name] for name in joint_names}
    return Localization(
        overall=summarize(scores),
        per_joint={name: summarize(own) for name, own in by_joint.items() if any(s.frames for s in own)},
        radius=radius,
        grid=grid,
        skipped_clips=len(clip_set) - len(scores),
    )


def _places(defining: Sequence[str | None], joint_names: Sequence[str], clip_set: ClipSet) -> list[int | None]:
    classes = len(clip_set.class_names)
    if len(defining) != classes:
        raise ValueError(f"defining has {len(defining)} entries, expected one for each of {classes} classes")
    unknown = sorted({name for name in defining if name is not None} - set(joint_names))
    if unknown:
        known = ", ".join(joint_names)
        raise ValueError(f"defining names joints that are not tracked: {', '.join(unknown)}; expected some of {known}")
    if not any(name is not None for name in defining):
        raise ValueError("defining names no joint for any class: nothing to measure")
    return [None if name is None else joint_names.index(name) for name in defining]
