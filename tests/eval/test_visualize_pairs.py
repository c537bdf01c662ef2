from pathlib import Path

import numpy as np
import pytest
import torch

from art.data.datasets.clips import Clip, ClipSet
from art.eval.metrics import measure
from art.eval.report.pairs import collect_pairs

NAMES = ("walk", "run", "jump")
#: True class, called, probability of that.
ANSWERS = [(0, 1, 0.5), (0, 1, 0.9), (0, 1, 0.7), (0, 0, 0.6), (0, 0, 0.8), (1, 2, 0.4), (2, 2, 0.7)]


@pytest.fixture
def evaluated():
    """A clip set of which the first clip could not be read, and the answers on the others."""
    clips = [Clip(Path("/clips/broken.mp4"), 0)]
    clips += [Clip(Path(f"/clips/{i}.mp4"), true, 1.5, 2.0) for i, (true, _, _) in enumerate(ANSWERS)]
    probabilities = np.zeros((len(ANSWERS), 3), dtype=np.float32)
    for row, (_, called, share) in enumerate(ANSWERS):
        probabilities[row] = (1 - share) / 2
        probabilities[row, called] = share
    labels = np.array([true for true, _, _ in ANSWERS])
    evaluation = measure(probabilities, labels, np.arange(1, len(clips)), NAMES)
    return ClipSet("set", "test", Path("/clips"), tuple(clips), NAMES), evaluation


@pytest.fixture
def read():
    """Frame t of a clip is as bright as 10 t; which clips were read is in ``read.seen``."""

    def reader(clip):
        reader.seen.append(clip.path.name)
        return (10 * torch.arange(8, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 3, 48, 64).contiguous()

    reader.seen = []
    return reader


def test_the_surest_mistakes_and_what_is_right(evaluated, read):
    first, second = collect_pairs(*evaluated, read)
    assert (first.pair.true, first.pair.predicted, first.pair.count) == (0, 1, 3)
    assert [clip.name for clip in first.mistaken] == ["1.mp4 [1.5..2 s]", "2.mp4 [1.5..2 s]"]
    assert [clip.probability for clip in first.mistaken] == pytest.approx([0.9, 0.7])
    assert first.true_right.name.startswith("4.mp4") and first.true_right.probability == pytest.approx(0.8)
    assert first.predicted_right is None, "no clip of that class was right"
    assert [clip.name.split()[0] for clip in second.mistaken] == ["5.mp4"]
    assert second.true_right is None and second.predicted_right.name.startswith("6.mp4")
    assert sorted(read.seen) == ["1.mp4", "2.mp4", "4.mp4", "5.mp4", "6.mp4"], "each is read once"


def test_frames_are_small_and_spread_over_the_clip(evaluated, read):
    frames = collect_pairs(*evaluated, read)[0].mistaken[0].frames
    assert frames.shape == (4, 96, 96, 3) and frames.dtype == np.uint8
    assert frames[:, 0, 0, 0].tolist() == [10, 30, 50, 70]


def test_numbers_can_be_chosen(evaluated, read):
    (only,) = collect_pairs(*evaluated, read, limit=1, mistakes=3)
    assert len(only.mistaken) == 3
    assert collect_pairs(*evaluated, read, limit=0) == []
    with pytest.raises(ValueError, match="limit is 1 and mistakes is -1"):
        collect_pairs(*evaluated, read, limit=1, mistakes=-1)
