"""Do tracklets follow the limb that distinguishes a class from similar ones?

The measure is the fraction of frames in which the peak of a response map (the center of its strongest cell) is within a
given radius of that limb's joint. Nothing in training names the joint.

The fraction alone means little, because a good model attends to the body, and the limb is a part of it. It is therefore
reported with the exact expectation for regions chosen at random on the body. The paper shows response maps without
measuring them; this measure is ours. Positions are (x, y) as fractions of the image size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from art.data.datasets.base import Clip, ClipSet
from art.data.motion import Joints, defining_joints, read_joints
from art.data.shards import ShardSet
from art.eval.report.samples import ClipReader, clip_reader
from art.eval.report.tracklets import map_peak
from art.model.pretrained import VideoClassifier, eval_mode

#: Bones of a person as pairs of joints, named as in the motion dataset.
HUMAN_BONES = (
    ("chest", "neck"),
    *(("neck", f"{side}_shoulder") for side in ("right", "left")),
    *((f"{side}_shoulder", f"{side}_elbow") for side in ("right", "left")),
    *((f"{side}_elbow", f"{side}_wrist") for side in ("right", "left")),
    *(("chest", f"{side}_hip") for side in ("right", "left")),
    *((f"{side}_hip", f"{side}_knee") for side in ("right", "left")),
    *((f"{side}_knee", f"{side}_ankle") for side in ("right", "left")),
)

Points = Float[np.ndarray, "t j 2"]


@dataclass(frozen=True)
class HitRates:
    """Fractions of frames, 0 to 1, in which a region is near the limb; numbers of frames in :class:`ClipScore`.

    Attributes:
        single: mean over the tracklets.
        best: the tracklet that is near it most often, chosen for each clip using the true position of the limb. This is
            an upper bound for any rule that selects a tracklet.
        any: at least one tracklet, which may be a different one in each frame; biased further upward.
    """

    single: float
    best: float
    any: float


@dataclass(frozen=True)
class LimbScore:
    """How often regions are near the limb, over all counted frames of a set of clips.

    Attributes:
        tracklets: the model's tracklets.
        per_tracklet: K fractions, by the rank of the text that queried the tracklet.
        random_region: expectation if each tracklet is at a random cell on the body in each frame.
        random_joint: expectation if each tracklet follows one random joint through the clip. These fractions vary more
            between clips than with random cells, so the best of several is further above the mean.
        center: a region that stays at the center of the body (the cell containing the mean of the visible joints).
        reachable: a region that is always at the limb's own cell; below 1 if the radius is small relative to a cell.
        above_chance: mean over clips of ``tracklets.single`` minus ``random_region.single``.
        above_chance_error: standard error of that mean, with clips as independent samples; None for a single clip.
        clips: clips with at least one counted frame.
        frames: counted frames.
        out_of_view: frames that are not counted because the limb is outside the image.
    """

    tracklets: HitRates
    per_tracklet: tuple[float, ...]
    random_region: HitRates
    random_joint: HitRates
    center: float
    reachable: float
    above_chance: float
    above_chance_error: float | None
    clips: int
    frames: int
    out_of_view: int


@dataclass(frozen=True)
class Localization:
    """The measure for a set of clips, overall and per joint that distinguishes a class.

    Attributes:
        overall: the score over all clips.
        per_joint: the score over the clips of each joint, by name.
        radius: fraction of the image size.
        grid: (h, w) of the response maps.
        skipped_clips: clips that are not counted because no joint distinguishes their class.
    """

    overall: LimbScore
    per_joint: dict[str, LimbScore]
    radius: float
    grid: tuple[int, int]
    skipped_clips: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, lists, and dicts, ready for JSON."""
        return asdict(self)


def localize(model: VideoClassifier, clip_set: ClipSet) -> Localization | None:
    """Run :func:`measure_localization` with the joints of the motion dataset.

    Returns:
        None for a model without response maps, for other datasets, whose joints are unknown, and for shards.
    """
    if not model.num_maps or not _has_joints(clip_set):
        return None
    joints = read_joints(clip_set.root)
    return measure_localization(
        model,
        clip_set,
        lambda clip: _positions_in_crop(joints, clip, model),
        joint_names=joints.names,
        defining=defining_joints(clip_set.class_names),
    )


