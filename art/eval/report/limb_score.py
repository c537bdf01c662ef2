"""How often regions lie near a limb in one clip, and how often they would by chance: counts and exact expectations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from art.eval.report.body import Points, body_cells, cell_centres, cell_of, in_view, within


@dataclass(frozen=True)
class Shares:
    """Shares of frames, 0..1, in which a region is near the limb.

    Attributes:
        single: the mean over the tracklets.
        best: the tracklet that is near it most often, chosen for each clip by the true position of the limb:
            optimistic, an upper bound on a rule that picks the right tracklet.
        any: at least one tracklet, chosen anew in each frame: more optimistic still.
    """

    single: float
    best: float
    any: float


@dataclass(frozen=True)
class LimbScore:
    """How often regions are near the limb, over all counted frames of some clips.

    Attributes:
        tracklets: the model's.
        per_tracklet: K shares, by the rank of the text that queried the tracklet.
        random_region: by chance: each tracklet takes a random cell on the body, drawn anew in each frame.
        random_joint: by chance: each tracklet follows one random joint through the clip. The share of such a steady
            region varies more from clip to clip, so the best of several is further above the mean than with cells.
        centre: a region that stays at the centre of the body (the cell that holds the mean of the joints in view).
        reachable: a region that always takes the limb's own cell; below 1 where the radius is small for the grid.
        above_chance: mean over clips of the single share less that of random regions.
        above_chance_error: the standard error of that mean, clips taken as independent; None for a single clip.
        clips: clips with at least one counted frame.
        frames: frames counted.
        out_of_view: frames left out because the limb lay outside the image.
    """

    tracklets: Shares
    per_tracklet: tuple[float, ...]
    random_region: Shares
    random_joint: Shares
    centre: float
    reachable: float
    above_chance: float
    above_chance_error: float | None
    clips: int
    frames: int
    out_of_view: int


@dataclass(frozen=True)
class ClipScore:
    """One clip: hits summed over its counted frames (``/ frames`` gives shares), expected hits for the chance levels.

    ``tracklet`` holds K counts; the other fields are as in :class:`LimbScore`.
    """

    joint: str
    tracklet: Float[np.ndarray, " k"]
    tracklets: Shares
    random_region: Shares
    random_joint: Shares
    centre: float
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
    joint_name: str = "",
    radius: float = 0.1,
    reach: float = 0.5,
) -> ClipScore:
    """Score one clip.

    Args:
        peaks: :func:`~art.eval.report.map_peak` of the clip's response maps.
        joints: where each tracked joint is in the same T frames, shares of the image.
        limb: index of the defining joint.
        bones: pairs of joint indices, see :func:`~art.eval.report.body.bone_indices`.
        grid: (h, w) of the response maps.
        joint_name: kept in the result.
        radius: how near is near, as a share of the image.
        reach: how far from the skeleton a cell still counts as body, see :func:`~art.eval.report.body.body_cells`. A
            smaller reach makes the body smaller and chance higher.

    Raises:
        ValueError: peaks and joints differ in their number of frames, or ``limb`` is no joint.
    """
    if len(peaks) != len(joints):
        raise ValueError(
            f"peaks has {len(peaks)} frames and joints {len(joints)}, expected the same frames of the clip"
        )
    if not 0 <= limb < joints.shape[1]:
        raise ValueError(f"limb is {limb}, expected the index of one of {joints.shape[1]} joints")
    seen = in_view(joints[:, limb])
    peaks, joints = peaks[seen], joints[seen]
    target = joints[:, limb]
    near = within(peaks, target[:, None], radius)  # [T,K]
    visible = in_view(joints)
    counted = np.where(visible[..., None], joints, 0.0).sum(axis=1)
    middle = counted / visible.sum(axis=1, keepdims=True)  # the limb is in view: no 0 / 0
    tracklets = near.shape[1]
    on_body = body_cells(joints, bones, grid, reach=reach)
    near_cells = within(cell_centres(grid)[None], target[:, None, None], radius)
    chance = (near_cells & on_body).sum((1, 2)) / on_body.sum((1, 2))  # the limb's own cell is on the body: no 0 / 0
    hits = near.sum(0).astype(np.float64)
    return ClipScore(
        joint=joint_name,
        tracklet=hits,
        tracklets=Shares(float(hits.mean()), float(hits.max()), float(near.any(1).sum())),
        random_region=expected_random_region(chance, tracklets),
        random_joint=expected_random_joint(within(cell_of(joints, grid), target[:, None], radius), visible, tracklets),
        centre=float(within(cell_of(middle, grid), target, radius).sum()),
        reachable=float(within(cell_of(target, grid), target, radius).sum()),
        frames=len(target),
        out_of_view=int((~seen).sum()),
    )


def expected_random_region(chance: Float[np.ndarray, " t"], tracklets: int) -> Shares:
    """Expected hits when each of K tracklets takes a random region in each frame, independently.

    Args:
        chance: probability in each frame that one random region is near the limb.

    Returns:
        sums over frames: of ``chance``; of the most frequent of K (the hits of one are Poisson-binomial, and the
        largest of K independent ones has the distribution function to the power K); of 1 − (1 − chance)^K.
    """
    distribution = np.ones(1)
    for p in chance:
        distribution = np.convolve(distribution, [1 - p, p])
    at_most = np.minimum(np.cumsum(distribution), 1.0)
    best = float((1 - at_most[:-1] ** tracklets).sum())  # E[max] = Σ_n P(max > n)
    return Shares(float(chance.sum()), best, float((1 - (1 - chance) ** tracklets).sum()))


def expected_random_joint(near: Bool[np.ndarray, "t j"], visible: Bool[np.ndarray, "t j"], tracklets: int) -> Shares:
    """Expected hits when each of K tracklets follows one random joint of the clip, independently.

    Args:
        near: whether the region (cell) that holds joint j is near the limb in frame t.
        visible: whether joint j is in view in frame t; out of view it is not near.
    """
    near = near & visible
    hits = np.sort(near.sum(0))
    rank = np.arange(len(hits) + 1) / len(hits)
    best = float((hits * np.diff(rank**tracklets)).sum())
    return Shares(float(hits.mean()), best, float((1 - (1 - near.mean(1)) ** tracklets).sum()))


def summarize(scores: Sequence[ClipScore]) -> LimbScore:
    """Pool clips, each weighted by its counted frames.

    Raises:
        ValueError: no frame is counted.
    """
    counted = [score for score in scores if score.frames]
    frames = sum(score.frames for score in counted)
    if not frames:
        raise ValueError(f"scores holds {len(scores)} clips, none with a frame that shows the defining joint")

    def pooled(values: Sequence[float]) -> float:
        return float(sum(values) / frames)

    def shares(of: Sequence[Shares]) -> Shares:
        return Shares(pooled([s.single for s in of]), pooled([s.best for s in of]), pooled([s.any for s in of]))

    excess = np.array([(s.tracklets.single - s.random_region.single) / s.frames for s in counted])
    error = float(excess.std(ddof=1) / np.sqrt(len(excess))) if len(excess) > 1 else None
    return LimbScore(
        tracklets=shares([s.tracklets for s in counted]),
        per_tracklet=tuple((np.sum([s.tracklet for s in counted], axis=0) / frames).tolist()),
        random_region=shares([s.random_region for s in counted]),
        random_joint=shares([s.random_joint for s in counted]),
        centre=pooled([s.centre for s in counted]),
        reachable=pooled([s.reachable for s in counted]),
        above_chance=float(excess.mean()),
        above_chance_error=error,
        clips=len(counted),
        frames=frames,
        out_of_view=sum(score.out_of_view for score in scores),
    )
