"""How each clip of the ``motion`` data set is filmed: camera, colours, speed and phase, drawn from a seed.

Training and test clips share no camera yaw and no hue: the range of each is cut into bins, of which training takes
every other one and test the rest. What is learnt of a direction or a colour by heart does not help on the test clips.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from art.data.motion.classes import MotionClass
from art.data.motion.render import View
from art.data.motion.takes import Take, load_take, sample

#: The splits, and which bins of a divided range are theirs: the even or the odd ones.
SPLITS = {"train": 0, "test": 1}

#: Range (degrees; share of the colour circle) and number of the bins of what the splits do not share.
#: The yaw has an odd number of bins, so that a mirrored clip stays in the bins of its split.
YAW = (-70.0, 70.0, 11)
HUE = (0.0, 1.0, 12)

#: Ranges of what both splits draw alike: degrees from level downwards, metres, times the recorded speed.
PITCH, DISTANCE, SPEED = (5.0, 25.0), (2.8, 3.6), (0.85, 1.2)

_MARGIN = 0.1  # a share of each bin, at both of its ends, that stays empty
_FIELD_OF_VIEW = 48.0  # degrees


@dataclass(frozen=True)
class Shot:
    """One clip before it is rendered.

    Attributes:
        view: camera and colours.
        speed: of the movement, 1 is as it was recorded.
        times: ``[frames]``, the instants of the take that are shown, in seconds; ``times[0]`` is the start.
        body_hue: hue of the person, 0..1.
        floor_hue: hue of the floor, 0..1.
    """

    view: View
    speed: float
    times: Float[np.ndarray, " frames"]
    body_hue: float
    floor_hue: float


def draw_shot(motion_class: MotionClass, split: str, *, seed: int, class_index: int, index: int, frames: int) -> Shot:
    """How clip ``index`` of a class is filmed; its numbers depend on seed, split, class and index only.

    Args:
        motion_class: the class.
        split: "train" or "test".
        seed: of the whole data set.
        class_index: the index of the class.
        index: of the clip among those of its class and split.
        frames: how many frames the clip has.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = np.random.default_rng([seed, SPLITS[split], class_index, index])
    body_hue, floor_hue = alternating(rng, *HUE, split), alternating(rng, *HUE, split)
    view = View(
        yaw=alternating(rng, *YAW, split),
        pitch=rng.uniform(*PITCH),
        distance=rng.uniform(*DISTANCE),
        field_of_view=_FIELD_OF_VIEW,
        body=colorsys.hsv_to_rgb(body_hue, rng.uniform(0.6, 1), rng.uniform(0.35, 0.8)),
        floor=colorsys.hsv_to_rgb(floor_hue, rng.uniform(0.1, 0.5), rng.uniform(0.7, 1)),
        light=(rng.uniform(-1, 1.5), 2.0, rng.uniform(-1, 1)),
    )
    action = motion_class.action
    take = load_take(action.take)
    speed = rng.uniform(*SPEED)
    start = rng.uniform(0, take.duration) if action.anywhere else rng.uniform(-0.1, 0.1) * action.seconds
    times = start + np.linspace(0, action.seconds * speed, frames)
    if not action.anywhere:  # before its beginning and after its end, such a movement stands still
        times = np.clip(times, 0, take.duration * 0.9999)
    return Shot(view, speed, times, body_hue, floor_hue)


def poses_of(motion_class: MotionClass, shot: Shot) -> Take:
    """The poses that a clip of the class shows."""
    return motion_class.edit(sample(load_take(motion_class.action.take), shot.times))


def alternating(rng: np.random.Generator, low: float, high: float, bins: int, split: str) -> float:
    """A uniform number from those of ``bins`` equal bins of low..high that belong to the split, without their edges."""
    width = (high - low) / bins
    first = SPLITS[split]
    chosen = rng.integers((bins + 1 - first) // 2) * 2 + first
    return float(low + width * (chosen + _MARGIN + (1 - 2 * _MARGIN) * rng.random()))