def defining_limb(
    clip_set: ClipSet, model: VideoClassifier
) -> Callable[[Clip], Float[np.ndarray, "t 2"] | None] | None:
    """Return a function that returns the position of the limb that distinguishes a clip's class, in the frames shown.

    The function returns None for classes without such a limb. None is returned instead of the function if the joints
    are unknown.
    """
    if not _has_joints(clip_set):
        return None
    joints, defining = read_joints(clip_set.root), defining_joints(clip_set.class_names)

    def limb(clip: Clip) -> Float[np.ndarray, "t 2"] | None:
        name = defining[clip.label]
        if name is None:
            return None
        positions = _positions_in_crop(joints, clip, model)
        shown = model.sampling.indices(len(positions), model.num_frames)[0].numpy()
        return positions[shown, joints.names.index(name)]

    return limb


def _has_joints(clip_set: ClipSet) -> bool:
    return clip_set.name == "motion" and not isinstance(clip_set, ShardSet)


def _positions_in_crop(joints: Joints, clip: Clip, model: VideoClassifier) -> Float[np.ndarray, "n joints 2"]:
    size = joints.frame_size
    return model.center_crop.locate(torch.from_numpy(joints.of(clip.path)), size, size).numpy()


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
    """Run the model on every clip whose class has a defining joint, and measure whether tracklets follow that joint.

    Args:
        model: a model with response maps.
        clip_set: the clips.
        joints: returns the joint positions ``[n, J, 2]`` in each frame of a clip's file, as fractions of the cropped
            image that the model receives.
        joint_names: J names.
        defining: for each class, the joint that distinguishes it from similar classes, or None if there is none.
        bones: pairs of joint names; the body extends along them.
        indices: called with (n, T), returns which of n frames the model receives. It must match ``read``; the default
            is the model's sampling in evaluation.
        radius: maximum distance that counts as near, as a fraction of the image size.
        reach: maximum distance between the skeleton and a cell on the body, in cells.
        read: reads a clip; the default is :func:`art.eval.report.samples.clip_reader`.

    Raises:
        ValueError: If the model has no response maps, ``defining`` does not match the classes, a joint is unknown, no
            class has a defining joint, or the joint is never in view.
    """
    if not model.num_maps:
        raise ValueError(f"model is of kind {model.kind!r} and has no maps to measure; expected one of kind 'art'")
    limbs = _limb_indices(defining, joint_names, len(clip_set.class_names))
    bone_pairs = bone_indices(joint_names, bones)
    read = read or clip_reader(model)
    indices = indices or (lambda count, num_frames: model.sampling.indices(count, num_frames)[0].numpy())
    scores: list[tuple[str, ClipScore]] = []
    grid = (0, 0)
    with eval_mode(model) as device:
        for clip in clip_set:
            limb = limbs[clip.label]
            if limb is None:
                continue
            maps = model(read(clip)[None].to(device), return_maps=True).maps[0].float().cpu()
            grid = (maps.shape[-2], maps.shape[-1])
            positions = joints(clip)
            positions = positions[indices(len(positions), model.num_frames)]
            peaks = map_peak(maps).double().numpy()
            score = score_clip(peaks, positions, limb, bone_pairs, grid, radius=radius, reach=reach)
            scores.append((joint_names[limb], score))
    per_joint = {name: [score for joint, score in scores if joint == name] for name in joint_names}
    return Localization(
        overall=summarize([score for _, score in scores]),
        per_joint={name: summarize(own) for name, own in per_joint.items() if any(score.frames for score in own)},
        radius=radius,
        grid=grid,
        skipped_clips=len(clip_set) - len(scores),
    )


def _limb_indices(defining: Sequence[str | None], joint_names: Sequence[str], classes: int) -> list[int | None]:
    if len(defining) != classes:
        raise ValueError(f"defining has {len(defining)} entries, expected one for each of {classes} classes")
    unknown = sorted({name for name in defining if name is not None} - set(joint_names))
    if unknown:
        known = ", ".join(joint_names)
        raise ValueError(
            f"defining contains joints that are not tracked: {', '.join(unknown)}; expected some of {known}"
        )
    if not any(name is not None for name in defining):
        raise ValueError("defining contains no joint for any class: nothing to measure")
    return [None if name is None else joint_names.index(name) for name in defining]


@dataclass(frozen=True)
class ClipScore:
    """Hits of one clip, summed over its counted frames; expected hits for the chance levels.

    ``hits`` contains K counts; the other fields are as in :class:`LimbScore`.
    """

    hits: Float[np.ndarray, " k"]
    tracklets: HitRates
    random_region: HitRates
    random_joint: HitRates
    center: float
    reachable: float
    frames: int
    out_of_view: int


