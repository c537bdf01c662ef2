import numpy as np
import pytest
import torch

from art.data.transforms.mix import PairMix, symmetric_beta_quantiles

LABELS = torch.tensor([0, 2, 1, 1, 2])


def clips(count=5, size=(6, 8)):
    """Clips of one value each: 0.1, 0.2, …"""
    return (torch.arange(1, count + 1) / 10).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, *size).contiguous()


def draws(*rows):
    return torch.tensor(rows)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 8.0])
def test_quantiles_of_beta(alpha):
    beta = pytest.importorskip("scipy.stats").beta
    quantiles = symmetric_beta_quantiles(alpha)
    np.testing.assert_allclose(quantiles, beta.ppf(np.linspace(0, 0.5, len(quantiles)), alpha, alpha), atol=2e-4)


def test_the_share_is_drawn_from_beta():
    mix = PairMix(2, mixup=0.4)
    drawn = torch.rand(2000, 5, generator=torch.Generator().manual_seed(0))
    _, targets = mix(torch.zeros(2000, 1, 3, 1, 1), torch.tensor([0, 1]).repeat(1000), drawn)
    shares = targets[::2, 0].double()
    assert torch.equal(targets[::2], targets[1::2].flip(1)), "both of a pair keep the same share"
    torch.testing.assert_close(targets.sum(1), torch.ones(2000))
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var(correction=0)) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)


def test_mixup_by_hand():
    mix = PairMix(3, mixup=1.0)  # Beta(1, 1) is uniform: the draw is the share
    drawn = draws([0.9, 0, 0.75, 0, 0], [0] * 5, [0, 0, 0.25, 0, 0], [0] * 5, [0] * 5)
    video, targets = mix(clips(), LABELS, drawn)
    assert video[:, 0, 0, 0, 0].tolist() == pytest.approx([0.125, 0.175, 0.375, 0.325, 0.5], abs=1e-4)
    assert torch.equal(video, video[..., :1, :1].expand_as(video))
    expected = [[0.75, 0, 0.25], [0.25, 0, 0.75], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    torch.testing.assert_close(targets, torch.tensor(expected), atol=1e-4, rtol=0)


def test_cutmix_by_hand():
    # λ = 0.75: a box of half of the height and width, 3 × 4, about (0.5, 0.25) of the frame: rows 2..5, columns 0..4.
    video, targets = PairMix(3, cutmix=1.0)(clips(2), LABELS[:2], draws([0, 0, 0.75, 0.5, 0.25], [0] * 5))
    box = torch.zeros(6, 8, dtype=torch.bool)
    box[2:4, 0:4] = True  # round half to even: 1.5 and 4.5
    assert torch.equal(video[0], torch.where(box, 0.2, 0.1).expand(2, 3, 6, 8))
    assert torch.equal(video[1], torch.where(box, 0.1, 0.2).expand(2, 3, 6, 8))
    share = 1 - 8 / 48
    torch.testing.assert_close(targets, torch.tensor([[share, 0, 1 - share], [1 - share, 0, share]]))


def test_a_box_at_the_border_is_cut_and_counted_as_it_is():
    video, targets = PairMix(3, cutmix=1.0)(clips(2, (8, 8)), LABELS[:2], draws([0, 0, 0.75, 0.0, 0.0], [0] * 5))
    assert float((video[0] == 0.2).float().mean()) == 4 / 64
    assert targets[0].tolist() == [1 - 4 / 64, 0, 4 / 64]


def test_the_probability_and_the_choice_of_both():
    mix = PairMix(3, mixup=1.0, cutmix=1.0, probability=0.5)
    rows = [[0.6, 0, 0.75, 0.5, 0.5], [0.4, 0.4, 0.75, 0.5, 0.5], [0.4, 0.6, 0.75, 0.5, 0.5]]
    kinds = []
    for row in rows:
        video, targets = mix(clips(2), LABELS[:2], draws(row, [0] * 5))
        kinds.append((len(video[0].unique()), len(targets[0].nonzero())))
    assert kinds == [(1, 1), (2, 2), (1, 2)], "nothing, a box, a sum"


def test_a_shared_batch_is_mixed_as_one_process_would():
    mix = PairMix(3, mixup=0.8, cutmix=0.5)
    generator = torch.Generator().manual_seed(0)
    video, drawn = torch.rand(8, 2, 3, 6, 6, generator=generator), torch.rand(8, 5, generator=generator)
    labels = torch.arange(8) % 3
    whole, targets = mix(video.clone(), labels, drawn)
    parts = [mix(*part) for part in zip(video.clone().split(4), labels.split(4), drawn.split(4), strict=True)]
    assert torch.equal(torch.cat([part for part, _ in parts]), whole)
    assert torch.equal(torch.cat([own for _, own in parts]), targets)
    assert not torch.equal(whole, video)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "mixup and cutmix are both 0"),
        ({"mixup": -1.0}, "mixup must be a finite number, 0 or more, got -1"),
        ({"cutmix": float("nan")}, "cutmix must be a finite number"),
        ({"mixup": 1.0, "probability": 1.5}, r"probability must lie in 0\.\.1"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        PairMix(3, **options)
