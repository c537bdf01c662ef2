"""The definition of the pooling, against values worked out by hand."""

import math

import torch

from art_kernels.tracklet_pooling.reference import pool_tracklets

# One video, two frames, one tracklet; with temperature 1 / log 3 a cosine of 1 against 0 weighs 3 against 1.
RESPONSES = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]], dtype=torch.float64)
TEMPERATURE = 1 / math.log(3)


def pooled(semantics, **options):
    aggregated, saliency = pool_tracklets(
        RESPONSES, torch.tensor([semantics], dtype=torch.float64), TEMPERATURE, **options
    )
    return aggregated[0, 0], saliency[0, :, 0]


def exactly(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_softmax_over_time_weighs_the_raw_responses():
    aggregated, saliency = pooled([[3.0, 0.0]])
    torch.testing.assert_close(saliency, exactly(0.75, 0.25))
    torch.testing.assert_close(aggregated, exactly(0.75, 0.5))


def test_saliency_is_averaged_over_semantics():
    aggregated, saliency = pooled([[3.0, 0.0], [0.0, 0.1], [0.0, 1.0]])
    torch.testing.assert_close(saliency, exactly(1.25 / 3, 1.75 / 3))
    torch.testing.assert_close(aggregated, exactly(1.25 / 3, 3.5 / 3))


def test_zero_semantic_weighs_all_frames_alike():
    torch.testing.assert_close(pooled([[0.0, 0.0]])[1], exactly(0.5, 0.5))


def test_invalid_frames_take_no_part():
    aggregated, saliency = pooled([[3.0, 0.0]], valid=torch.tensor([[False, True]]))
    torch.testing.assert_close(saliency, exactly(0.0, 1.0))
    torch.testing.assert_close(aggregated, exactly(0.0, 2.0))
    assert (pooled([[3.0, 0.0]], valid=torch.tensor([[False, False]]))[0] == 0).all()
