"""Loss terms compared with values computed by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from art.model.losses import multilevel_contrast, semantic_consistency, tracklet_contrast
from art.model.options import ARTOptions
from art.model.semantics import SemanticsBank

# One clip, two frames, two tracklets. Cosines: frame 0: 0, frame 1: 0.8; tracklet 0: 1, tracklet 1: 0.6.
RESPONSES = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.8, 0.6]]]])
AGGREGATED = torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]])


def test_multilevel_contrast():
    terms = multilevel_contrast(RESPONSES, AGGREGATED, ARTOptions(margin=0.9))
    assert_close(terms["spatial"], torch.tensor(0.4))
    assert_close(terms["temporal"], torch.tensor((0.0 + 0.3) / 2))
    assert_close(terms["tracklet"], torch.tensor(-(2**-0.5)))
    assert_close(terms["mtc"], terms["spatial"] + terms["temporal"] + terms["tracklet"])


def test_multilevel_contrast_options():
    absolute = multilevel_contrast(RESPONSES, AGGREGATED, ARTOptions(margin=0.9, temporal_form="absolute"))
    assert_close(absolute["temporal"], torch.tensor((0.1 + 0.3) / 2))
    clamped = multilevel_contrast(RESPONSES, AGGREGATED, ARTOptions(clamp_repulsion=True))
    assert clamped["tracklet"] == 0
    # Flattened: (1, 0, 3, 0) and (0, 2, 0.8, 0.6).
    flattened = multilevel_contrast(RESPONSES, AGGREGATED, ARTOptions(tracklet_form="flattened"))
    assert_close(flattened["tracklet"], torch.tensor(2.4 / math.sqrt(10 * 5)))
    weighted = multilevel_contrast(
        RESPONSES, AGGREGATED, ARTOptions(weight_spatial=2, weight_temporal=0, weight_tracklet=0)
    )
    assert_close(weighted["mtc"], 2 * weighted["spatial"])


def test_semantic_consistency():
    bank = SemanticsBank(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), 2, 0.9)
    with torch.no_grad():
        bank.projection.weight.copy_(torch.eye(2))
        bank.projection.bias.zero_()
    options = ARTOptions(logit_scale=2.0, weight_prototype=3.0)
    prototypes = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    terms = semantic_consistency(bank, torch.tensor([[3.0, 4.0]]), prototypes, torch.tensor([0]), options)
    assert_close(terms["video_consistency"], torch.tensor(math.log(math.exp(1.2) + math.exp(1.6)) - 1.2))
    assert_close(terms["prototype_consistency"], torch.tensor(math.log(math.exp(2) + 1) - 2))
    assert_close(terms["sema"], terms["video_consistency"] + 3 * terms["prototype_consistency"])


def test_tracklet_contrast():
    # Three clips with two tracklets; the first and the last have the same class: positives are 0 and 4, 1 and 5.
    directions = [[[2.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.6, 0.8], [0.0, -5.0]]]
    loss = tracklet_contrast(torch.tensor(directions), torch.tensor([4, 1, 4]), ARTOptions(nce_temperature=0.5))
    others = {0: [0, 0, 2, 1.2, 0], 4: [1.2, 1.6, 1.6, 1.2, -1.6], 1: [0, 2, 0, 1.6, -2], 5: [0, -2, -2, 0, -1.6]}
    positives = {0: 1.2, 4: 1.2, 1: -2, 5: -2}
    expected = [math.log(sum(map(math.exp, others[i]))) - positives[i] for i in others]
    assert_close(loss, torch.tensor(sum(expected) / 4))


def test_semantic_consistency_with_class_probabilities():
    bank = SemanticsBank(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), 6, 0.9)
    video, prototypes = torch.randn(2, 6), torch.randn(4, 6)

    def terms(labels):
        return semantic_consistency(bank, video, prototypes, labels, ARTOptions())

    own, other = terms(torch.tensor([1, 3])), terms(torch.tensor([0, 2]))
    probabilities = torch.tensor([[0.3, 0.7, 0, 0], [0, 0, 0.3, 0.7]])
    mixed = terms(probabilities)
    assert_close(mixed["video_consistency"], 0.7 * own["video_consistency"] + 0.3 * other["video_consistency"])
    assert_close(mixed["prototype_consistency"], own["prototype_consistency"])
    assert_close(mixed["sema"], mixed["video_consistency"] + mixed["prototype_consistency"])


def test_tracklet_contrast_requires_one_class_per_video():
    with pytest.raises(ValueError, match=r"labels has shape \[3, 5\], the class probabilities.*weight_nce to 0"):
        tracklet_contrast(torch.randn(3, 2, 4), torch.full((3, 5), 0.2), ARTOptions())