def score_clip(
    peaks: Float[np.ndarray, "t k 2"],
    joints: Points,
    limb: int,
    bones: Sequence[tuple[int, int]],
    grid: tuple[int, int],
    *,
    radius: float = 0.1,
    reach: float = 0.5,
) -> ClipScore:
    """Score one clip.

    Args:
        peaks: [T, K, 2] :func:`map_peak` of the response maps.
        joints: [T, J, 2] positions of the joints in the same frames.
        limb: index of the defining joint.
        bones: pairs of joint indices.
        grid: (h, w) of the response maps.
        radius: maximum distance that counts as near, as a fraction of the image size.
        reach: see :func:`body_cells`. A smaller reach makes the body smaller and the chance level higher.

    Raises:
        ValueError: If peaks and joints have different numbers of frames, or ``limb`` is out of range.
    """
    if len(peaks) != len(joints):
        raise ValueError(
            f"peaks has {len(peaks)} frames and joints {len(joints)}, expected the same frames of the clip"
        )
    if not 0 <= limb < joints.shape[1]:
        raise ValueError(f"limb is {limb}, expected the index of one of {joints.shape[1]} joints")
    in_frame = in_view(joints[:, limb])
    peaks, joints = peaks[in_frame], joints[in_frame]
    target = joints[:, limb]
    near = within(peaks, target[:, None], radius)  # [T,K]
    visible = in_view(joints)
    joint_sum = np.where(visible[..., None], joints, 0.0).sum(axis=1)
    center = joint_sum / visible.sum(axis=1, keepdims=True)  # the limb is visible: no 0 / 0
    tracklets = near.shape[1]
    on_body = body_cells(joints, bones, grid, reach=reach)
    near_cells = within(cell_centers(grid)[None], target[:, None, None], radius)
    chance = (near_cells & on_body).sum((1, 2)) / on_body.sum((1, 2))  # the limb's own cell is on the body: no 0 / 0
    hits = near.sum(0).astype(np.float64)
    return ClipScore(
        hits=hits,
        tracklets=HitRates(float(hits.mean()), float(hits.max()), float(near.any(1).sum())),
        random_region=expected_random_region(chance, tracklets),
        random_joint=expected_random_joint(within(cell_of(joints, grid), target[:, None], radius), visible, tracklets),
        center=float(within(cell_of(center, grid), target, radius).sum()),
        reachable=float(within(cell_of(target, grid), target, radius).sum()),
        frames=len(target),
        out_of_view=int((~in_frame).sum()),
    )


def expected_random_region(chance: Float[np.ndarray, " t"], tracklets: int) -> HitRates:
    """Return the expected hits if each of K tracklets is at a random region in each frame, independently.

    Args:
        chance: [T] probability that a random region is near the limb.
        tracklets: K.

    Returns:
        Sums over frames: of ``chance``; of the tracklet with the most hits (the hits of one tracklet are
        Poisson-binomial, and the maximum of K has their distribution function to the power K); of 1 − (1 − chance)^K.
    """
    distribution = np.ones(1)
    for p in chance:
        distribution = np.convolve(distribution, [1 - p, p])
    at_most = np.minimum(np.cumsum(distribution), 1.0)
    best = float((1 - at_most[:-1] ** tracklets).sum())  # E[max] = Σ_n P(max > n)
    return HitRates(float(chance.sum()), best, float((1 - (1 - chance) ** tracklets).sum()))


def expected_random_joint(near: Bool[np.ndarray, "t j"], visible: Bool[np.ndarray, "t j"], tracklets: int) -> HitRates:
    """Return the expected hits if each of K tracklets follows one random joint of the clip, independently.

    Args:
        near: [T, J] whether the cell containing joint j is near the limb.
        visible: [T, J] whether joint j is in view; a joint out of view is never near.
        tracklets: K.
    """
    near = near & visible
    hits = np.sort(near.sum(0))
    rank = np.arange(len(hits) + 1) / len(hits)
    best = float((hits * np.diff(rank**tracklets)).sum())
    return HitRates(float(hits.mean()), best, float((1 - (1 - near.mean(1)) ** tracklets).sum()))


