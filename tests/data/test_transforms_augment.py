"""Augmentation for training, pair mixing, and center crops."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from art.data.transforms.augment import CenterCrop, PairMix, TrainAugment, symmetric_beta_quantiles
from art.data.transforms.rand_augment import RandAugment


def ramp(b=2, t=3, h=40, w=60):
    """Clips with the column in red, the row in green and the clip in blue."""
    video = torch.zeros(b, t, 3, h, w, dtype=torch.uint8)
    video[:, :, 0] = torch.arange(w, dtype=torch.uint8) * 4
    video[:, :, 1] = torch.arange(h, dtype=torch.uint8)[:, None] * 4
    video[:, :, 2] = torch.arange(b, dtype=torch.uint8)[:, None, None, None] * 10
    return video


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([0, 1])


def augmented(augment, video, labels, source=None):
    """Augment a batch with draws from a generator."""
    return augment(video, labels, torch.rand(len(video), augment.num_draws, generator=source or generator()))


def test_identity():
    video = ramp(h=40, w=40)
    out, labels = TrainAugment(40, scale=(1, 1))(video, LABELS)
    torch.testing.assert_close(out, video.float() / 255)
    assert torch.equal(labels, LABELS)
    out, _ = TrainAugment(40, scale=(1, 1), dtype=torch.uint8)(video, LABELS)
    assert torch.equal(out, video)


def test_float_and_uint8_agree():
    video = ramp()
    options = {"brightness": 0.3, "contrast": 0.3, "hue": 20.0}
    first, _ = augmented(TrainAugment(32, **options), video, LABELS)
    second, _ = augmented(TrainAugment(32, **options), video.float() / 255, LABELS)
    third, _ = augmented(TrainAugment(32, **options, dtype=torch.uint8), video, LABELS)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert third.dtype == torch.uint8
    torch.testing.assert_close(third.float() / 255, first, atol=0.5 / 255 + 1e-5, rtol=0)


def crop_of(clip):
    """Left and top pixel of the frame that a cropped ramp shows, and the width and height of the crop."""
    columns, rows = clip[0, 0] * 255 / 4, clip[0, 1] * 255 / 4
    left, right, top, bottom = (float(v) for v in (columns[0, 0], columns[0, -1], rows[0, 0], rows[-1, 0]))
    # The outermost of 16 samples are half an output pixel inside the crop.
    return left, top, (right - left) * 16 / 15, (bottom - top) * 16 / 15


def test_crops_are_squares_in_the_frame():
    augment, source = TrainAugment(16, scale=(0.25, 0.64)), generator()
    shares, lefts, tops = [], [], []
    for _ in range(100):
        out, _ = augmented(augment, ramp(), LABELS, source)
        assert torch.equal(out, out[:, :1].expand_as(out)), "the crop must be constant over time"
        for clip in out:
            left, top, width, height = crop_of(clip)
            assert width == pytest.approx(height, abs=0.5)  # the edge has no neighbor to interpolate with
            shares.append(width / 40)
            lefts.append(left - width / 32 + 0.5)
            tops.append(top - height / 32 + 0.5)
    assert (min(shares), max(shares)) == pytest.approx((0.5, 0.8), abs=0.02)
    assert min(lefts + tops) > -0.5
    assert max(left + 40 * share for left, share in zip(lefts, shares, strict=True)) <= 60.5
    assert max(lefts) > 25, "crops must reach the right of a wide frame"
    assert max(tops) > 12


def test_crop_equals_interpolate():
    video = torch.rand(1, 2, 3, 40, 40)
    augment = TrainAugment(28, scale=(1, 1))
    expected = F.interpolate(video[0], size=(28, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(augment(video, LABELS[:1])[0][0], expected, atol=1e-5, rtol=0)


def test_downscaling_without_aliasing():
    stripes = (torch.arange(400) % 2).float().expand(1, 1, 3, 400, 400)
    out, _ = TrainAugment(32, scale=(1, 1))(stripes, LABELS[:1])
    torch.testing.assert_close(out[..., 1:-1], torch.full_like(out, 0.5)[..., 1:-1], atol=0.02, rtol=0)


def test_flip_changes_the_label_and_requires_a_mirror():
    video, labels = ramp(b=64, h=40, w=40), torch.arange(64) % 3
    out, swapped = augmented(TrainAugment(40, scale=(1, 1), mirror=(1, 0, 2)), video, labels)
    original = video.float() / 255
    flipped = [
        bool(torch.allclose(clip, frames.flip(-1), atol=1e-5)) for clip, frames in zip(out, original, strict=True)
    ]
    assert 16 < sum(flipped) < 48
    for clip, frames, was_flipped, before, after in zip(out, original, flipped, labels, swapped, strict=True):
        assert was_flipped or torch.allclose(clip, frames, atol=1e-5)
        assert after == ((1, 0, 2)[before] if was_flipped else before)
    out, same = TrainAugment(40, scale=(1, 1), flip=1.0)(video, labels)
    torch.testing.assert_close(out, original)
    assert torch.equal(same, labels)


def flat(*rgb):
    return torch.tensor(rgb).view(1, 1, 3, 1, 1).expand(64, 2, 3, 8, 8).contiguous()


def colors(augment, video):
    out, _ = augmented(augment, video, torch.zeros(len(video), dtype=torch.int64))
    assert torch.equal(out, out[:, :1].expand_as(out)), "the color must not change over time"
    return out[:, 0, :, 0, 0]


def test_brightness_is_a_factor_and_results_stay_in_range():
    everything = TrainAugment(8, brightness=1.0, contrast=1.0, saturation=1.0, hue=180.0)
    out, _ = augmented(everything, torch.rand(64, 2, 3, 8, 8), torch.zeros(64, dtype=torch.int64))
    assert out.min() >= 0 and out.max() <= 1
    factors = colors(TrainAugment(8, brightness=0.4), flat(0.4, 0.2, 0.5)) / torch.tensor([0.4, 0.2, 0.5])
    torch.testing.assert_close(factors, factors[:, :1].expand(64, 3))
    assert 0.6 <= factors.min() < 0.65
    assert 1.3 < factors.max() <= 1.4


def test_contrast_keeps_the_mean_of_the_clip():
    video = flat(0.5, 0.5, 0.5).clone()
    video[..., :4], video[..., 4:] = 0.4, 0.6
    out, _ = augmented(TrainAugment(8, scale=(1, 1), contrast=0.5), video, torch.zeros(64).long())
    torch.testing.assert_close(out.mean(dim=(1, 2, 3, 4)), torch.full((64,), 0.5))
    spread = (out[..., -1] - out[..., 0])[:, 0, 0, 0] / 0.2
    assert 0.5 <= spread.min() < 0.55
    assert 1.45 < spread.max() <= 1.5


def test_saturation():
    out = colors(TrainAugment(8, saturation=1.0), flat(0.5, 0.3, 0.4)) - 0.4
    torch.testing.assert_close(out[:, 0], -out[:, 1])
    torch.testing.assert_close(out[:, 2], torch.zeros(64), atol=1e-6, rtol=0)
    assert out[:, 0].min() < 0.02
    assert out[:, 0].max() > 0.18


def test_hue_rotation_keeps_gray():
    def hues(degrees):
        out = colors(TrainAugment(8, hue=degrees), flat(0.5, 0.4, 0.4))
        torch.testing.assert_close(out.mean(1), torch.full((64,), 1.3 / 3))
        return sorted(colorsys.rgb_to_hsv(*color)[0] for color in out.tolist())

    assert max(b - a for a, b in itertools.pairwise([*hues(180.0), hues(180.0)[0] + 1])) < 0.15, "every hue is reached"
    assert all(min(hue, 1 - hue) < 12 / 360 for hue in hues(10.0))
    torch.testing.assert_close(colors(TrainAugment(8, hue=180.0), flat(0.3, 0.3, 0.3)), torch.full((64, 3), 0.3))


def test_channel_permutation():
    out = colors(TrainAugment(8, permute_channels=1.0), flat(0.1, 0.2, 0.3))
    seen = {tuple(round(value, 4) for value in color) for color in out.tolist()}
    assert len(seen) == 6
    assert all(sorted(color) == [0.1, 0.2, 0.3] for color in seen)


EVERYTHING = {
    "aspect": (0.7, 1.4), "mirror": (1, 0), "brightness": 0.5, "hue": 90.0, "contrast": 0.5, "saturation": 0.5,
    "permute_channels": 0.5, "rand_augment": RandAugment(2, 9),
}  # fmt: skip


def test_result_depends_on_the_draws_only():
    augment = TrainAugment(16, **EVERYTHING)
    results = [augmented(augment, ramp(), LABELS, generator(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    before = torch.get_rng_state()
    augment(ramp(), LABELS, torch.rand(2, augment.num_draws, generator=generator()))
    assert torch.equal(torch.get_rng_state(), before), "given draws are the only randomness"
    torch.manual_seed(1)
    first = augment(ramp(), LABELS)[0]
    torch.manual_seed(1)
    assert torch.equal(augment(ramp(), LABELS)[0], first), "without draws, the global generator is used"
    with pytest.raises(ValueError, match=r"draws has shape \[2, 3\], expected \[2, 15\]"):
        augment(ramp(), LABELS, torch.rand(2, 3))


@pytest.mark.parametrize("size", [(40, 60), (90, 70)], ids=["as it is", "shrunk first"])
def test_result_is_independent_of_the_batch(size):
    augment = TrainAugment(24, **EVERYTHING)
    video = torch.randint(256, (8, 3, 3, *size), dtype=torch.uint8, generator=generator())
    labels, draws = torch.arange(8) % 2, torch.rand(8, augment.num_draws, generator=generator(1))
    whole, mirrored = augment(video, labels, draws)
    for parts in ([4, 4], [1, 2, 5]):
        split = zip(video.split(parts), labels.split(parts), draws.split(parts), strict=True)
        videos, own = zip(*(augment(*part) for part in split), strict=True)
        assert torch.equal(torch.cat(videos), whole), "bit for bit"
        assert torch.equal(torch.cat(own), mirrored)
    order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    assert torch.equal(augment(video[order], labels[order], draws[order])[0], whole[order])


def test_aspect_ratio_is_log_uniform():
    augment, source = TrainAugment(16, scale=(0.25, 0.25), aspect=(0.5, 2.0)), generator()
    ratios = []
    for _ in range(150):
        out, _ = augmented(augment, ramp(h=60, w=60), LABELS, source)
        for clip in out:
            _, _, width, height = crop_of(clip)
            assert width * height == pytest.approx(0.25 * 60 * 60, rel=0.05)
            ratios.append(width / height)
    assert 0.48 < min(ratios) < 0.55
    assert 1.85 < max(ratios) < 2.1
    assert sorted(ratios)[len(ratios) // 2] == pytest.approx(1, abs=0.15)


def test_crop_is_limited_to_the_frame():
    out, _ = TrainAugment(16, scale=(1, 1), aspect=(4.0, 4.0))(ramp(h=40, w=60), LABELS, torch.full((2, 11), 0.5))
    assert crop_of(out[0])[2:] == pytest.approx((60, 20), abs=0.5)


def test_augmentation_does_not_read_values():
    """Meta tensors have no values, so reading one is an error."""
    augment = TrainAugment(24, **EVERYTHING)
    draws = torch.cat([torch.rand(14, augment.num_draws - 4), torch.rand(14, 4)], dim=1)
    draws[:, -4] = (torch.arange(14) + 0.5) / 14  # each operation of RandAugment once
    video = torch.empty(14, 3, 3, 90, 70, dtype=torch.uint8, device="meta")
    labels = torch.empty(14, dtype=torch.int64, device="meta")
    out, mirrored = augment(video, labels, draws)
    assert out.shape == (14, 3, 3, 24, 24) and out.dtype == torch.float32 and out.device.type == "meta"
    mixed, shares = PairMix(2, mixup=1.0, cutmix=1.0)(out, mirrored, torch.rand(14, 5))
    assert mixed.device.type == shares.device.type == "meta" and shares.shape == (14, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_and_does_not_synchronize():
    augment = TrainAugment(24, **EVERYTHING)
    video = torch.randint(256, (8, 3, 3, 90, 70), dtype=torch.uint8, generator=generator())
    labels, draws = torch.arange(8) % 2, torch.rand(8, augment.num_draws, generator=generator(1))
    expected, mirrored = augment(video, labels, draws)
    on_gpu, gpu_labels = video.cuda(), labels.cuda()
    try:
        torch.cuda.set_sync_debug_mode("error")
        out, out_labels = augment(on_gpu, gpu_labels, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out_labels.cpu(), mirrored)
    difference = (out.cpu() - expected).abs()
    assert difference.median() < 1e-4, "rounding may move a value across a step of posterize or equalize"
    parts = zip(on_gpu.split(2), gpu_labels.split(2), draws.split(2), strict=True)
    assert torch.equal(torch.cat([augment(*part)[0] for part in parts]), out)


@pytest.mark.parametrize("transform", [lambda v: TrainAugment(16)(v, LABELS), CenterCrop(16)])
def test_invalid_videos(transform):
    with pytest.raises(ValueError, match=r"video must have the shape .* got \[3, 16, 16\]"):
        transform(torch.zeros(3, 16, 16))
    with pytest.raises(TypeError, match=r"got torch.int64"):
        transform(torch.zeros(2, 4, 3, 16, 16, dtype=torch.int64))


def test_center_crop_without_resizing():
    video = ramp(h=40, w=61)
    assert torch.equal(CenterCrop(40)(video), video[..., 10:50])
    assert torch.equal(CenterCrop(20, fraction=0.5)(video), video[..., 10:30, 20:40])


@pytest.mark.parametrize(("h", "w"), [(30, 30), (31, 44), (57, 30)])
def test_center_crop_locates_points(h, w):
    x, y = w // 2 + 3, h // 2 - 4
    video = torch.zeros(1, 1, 3, h, w)
    video[..., y, x] = 1.0
    crop = CenterCrop(90, fraction=0.9)
    found = crop(video)[0, 0, 0]
    points = torch.tensor([[(x + 0.5) / w, (y + 0.5) / h], [0.0, 0.0]])
    moved = crop.locate(points, h, w)
    rows, columns = found.sum(1), found.sum(0)
    centers = (torch.arange(90) + 0.5) / 90
    seen = torch.stack([(columns * centers).sum() / columns.sum(), (rows * centers).sum() / rows.sum()])
    torch.testing.assert_close(moved[0], seen, atol=2e-3, rtol=0)
    assert (moved[1] < 0).all(), "the corner of the frame is outside the crop"


@pytest.mark.parametrize("size", [16, 40, 56])
def test_center_crop_resizes(size):
    video = ramp(h=30, w=40)
    out = CenterCrop(size)(video)
    assert out.shape == (2, 3, 3, size, size)
    assert out.dtype == torch.uint8
    inner = slice(size // 4, -size // 4)
    expected = (torch.arange(size) + 0.5) * 30 / size - 0.5 + 5
    torch.testing.assert_close(out[0, 0, 0, 0, inner].float(), (expected * 4)[inner], atol=0.6, rtol=0)
    as_float = CenterCrop(size)(video.float() / 255)
    torch.testing.assert_close(as_float, out.float() / 255, atol=0.5 / 255 + 1e-5, rtol=0)


MIX_LABELS = torch.tensor([0, 2, 1, 1, 2])


def constant_clips(count=5, size=(6, 8)):
    """Clips with one constant value each: 0.1, 0.2, …"""
    return (torch.arange(1, count + 1) / 10).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, *size).contiguous()


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 8.0])
def test_beta_quantiles(alpha):
    beta = pytest.importorskip("scipy.stats").beta
    quantiles = symmetric_beta_quantiles(alpha)
    np.testing.assert_allclose(quantiles, beta.ppf(np.linspace(0, 0.5, len(quantiles)), alpha, alpha), atol=2e-4)


def test_mixing_fraction_is_beta_distributed():
    mix = PairMix(2, mixup=0.4)
    drawn = torch.rand(2000, 5, generator=torch.Generator().manual_seed(0))
    _, targets = mix(torch.zeros(2000, 1, 3, 1, 1), torch.tensor([0, 1]).repeat(1000), drawn)
    shares = targets[::2, 0].double()
    assert torch.equal(targets[::2], targets[1::2].flip(1)), "both clips of a pair keep the same fraction"
    torch.testing.assert_close(targets.sum(1), torch.ones(2000))
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var(correction=0)) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)


def test_mixup():
    mix = PairMix(3, mixup=1.0)  # Beta(1, 1) is uniform: λ is the draw
    drawn = torch.tensor([[0.9, 0, 0.75, 0, 0], [0] * 5, [0, 0, 0.25, 0, 0], [0] * 5, [0] * 5])
    video, targets = mix(constant_clips(), MIX_LABELS, drawn)
    assert video[:, 0, 0, 0, 0].tolist() == pytest.approx([0.125, 0.175, 0.375, 0.325, 0.5], abs=1e-4)
    assert torch.equal(video, video[..., :1, :1].expand_as(video))
    expected = [[0.75, 0, 0.25], [0.25, 0, 0.75], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    torch.testing.assert_close(targets, torch.tensor(expected), atol=1e-4, rtol=0)


def test_cutmix():
    # λ = 0.75: a box of half of the height and width, 3 × 4, about (0.5, 0.25) of the frame: rows 2..5, columns 0..4.
    draws = torch.tensor([[0, 0, 0.75, 0.5, 0.25], [0] * 5])
    video, targets = PairMix(3, cutmix=1.0)(constant_clips(2), MIX_LABELS[:2], draws)
    box = torch.zeros(6, 8, dtype=torch.bool)
    box[2:4, 0:4] = True  # round half to even: 1.5 and 4.5
    assert torch.equal(video[0], torch.where(box, 0.2, 0.1).expand(2, 3, 6, 8))
    assert torch.equal(video[1], torch.where(box, 0.1, 0.2).expand(2, 3, 6, 8))
    share = 1 - 8 / 48
    torch.testing.assert_close(targets, torch.tensor([[share, 0, 1 - share], [1 - share, 0, share]]))
    draws = torch.tensor([[0, 0, 0.75, 0.0, 0.0], [0] * 5])  # at the border
    video, targets = PairMix(3, cutmix=1.0)(constant_clips(2, (8, 8)), MIX_LABELS[:2], draws)
    assert float((video[0] == 0.2).float().mean()) == 4 / 64
    assert targets[0].tolist() == [1 - 4 / 64, 0, 4 / 64]


def test_mix_probability():
    mix = PairMix(3, mixup=1.0, cutmix=1.0, probability=0.5)
    rows = [[0.6, 0, 0.75, 0.5, 0.5], [0.4, 0.4, 0.75, 0.5, 0.5], [0.4, 0.6, 0.75, 0.5, 0.5]]
    kinds = []
    for row in rows:
        video, targets = mix(constant_clips(2), MIX_LABELS[:2], torch.tensor([row, [0] * 5]))
        kinds.append((len(video[0].unique()), len(targets[0].nonzero())))
    assert kinds == [(1, 1), (2, 2), (1, 2)], "unchanged, CutMix, mixup"


def test_mixing_a_distributed_batch():
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
    ("transform", "options", "message"),
    [
        (TrainAugment, {"size": 0}, "size must be at least 1 pixel, got 0"),
        (TrainAugment, {"scale": (0.0, 1.0)}, "scale must be \\(minimum, maximum\\)"),
        (TrainAugment, {"scale": (0.8, 0.5)}, "scale must"),
        (TrainAugment, {"scale": (0.5,)}, "scale must"),
        (TrainAugment, {"aspect": (1.5, 1.0)}, "aspect must be \\(minimum, maximum\\)"),
        (TrainAugment, {"aspect": (0.0, 1.0)}, "aspect must"),
        (TrainAugment, {"flip": 1.5}, "flip must be in 0..1, got 1.5"),
        (TrainAugment, {"brightness": -0.1}, "brightness must be in 0..1"),
        (TrainAugment, {"hue": 360.0}, "hue must be in 0..180 degrees, got 360.0"),
        (TrainAugment, {"dtype": torch.float16}, "dtype must be torch.float32 or torch.uint8"),
        (CenterCrop, {"size": 0}, "size must be at least 1 pixel, got 0"),
        (CenterCrop, {"fraction": 0.0}, "fraction must"),
        (CenterCrop, {"fraction": 1.1}, "fraction must"),
        (PairMix, {}, "mixup and cutmix are both 0"),
        (PairMix, {"mixup": -1.0}, "mixup must be a finite number, 0 or more, got -1"),
        (PairMix, {"cutmix": float("nan")}, "cutmix must be a finite number"),
        (PairMix, {"mixup": 1.0, "probability": 1.5}, r"probability must be in 0\.\.1"),
    ],
)
def test_invalid_options(transform, options, message):
    with pytest.raises(ValueError, match=message):
        transform(**{"num_classes" if transform is PairMix else "size": 3, **options})
