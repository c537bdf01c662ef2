"""Whether the frames that a provider gives are the ones that it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

#: Levels of 255 by which a frame may be off in the mean: libraries round differently, and scale colours, which are
#: stored at half the size, differently.
TOLERANCE = 8.0


def reference_frames(path: Path) -> list[np.ndarray]:
    """All frames of a file, decoded one after the other from its beginning."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def check_frames(frames: np.ndarray, indices: Sequence[int], reference: Sequence[np.ndarray]) -> float:
    """The largest mean difference of a frame from the right one.

    Args:
        frames: [n, h, w, 3] uint8, what a provider gave.
        indices: what it was asked for.
        reference: all frames of the file, of any one size.

    Raises:
        ArithmeticError: another number of frames, or one that is unlike the right frame, or more like its neighbour.
    """
    if len(frames) != len(indices):
        raise ArithmeticError(f"gave {len(frames)} frames for {len(indices)}")
    worst = 0.0
    for frame, index in zip(frames, indices, strict=True):
        near = range(max(0, index - 1), min(len(reference), index + 2))
        distances = {i: _distance(frame, reference[i]) for i in near}
        closest = min(distances, key=lambda i: distances[i])
        if distances[closest] < 0.9 * distances[index]:  # scaled, no frame is quite like the right one
            raise ArithmeticError(f"frame {index} is frame {closest}")
        worst = max(worst, distances[index])
    if worst > TOLERANCE:
        raise ArithmeticError(f"a frame is off by {worst:.1f} of 255 in the mean, more than {TOLERANCE:g}")
    return worst


def _distance(frame: np.ndarray, right: np.ndarray) -> float:
    if frame.shape != right.shape:
        planes = torch.from_numpy(np.ascontiguousarray(right)).permute(2, 0, 1).float()
        right = F.adaptive_avg_pool2d(planes, frame.shape[:2]).permute(1, 2, 0).numpy()
    return float(np.abs(frame[::2, ::2].astype(np.float32) - right[::2, ::2]).mean())  # every second pixel will do
