"""The definition of the loss, against values worked out by hand."""

import math

import pytest
import torch

from art_kernels.tracklet_contrast.reference import mtc_loss

# One video, two frames, two tracklets: the first keeps (1, 0); the second turns from (0, 1) to (1, 0). Lengths do not
# matter.
RESPONSES = torch.tensor([[[[2.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [5.0, 0.0]]]], dtype=torch.float64)


def values(responses=RESPONSES, **options):
    return [term.item() for term in mtc_loss(responses, **options)]


def test_terms():
    spatial, temporal, tracklet = values()
    assert spatial == pytest.approx(0.5)  # 0 in the first frame, 1 in the second
    assert temporal == pytest.approx(0.3)  # cosines 1 and 0: (0 + 0.6) / 2
    assert tracklet == pytest.approx(2.5 / math.hypot(2.5, 1.5))  # (1.5, 0) and (2.5, 1.5)


def test_margin_and_absolute_form():
    assert values(margin=0.2)[1] == pytest.approx(0.1)
    assert values(temporal_form="absolute")[1] == pytest.approx((0.4 + 0.6) / 2)


def test_flattened_tracklets():
    assert values(tracklet_form="flattened")[2] == pytest.approx(5 / (math.sqrt(5) * math.sqrt(34)))


def test_aggregated_tracklets():
    aggregated = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert values(aggregated=aggregated)[2] == pytest.approx(-math.sqrt(0.5))
    assert values(aggregated=aggregated)[:2] == values()[:2]


def test_clamped_repulsion():
    responses = torch.tensor([[[[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]]], dtype=torch.float64)
    assert values(responses) == pytest.approx([-1 / 3, 0.0, -1 / 3])  # pairs: -1, 1, -1
    assert values(responses, clamp_repulsion=True) == pytest.approx([1 / 3, 0.0, 1 / 3])


def test_invalid_frames_take_no_part():
    valid = torch.tensor([[True, False]])
    assert values(valid=valid) == pytest.approx([0.0, 0.0, 0.0])
    valid = torch.tensor([[False, True]])
    assert values(valid=valid) == pytest.approx([1.0, 0.0, 1.0])
    assert values(valid=torch.tensor([[False, False]])) == [0.0, 0.0, 0.0]


def test_means_are_taken_over_the_batch():
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64).expand(1, 2, 2, 2)
    valid = torch.tensor([[True, True], [True, False]])
    spatial, temporal, tracklet = values(torch.cat([RESPONSES, one]), valid=valid)
    assert spatial == pytest.approx((0 + 1 + 1) / 3)  # three valid frames
    assert temporal == pytest.approx(0.3)  # the only pair of valid frames is in the first video
    assert tracklet == pytest.approx((2.5 / math.hypot(2.5, 1.5) + 1) / 2)  # two videos
