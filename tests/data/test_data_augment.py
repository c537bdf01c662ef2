import colorsys

import pytest
import torch
import torch.nn.functional as F

from art.data.transforms.augment import CentreCrop, TrainAugment
from art.data.transforms.mix import PairMix
from art.data.transforms.rand_augment import RandAugment


def ramp(b=2, t=3, h=40, w=60):
    """Clips whose red is the column, whose green is the row and whose blue is the clip."""
    video = torch.zeros(b, t, 3, h, w, dtype=torch.uint8)
    video[:, :, 0] = torch.arange(w, dtype=torch.uint8) * 4
    video[:, :, 1] = torch.arange(h, dtype=torch.uint8)[:, None] * 4
    video[:, :, 2] = torch.arange(b, dtype=torch.uint8)[:, None, None, None] * 10
    return video


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([0, 1])


def augmented(augment, video, labels, source=None):
    """What ``augment`` makes of a batch with the draws of a generator."""
    return augment(video, labels, torch.rand(len(video), augment.num_draws, generator=source or generator()))


def test_without_any_choice_it_is_the_frame():
    video = ramp(h=40, w=40)
    out, labels = TrainAugment(40, scale=(1, 1))(video, LABELS)
    torch.testing.assert_close(out, video.float() / 255)
    assert torch.equal(labels, LABELS)
    out, _ = TrainAugment(40, scale=(1, 1), dtype=torch.uint8)(video, LABELS)
    assert torch.equal(out, video)


def test_float_and_uint8_give_the_same():
    video = ramp()
    options = {"brightness": 0.3, "contrast": 0.3, "hue": 20.0}
    first, _ = augmented(TrainAugment(32, **options), video, LABELS)
    second, _ = augmented(TrainAugment(32, **options), video.float() / 255, LABELS)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    third, _ = augmented(TrainAugment(32, **options, dtype=torch.uint8), video, LABELS)
    assert third.dtype == torch.uint8
    torch.testing.assert_close(third.float() / 255, first, atol=0.5 / 255 + 1e-5, rtol=0)


def crop_of(clip):
    """Left, right, top and bottom pixel of the frame that the corners of a cropped ramp show."""
    columns, rows = clip[:, 0] * 255 / 4, clip[:, 1] * 255 / 4
    return columns[:, 0, 0], columns[:, 0, -1], rows[:, 0, 0], rows[:, -1, 0]


def test_crops_are_squares_inside_the_frame_one_for_a_clip():
    augment, source = TrainAugment(16, scale=(0.25, 0.64)), generator()
    shares, lefts, tops = [], [], []
    for _ in range(100):
        out, _ = augmented(augment, ramp(), LABELS, source)
        assert torch.equal(out, out[:, :1].expand_as(out)), "the crop must not change over time"
        for clip in out:
            left, right, top, bottom = (value[0].item() for value in crop_of(clip))
            # The outermost samples lie half an output pixel inside the crop.
            width, height = ((far - near) * 16 / 15 for near, far in ((left, right), (top, bottom)))
            assert width == pytest.approx(height, abs=0.5)  # at the very edge there is no pixel to mix with
            shares.append(width / 40)
            lefts.append(left - width / 32 + 0.5)
            tops.append(top - height / 32 + 0.5)
    assert min(shares) == pytest.approx(0.5, abs=0.02)
    assert max(shares) == pytest.approx(0.8, abs=0.02)
    assert min(lefts) > -0.5
    assert min(tops) > -0.5
    assert max(left + 40 * share for left, share in zip(lefts, shares, strict=True)) <= 60.5
    assert max(lefts) > 25, "the crop must reach the right of a wide frame"
    assert max(tops) > 12


