"""Whether a model uses its regions: models that do and that do not, and clips that cannot be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from art.data.datasets.base import Clip, ClipSet
from art.data.decoding.video import VideoError
from art.eval.region_use import measure_region_use

NAMES = ("a", "b")
CLIPS = tuple(Clip(Path("clips") / f"{number}.mp4", number % 2) for number in range(20))
CLIP_SET = ClipSet("made", "test", Path("clips"), CLIPS, NAMES)


class Model(nn.Module):
    """A model whose maps follow the clip's label and frame, or are constant, and whose logits come from the regions or
    from the rest."""

    num_maps, class_names, num_frames = 1, NAMES, 2

    def __init__(self, *, follows, uses_regions):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.follows, self.uses_regions = follows, uses_regions

    def forward(self, video, *, return_maps):
        assert return_maps and not self.training
        labels = video[:, 0, 0, 0, 0].long()
        maps = torch.zeros(len(video), 2, 1, 2, 2)
        for clip, label in enumerate(labels.tolist()):
            for frame in range(2):
                place = (label, frame) if self.follows else (0, 0)
                maps[clip, frame, 0][place] = 1
        vectors = nn.functional.one_hot(labels, 2).float() * self.scale
        return SimpleNamespace(logits=vectors, maps=maps, labels=labels, vectors=vectors)

    def region_parts(self, output):
        zeros = torch.zeros_like(output.vectors)
        context, regions = (zeros, output.vectors) if self.uses_regions else (output.vectors, zeros)
        return context, regions, output.vectors[:, None], output.labels[:, None]

    def combine_parts(self, context, regions):
        return context + regions


def read(clip):
    return torch.full((2, 3, 4, 4), clip.label, dtype=torch.uint8)


def test_a_model_that_uses_its_regions():
    use = measure_region_use(Model(follows=True, uses_regions=True), CLIP_SET, read=read)
    assert (use.clips, use.top1, use.top1_zeroed) == (20, 1.0, 0.5)
    assert use.top1_shuffled < 0.8
    assert use.constant == pytest.approx(0.25) and use.within_clip == pytest.approx(0.5)
    assert use.query == pytest.approx(1.0), "here a tracklet is a function of its class"
    assert use.warnings == [] and "without regions 50.0 %" in use.to_text()


def test_a_model_that_does_not():
    use = measure_region_use(Model(follows=False, uses_regions=False), CLIP_SET, read=read)
    assert (use.top1, use.top1_zeroed, use.top1_shuffled) == (1.0, 1.0, 1.0)
    assert use.constant == pytest.approx(1.0) and use.within_clip == pytest.approx(0.0)
    assert len(use.warnings) == 2 and "100 % of the maps is the same" in use.to_text()


def test_unreadable_clips_and_limits():
    def read_some(clip):
        if clip.path.name == "3.mp4":
            raise VideoError(clip.path, "is damaged")
        return read(clip)

    model = Model(follows=True, uses_regions=True).train()
    assert measure_region_use(model, CLIP_SET, read=read_some).clips == 19
    assert measure_region_use(model, CLIP_SET, read=read, max_clips=5).clips == 5
    assert model.training, "the mode is restored"


def test_models_without_maps_are_not_measured():
    model = Model(follows=True, uses_regions=True)
    model.num_maps = 0
    assert measure_region_use(model, CLIP_SET, read=read) is None
