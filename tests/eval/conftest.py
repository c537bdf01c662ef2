"""A clip set of moving blobs, and an evaluation of the blob model on it."""

from pathlib import Path

import numpy as np
import pytest
from blob_model import NAMES

from art.data.datasets.base import Clip, ClipSet
from art.eval.metrics import compute_metrics


@pytest.fixture
def blob_clips():
    """Twelve clips, four of each class."""
    clips = tuple(Clip(Path(f"/clips/{i:02d}.mp4"), i % 3) for i in range(12))
    return ClipSet("blobs", "test", Path("/clips"), clips, NAMES)


@pytest.fixture
def blob_evaluation(blob_clips):
    """Predictions of BlobModel: classes 0 and 1 correct, class 2 predicted as class 0. Clip 0 could not be read."""
    indices = np.arange(1, 12)
    labels = np.array(blob_clips.labels)[indices]
    probabilities = np.eye(3, dtype=np.float32)[np.where(labels == 1, 1, 0)]
    return compute_metrics(probabilities, labels, indices, NAMES)