def test_a_crop_is_what_interpolate_makes_of_it():
    video = torch.rand(1, 2, 3, 40, 40)
    augment = TrainAugment(28, scale=(1, 1))
    expected = F.interpolate(video[0], size=(28, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(augment(video, LABELS[:1])[0][0], expected, atol=1e-5, rtol=0)


def test_large_frames_are_shrunk_without_aliasing():
    stripes = (torch.arange(400) % 2).float().expand(1, 1, 3, 400, 400)
    out, _ = TrainAugment(32, scale=(1, 1))(stripes, LABELS[:1])
    torch.testing.assert_close(out[..., 1:-1], torch.full_like(out, 0.5)[..., 1:-1], atol=0.02, rtol=0)


def test_a_flip_swaps_the_label_and_only_a_mirror_allows_it():
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


def colours(augment, video):
    out, _ = augmented(augment, video, torch.zeros(len(video), dtype=torch.int64))
    assert torch.equal(out, out[:, :1].expand_as(out)), "the colour must not change over time"
    return out[:, 0, :, 0, 0]


def test_brightness_is_a_factor():
    factors = colours(TrainAugment(8, brightness=0.4), flat(0.4, 0.2, 0.5)) / torch.tensor([0.4, 0.2, 0.5])
    torch.testing.assert_close(factors, factors[:, :1].expand(64, 3))
    assert 0.6 <= factors.min() < 0.65
    assert 1.3 < factors.max() <= 1.4


def test_contrast_is_about_the_mean_of_the_clip():
    video = flat(0.5, 0.5, 0.5).clone()
    video[..., :4], video[..., 4:] = 0.4, 0.6
    out, _ = augmented(TrainAugment(8, scale=(1, 1), contrast=0.5), video, torch.zeros(64).long())
    torch.testing.assert_close(out.mean(dim=(1, 2, 3, 4)), torch.full((64,), 0.5))
    spread = (out[..., -1] - out[..., 0])[:, 0, 0, 0] / 0.2
    assert 0.5 <= spread.min() < 0.55
    assert 1.45 < spread.max() <= 1.5


def test_saturation_moves_to_and_from_grey():
    out = colours(TrainAugment(8, saturation=1.0), flat(0.5, 0.3, 0.4)) - 0.4
    torch.testing.assert_close(out[:, 0], -out[:, 1])
    torch.testing.assert_close(out[:, 2], torch.zeros(64), atol=1e-6, rtol=0)
    assert out[:, 0].min() < 0.02
    assert out[:, 0].max() > 0.18


def test_hue_turns_the_colour_circle_and_leaves_grey_alone():
    out = colours(TrainAugment(8, hue=180.0), flat(0.5, 0.4, 0.4))
    torch.testing.assert_close(out.mean(1), torch.full((64,), 1.3 / 3))
    hues = sorted(colorsys.rgb_to_hsv(*colour)[0] for colour in out.tolist())
    gaps = [b - a for a, b in zip(hues, [*hues[1:], hues[0] + 1], strict=True)]
    assert max(gaps) < 0.15
    small = colours(TrainAugment(8, hue=10.0), flat(0.5, 0.4, 0.4))
    turned = [colorsys.rgb_to_hsv(*colour)[0] for colour in small.tolist()]
    assert all(min(hue, 1 - hue) < 12 / 360 for hue in turned)
    torch.testing.assert_close(colours(TrainAugment(8, hue=180.0), flat(0.3, 0.3, 0.3)), torch.full((64, 3), 0.3))


def test_channels_change_places():
    out = colours(TrainAugment(8, permute_channels=1.0), flat(0.1, 0.2, 0.3))
    seen = {tuple(round(value, 4) for value in colour) for colour in out.tolist()}
    assert len(seen) == 6
    assert all(sorted(colour) == [0.1, 0.2, 0.3] for colour in seen)


def test_results_stay_in_range():
    augment = TrainAugment(8, brightness=1.0, contrast=1.0, saturation=1.0, hue=180.0)
    out, _ = augmented(augment, torch.rand(64, 2, 3, 8, 8), torch.zeros(64, dtype=torch.int64))
    assert out.min() >= 0
    assert out.max() <= 1


EVERYTHING = {
    "aspect": (0.7, 1.4), "mirror": (1, 0), "brightness": 0.5, "hue": 90.0, "contrast": 0.5, "saturation": 0.5,
    "permute_channels": 0.5, "rand_augment": RandAugment(2, 9),
}  # fmt: skip


def test_the_draws_decide():
    augment = TrainAugment(16, **EVERYTHING)
    results = [augmented(augment, ramp(), LABELS, generator(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    before = torch.get_rng_state()
    augment(ramp(), LABELS, torch.rand(2, augment.num_draws, generator=generator()))
    assert torch.equal(torch.get_rng_state(), before), "given draws are all the randomness there is"
    torch.manual_seed(1)
    first = augment(ramp(), LABELS)[0]
    torch.manual_seed(1)
    assert torch.equal(augment(ramp(), LABELS)[0], first), "without, they are the global generator's"
    with pytest.raises(ValueError, match=r"draws has shape \[2, 3\], expected \[2, 15\]"):
        augment(ramp(), LABELS, torch.rand(2, 3))


@pytest.mark.parametrize("size", [(40, 60), (90, 70)], ids=["as it is", "shrunk first"])
def test_a_clip_becomes_the_same_in_any_batch(size):
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


def test_the_aspect_ratio_is_drawn_evenly_in_its_logarithm():
    augment, source = TrainAugment(16, scale=(0.25, 0.25), aspect=(0.5, 2.0)), generator()
    ratios = []
    for _ in range(150):
        out, _ = augmented(augment, ramp(h=60, w=60), LABELS, source)
        for clip in out:
            left, right, top, bottom = (value[0].item() for value in crop_of(clip))
            width, height = ((far - near) * 16 / 15 for near, far in ((left, right), (top, bottom)))
            assert width * height == pytest.approx(0.25 * 60 * 60, rel=0.05)
            ratios.append(width / height)
    assert 0.48 < min(ratios) < 0.55
    assert 1.85 < max(ratios) < 2.1
    assert sorted(ratios)[len(ratios) // 2] == pytest.approx(1, abs=0.15)


def test_a_crop_that_would_reach_out_of_the_frame_is_cut():
    out, _ = TrainAugment(16, scale=(1, 1), aspect=(4.0, 4.0))(ramp(h=40, w=60), LABELS, torch.full((2, 11), 0.5))
    left, right, top, bottom = (value[0].item() for value in crop_of(out[0]))
    assert (right - left) * 16 / 15 == pytest.approx(60, abs=0.5)
    assert (bottom - top) * 16 / 15 == pytest.approx(20, abs=0.5)


def test_nothing_is_asked_of_the_device():
    """On "meta" there are no values: what would have to wait for some is an error there."""
    augment = TrainAugment(24, **EVERYTHING)
    draws = torch.cat([torch.rand(14, augment.num_draws - 4), torch.rand(14, 4)], dim=1)
    draws[:, -4] = (torch.arange(14) + 0.5) / 14  # each operation of RandAugment once
    video = torch.empty(14, 3, 3, 90, 70, dtype=torch.uint8, device="meta")
    labels = torch.empty(14, dtype=torch.int64, device="meta")
    out, mirrored = augment(video, labels, draws)
    assert out.shape == (14, 3, 3, 24, 24) and out.dtype == torch.float32 and out.device.type == "meta"
    mixed, shares = PairMix(2, mixup=1.0, cutmix=1.0)(out, mirrored, torch.rand(14, 5))
    assert mixed.device.type == shares.device.type == "meta" and shares.shape == (14, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_the_same_and_waits_for_nothing():
    augment = TrainAugment(24, **EVERYTHING)
    video = torch.randint(256, (8, 3, 3, 90, 70), dtype=torch.uint8, generator=generator())
    labels, draws = torch.arange(8) % 2, torch.rand(8, augment.num_draws, generator=generator(1))
    expected, mirrored = augment(video, labels, draws)
    there, own = video.cuda(), labels.cuda()
    try:
        torch.cuda.set_sync_debug_mode("error")
        out, answered = augment(there, own, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(answered.cpu(), mirrored)
    difference = (out.cpu() - expected).abs()
    assert difference.median() < 1e-4, "rounding may carry a value over a step of posterize or equalize"
    parts = zip(there.split(2), own.split(2), draws.split(2), strict=True)
    assert torch.equal(torch.cat([augment(*part)[0] for part in parts]), out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"scale": (0.0, 1.0)}, "scale must be a least and a greatest share"),
        ({"scale": (0.8, 0.5)}, "scale must"),
        ({"scale": (0.5,)}, "scale must"),
        ({"aspect": (1.5, 1.0)}, "aspect must be a least and a greatest ratio"),
        ({"aspect": (0.0, 1.0)}, "aspect must"),
        ({"flip": 1.5}, "flip must lie in 0..1, got 1.5"),
        ({"brightness": -0.1}, "brightness must lie in 0..1"),
        ({"hue": 360.0}, "hue must lie in 0..180 degrees, got 360.0"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.uint8"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        TrainAugment(**{"size": 16, **options})


@pytest.mark.parametrize("transform", [lambda v: TrainAugment(16)(v, LABELS), CentreCrop(16)])
def test_impossible_videos(transform):
    with pytest.raises(ValueError, match=r"video must have the shape .* got \[3, 16, 16\]"):
        transform(torch.zeros(3, 16, 16))
    with pytest.raises(TypeError, match=r"got torch.int64"):
        transform(torch.zeros(2, 4, 3, 16, 16, dtype=torch.int64))


def test_centre_crop_of_the_right_size_is_the_middle_itself():
    video = ramp(h=40, w=61)
    assert torch.equal(CentreCrop(40)(video), video[..., 10:50])
    assert torch.equal(CentreCrop(20, share=0.5)(video), video[..., 10:30, 20:40])


@pytest.mark.parametrize(("h", "w"), [(30, 30), (31, 44), (57, 30)])
def test_centre_crop_tells_where_points_are(h, w):
    x, y = w // 2 + 3, h // 2 - 4
    video = torch.zeros(1, 1, 3, h, w)
    video[..., y, x] = 1.0
    crop = CentreCrop(90, share=0.9)
    found = crop(video)[0, 0, 0]
    points = torch.tensor([[(x + 0.5) / w, (y + 0.5) / h], [0.0, 0.0]])
    moved = crop.locate(points, h, w)
    rows, columns = found.sum(1), found.sum(0)
    centres = (torch.arange(90) + 0.5) / 90
    seen = torch.stack([(columns * centres).sum() / columns.sum(), (rows * centres).sum() / rows.sum()])
    torch.testing.assert_close(moved[0], seen, atol=2e-3, rtol=0)
    assert (moved[1] < 0).all(), "the corner of the frame is cut off"


@pytest.mark.parametrize("size", [16, 40, 56])
def test_centre_crop_scales(size):
    video = ramp(h=30, w=40)
    out = CentreCrop(size)(video)
    assert out.shape == (2, 3, 3, size, size)
    assert out.dtype == torch.uint8
    inner = slice(size // 4, -size // 4)
    expected = (torch.arange(size) + 0.5) * 30 / size - 0.5 + 5
    torch.testing.assert_close(out[0, 0, 0, 0, inner].float(), (expected * 4)[inner], atol=0.6, rtol=0)
    as_float = CentreCrop(size)(video.float() / 255)
    torch.testing.assert_close(as_float, out.float() / 255, atol=0.5 / 255 + 1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 8, "share": 0.0}, {"size": 8, "share": 1.1}])
def test_centre_crop_options(options):
    with pytest.raises(ValueError, match=r"(size|share) must"):
        CentreCrop(**options)