def summarize(scores: Sequence[ClipScore]) -> LimbScore:
    """Combine clips, each weighted by its counted frames.

    Raises:
        ValueError: If no frame is counted.
    """
    counted = [score for score in scores if score.frames]
    frames = sum(score.frames for score in counted)
    if not frames:
        raise ValueError(f"scores has {len(scores)} clips, none with a frame that shows the defining joint")

    def mean(values: Sequence[float]) -> float:
        return float(sum(values) / frames)

    def rates(hits: Sequence[HitRates]) -> HitRates:
        return HitRates(mean([h.single for h in hits]), mean([h.best for h in hits]), mean([h.any for h in hits]))

    excess = np.array([(s.tracklets.single - s.random_region.single) / s.frames for s in counted])
    return LimbScore(
        tracklets=rates([s.tracklets for s in counted]),
        per_tracklet=tuple((np.sum([s.hits for s in counted], axis=0) / frames).tolist()),
        random_region=rates([s.random_region for s in counted]),
        random_joint=rates([s.random_joint for s in counted]),
        center=mean([s.center for s in counted]),
        reachable=mean([s.reachable for s in counted]),
        above_chance=float(excess.mean()),
        above_chance_error=float(excess.std(ddof=1) / np.sqrt(len(excess))) if len(excess) > 1 else None,
        clips=len(counted),
        frames=frames,
        out_of_view=sum(score.out_of_view for score in scores),
    )


def bone_indices(joint_names: Sequence[str], bones: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Return the bones as pairs of indices into ``joint_names``; raise ValueError if a joint is not tracked."""
    indices = {name: i for i, name in enumerate(joint_names)}
    unknown = sorted({end for bone in bones for end in bone} - set(indices))
    if unknown:
        raise ValueError(
            f"bones contains joints that are not tracked: {', '.join(unknown)}; the tracked ones are "
            f"{', '.join(joint_names)}. Pass the bones of these joints"
        )
    return [(indices[a], indices[b]) for a, b in bones]


def cell_centers(grid: tuple[int, int]) -> Float[np.ndarray, "h w 2"]:
    """Return the center (x, y) of each cell of an h × w grid."""
    height, width = grid
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([x, y], axis=-1)


def cell_of(points: Float[np.ndarray, "*lead 2"], grid: tuple[int, int]) -> Float[np.ndarray, "*lead 2"]:
    """Return the center of the cell that contains each point; the nearest cell for points outside the image."""
    size = np.array([grid[1], grid[0]], dtype=np.float64)
    return (np.clip(np.floor(points * size), 0, size - 1) + 0.5) / size


def body_cells(
    joints: Points, bones: Sequence[tuple[int, int]], grid: tuple[int, int], *, reach: float = 0.5
) -> Bool[np.ndarray, "t h w"]:
    """Return which cells are on the body: those that intersect a joint or a bone, or are within ``reach`` of one.

    Args:
        joints: [T, J, 2] positions. Bones also extend to joints outside the image; their visible part counts.
        bones: pairs of joint indices.
        grid: (h, w).
        reach: in cells, along either axis. The skeleton has no width; half a cell accounts for that of the body.
    """
    size = np.array([grid[1], grid[0]], dtype=np.float64)
    points = joints * size  # in cells
    pairs = [*bones, *((j, j) for j in range(joints.shape[1]))]
    start = points[:, [a for a, _ in pairs]][:, :, None, None]  # [T,S,1,1,2]
    step = points[:, [b for _, b in pairs]][:, :, None, None] - start
    center = cell_centers(grid)[None, None] * size  # [1,1,h,w,2]
    low, high = center - 0.5 - reach, center + 0.5 + reach
    # The segment start + u·step, 0 <= u <= 1, intersects the box if the intervals of u of both axes overlap.
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (low - start) / step, (high - start) / step
    parallel = step == 0
    inside = (start >= low) & (start <= high)
    enter = np.where(parallel, np.where(inside, -np.inf, np.inf), np.minimum(first, second)).max(-1)
    leave = np.where(parallel, np.where(inside, np.inf, -np.inf), np.maximum(first, second)).min(-1)
    return (np.maximum(enter, 0.0) <= np.minimum(leave, 1.0)).any(axis=1)


def within(
    points: Float[np.ndarray, "*lead 2"], target: Float[np.ndarray, "*lead 2"], radius: float
) -> Bool[np.ndarray, "*lead"]:
    """Return whether each point is within ``radius`` of its target, up to rounding errors."""
    return np.asarray(np.linalg.norm(points - target, axis=-1) <= radius + 1e-9)


def in_view(points: Float[np.ndarray, "*lead 2"]) -> Bool[np.ndarray, "*lead"]:
    """Return whether each point is inside the image."""
    return np.asarray(((points >= 0) & (points <= 1)).all(axis=-1))
