"""The body on a grid of regions: which cells lie on it, which are near a point. Positions are shares of the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

#: Segments between the joints of a person, by the names that the motion data set uses.
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


def bone_indices(joint_names: Sequence[str], bones: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """The bones as pairs of positions in ``joint_names``.

    Raises:
        ValueError: a bone ends in a joint that is not tracked.
    """
    place = {name: i for i, name in enumerate(joint_names)}
    unknown = sorted({end for bone in bones for end in bone} - set(place))
    if unknown:
        raise ValueError(
            f"bones name joints that are not tracked: {', '.join(unknown)}; the tracked ones are "
            f"{', '.join(joint_names)}. Pass the bones of these joints"
        )
    return [(place[a], place[b]) for a, b in bones]


def cell_centres(grid: tuple[int, int]) -> Float[np.ndarray, "h w 2"]:
    """(x, y) of the centre of each cell of an h × w grid."""
    height, width = grid
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([x, y], axis=-1)


def cell_of(points: Float[np.ndarray, "*lead 2"], grid: tuple[int, int]) -> Float[np.ndarray, "*lead 2"]:
    """Centre of the cell that holds each point; a point outside the image takes the nearest cell."""
    size = np.array([grid[1], grid[0]], dtype=np.float64)
    return (np.clip(np.floor(points * size), 0, size - 1) + 0.5) / size


def body_cells(
    joints: Points, bones: Sequence[tuple[int, int]], grid: tuple[int, int], *, reach: float = 0.5
) -> Bool[np.ndarray, "t h w"]:
    """Which cells lie on the body: those that contain a joint or a stretch of a bone, or come within ``reach`` of one.

    Args:
        joints: positions; those outside 0..1 still end their bones, whose visible stretch counts.
        bones: pairs of joint indices.
        reach: in cells, along either axis. Joints and bones are a skeleton without width; half a cell allows for flesh.
    """
    size = np.array([grid[1], grid[0]], dtype=np.float64)
    points = joints * size  # in cells
    pairs = [*bones, *((j, j) for j in range(joints.shape[1]))]
    start = points[:, [a for a, _ in pairs]][:, :, None, None]  # [T,S,1,1,2]
    step = points[:, [b for _, b in pairs]][:, :, None, None] - start
    centre = cell_centres(grid)[None, None] * size  # [1,1,h,w,2]
    low, high = centre - 0.5 - reach, centre + 0.5 + reach
    # Does the segment start + u·step, 0 <= u <= 1, meet the box? It does where the intervals of u of both axes overlap.
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (low - start) / step, (high - start) / step
    still = step == 0
    inside = (start >= low) & (start <= high)
    enter = np.where(still, np.where(inside, -np.inf, np.inf), np.minimum(first, second)).max(-1)
    leave = np.where(still, np.where(inside, np.inf, -np.inf), np.maximum(first, second)).min(-1)
    return (np.maximum(enter, 0.0) <= np.minimum(leave, 1.0)).any(axis=1)


def within(
    points: Float[np.ndarray, "*lead 2"], target: Float[np.ndarray, "*lead 2"], radius: float
) -> Bool[np.ndarray, "*lead"]:
    """Whether each point lies within ``radius`` (a share of the image) of its target, rounding errors aside."""
    return np.asarray(np.linalg.norm(points - target, axis=-1) <= radius + 1e-9)


def in_view(points: Float[np.ndarray, "*lead 2"]) -> Bool[np.ndarray, "*lead"]:
    """Whether each point lies in the image, 0..1 both ways."""
    return np.asarray(((points >= 0) & (points <= 1)).all(axis=-1))
