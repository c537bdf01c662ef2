"""The operations of RandAugment."""

import pytest
import torch

from art.data.transforms.rand_augment import OPERATIONS, RandAugment


def noise(t=3, h=12, w=16, seed=0):
    return torch.rand(t, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 200 + 20


def apply(name, clip, strength):
    return OPERATIONS[name](clip.clone(), strength)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("auto_contrast", "equalize")])
def test_no_effect_at_zero_strength(name):
    clip = noise()
    torch.testing.assert_close(apply(name, clip, 0.0), clip, atol=1e-3, rtol=0)
    if name != "identity":
        assert (apply(name, clip, 1.0) - clip).abs().mean() > 2


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.7, 1.0])
def test_range_and_consistency_over_frames(name, strength):
    clip = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(1)).mul(255).expand(4, -1, -1, -1)
    out = apply(name, clip, strength)
    assert out.shape == clip.shape and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 255
    assert torch.equal(out, out[:1].expand_as(out))


def test_auto_contrast():
    clip = torch.full((2, 3, 2, 2), 100.0)
    clip[0, 0, 0, 0], clip[1, 0, 1, 1] = 50.0, 150.0
    out = apply("auto_contrast", clip, 1.0)
    assert out[:, 0].flatten().tolist() == pytest.approx([0, *[127.5] * 6, 255])
    assert torch.equal(out[:, 1:], clip[:, 1:]), "a constant channel is unchanged"


def test_equalize():
    clip = torch.full((2, 3, 4, 4), 10.0)
    clip[0, 0] = torch.arange(16.0).view(4, 4) + 30  # 16 darker values, one of each, and 16 pixels of the brightest
    clip[1, 0] = 60.0
    out = apply("equalize", clip, 1.0)
    expected = [*(255 * i / 31 for i in range(16)), *[255.0] * 16]
    assert out[:, 0].flatten().tolist() == pytest.approx(expected)
    assert torch.equal(out[:, 1:], clip[:, 1:])
    even = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    torch.testing.assert_close(apply("equalize", even, 1.0), even)


def test_solarize_and_posterize():
    clip = torch.tensor([0.0, 127.0, 128.0, 200.0, 255.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert apply("solarize", clip, 0.5)[0, 0, 0].tolist() == [0, 127, 127, 55, 0]
    assert apply("solarize", clip, -1.0)[0, 0, 0].tolist() == [255, 128, 127, 55, 0]
    assert apply("posterize", clip, 1.0)[0, 0, 0].tolist() == [0, 112, 128, 192, 240]
    assert apply("posterize", clip, -0.5)[0, 0, 0].tolist() == [0, 124, 128, 200, 252]


def test_blends():
    clip = torch.tensor([100.0, 60.0, 20.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4).contiguous()
    gray = 0.299 * 100 + 0.587 * 60 + 0.114 * 20
    assert apply("brightness", clip, 1.0)[0, :, 0, 0].tolist() == pytest.approx([190, 114, 38])
    assert apply("brightness", clip, -0.5)[0, :, 0, 0].tolist() == pytest.approx([55, 33, 11])
    color = apply("color", clip, -1.0)[0, :, 0, 0].tolist()
    assert color == pytest.approx([gray + 0.1 * (value - gray) for value in (100, 60, 20)])
    clip[1] = 200.0
    mean = (gray + 200) / 2
    contrast = apply("contrast", clip, -0.5)
    assert contrast[0, :, 0, 0].tolist() == pytest.approx([mean + 0.55 * (v - mean) for v in (100, 60, 20)], rel=1e-4)


def test_sharpness():
    clip = torch.zeros(1, 3, 5, 5)
    clip[..., 2, 2] = 130.0
    out = apply("sharpness", clip, -1.0)
    assert out[0, 0, 2, 2] == pytest.approx(0.9 * 50 + 0.1 * 130)
    assert out[0, 0, 1, 2] == pytest.approx(0.9 * 10)
    assert out[0, 0, 0, 2] == 0, "the border is not smoothed"
    assert torch.equal(apply("sharpness", clip[..., :2, :], 1.0), clip[..., :2, :])


def spot(name, strength, *, row=8, column=8, size=17):
    """Row and column of a bright pixel of a gray clip after an operation."""
    clip = torch.full((1, 3, size, size), 128.0)
    clip[..., row, column] = 255.0
    bright = apply(name, clip, strength)[0, 0] - 128
    places = torch.arange(float(size))
    return (bright.sum(1) * places).sum() / bright.sum(), (bright.sum(0) * places).sum() / bright.sum()


def test_geometry():
    assert [round(float(v), 2) for v in spot("rotate", 1.0)] == [8, 8], "about the center"
    row, column = spot("rotate", 1.0, column=14)
    assert (float(row) - 8, float(column) - 8) == pytest.approx((-3, 6 * 3**0.5 / 2), abs=0.1)
    assert float(spot("translate_x", 1.0)[1]) == pytest.approx(8 - 0.45 * 17, abs=0.01)
    assert float(spot("translate_y", -0.5)[0]) == pytest.approx(8 + 0.225 * 17, abs=0.01)
    assert float(spot("shear_x", 1.0, row=12)[1]) == pytest.approx(8 - 0.3 * 4, abs=0.01)
    assert float(spot("shear_y", 1.0, column=12)[0]) == pytest.approx(8 - 0.3 * 4, abs=0.01)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_outside_is_gray(name):
    out = apply(name, torch.zeros(1, 3, 32, 32), 1.0)
    assert out.max() == pytest.approx(128) and out.min() == 0
    assert torch.equal(apply(name, torch.full((1, 3, 32, 32), 128.0), 1.0), torch.full((1, 3, 32, 32), 128.0))


def test_operations_are_applied_in_order():
    names, clip = list(OPERATIONS), noise()
    which = [(names.index(name) + 0.5) / 14 for name in ("brightness", "rotate")]
    out = RandAugment(2, 5)(clip, [which[0], 0.2, which[1], 0.7])
    torch.testing.assert_close(out, apply("rotate", apply("brightness", clip, 0.5), -0.5))
    assert RandAugment(3, 5).num_draws == 6


def test_invalid_arguments_of_rand_augment():
    with pytest.raises(ValueError, match="number must be at least 1, got 0"):
        RandAugment(0, 5)
    with pytest.raises(ValueError, match=r"magnitude must be in 0\.\.10"):
        RandAugment(2, 11)
