import numpy as np
import pytest
import torch

from art.eval.report.response_maps import map_peak, overlay, prominence, upsample
from art.eval.report.style import TRACKLET_COLOURS, tracklet_colour


def test_peak_is_the_centre_of_the_strongest_cell():
    maps = torch.zeros(1, 2, 3, 4)
    maps[0, 0, 2, 1] = 1.0
    maps[0, 1, 0, 3] = 0.5
    expected = torch.tensor([[[1.5 / 4, 2.5 / 3], [3.5 / 4, 0.5 / 3]]])
    torch.testing.assert_close(map_peak(maps), expected)


def test_peak_of_equal_cells_is_the_first_in_reading_order():
    maps = torch.zeros(2, 2)
    maps[0, 1] = maps[1, 0] = 1.0
    assert map_peak(maps).tolist() == [0.75, 0.25]


def test_refined_peak_is_the_centroid_of_the_neighbourhood_only():
    maps = torch.zeros(1, 5)
    maps[0] = torch.tensor([0.0, 3.0, 1.0, 0.0, 2.0])  # the 2 is no neighbour of the 3
    assert map_peak(maps, refine=True).tolist() == pytest.approx([(3 * 1.5 + 1 * 2.5) / 4 / 5, 0.5])
    assert map_peak(maps).tolist() == pytest.approx([0.3, 0.5])


def test_refined_peak_at_the_border_and_of_a_map_of_zeros():
    maps = torch.zeros(2, 3, 3)
    maps[0, 0, 0], maps[0, 1, 0] = 1.0, 1.0
    assert map_peak(maps, refine=True).tolist() == [
        pytest.approx([1 / 6, 1 / 3]),
        pytest.approx([1 / 6, 1 / 6]),
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_peak_refuses_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="not finite"):
        map_peak(torch.tensor([[0.0, bad]]))


def test_peak_refuses_no_cells_and_centroids_of_negative_weights():
    with pytest.raises(ValueError, match=r"expected \[..., h, w\]"):
        map_peak(torch.zeros(3, 0, 4))
    with pytest.raises(ValueError, match="refine"):
        map_peak(torch.tensor([[-1.0, 2.0]]), refine=True)


def test_upsampling_keeps_cells_where_they_are():
    maps = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    large = upsample(maps, (8, 8))
    assert large.shape == (8, 8)
    assert large[:2, :2].eq(1).all(), "the outer half of the bright cell keeps its value"
    assert large[6:].eq(0).all() and large[:, 6:].eq(0).all()
    torch.testing.assert_close(large, large.T)


def test_prominence_of_peaks_in_clip_and_frame():
    maps = torch.tensor([[9.0, 1.0, 1.0, 1.0], [3.0, 3.0, 0.0, 0.0]]).reshape(1, 2, 1, 2, 2)
    # Averages 3 and 1.5; the largest excess is 6, which is more than the largest average.
    assert prominence(maps, "clip").flatten().tolist() == [1, 0, 0, 0, 0.25, 0.25, 0, 0]
    assert prominence(maps, "frame").flatten().tolist() == [1, 0, 0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="'clip', 'frame'"):
        prominence(maps, "video")


@pytest.mark.parametrize("scale", ["clip", "frame"])
def test_prominence_of_small_differences_stays_small(scale):
    maps = torch.tensor([1.02, 0.98, 1.0, 1.0]).reshape(1, 1, 1, 2, 2)
    torch.testing.assert_close(prominence(maps, scale).flatten(), torch.tensor([0.02, 0, 0, 0]))
    assert prominence(torch.zeros(1, 1, 1, 2, 2), scale).eq(0).all()


def test_overlay_tints_with_the_tracklets_colour_where_it_responds():
    frames = torch.full((1, 1, 3, 8, 8), 100, dtype=torch.uint8)
    maps = torch.zeros(1, 1, 2, 2, 2)
    maps[0, 0, 0, 0, 0] = maps[0, 0, 1, 1, 1] = 0.3
    out = overlay(frames, maps, strength=1.0, dim=0.0)
    assert out.shape == (1, 1, 2, 3, 8, 8) and out.dtype == torch.uint8
    for k, (y, x) in enumerate([(0, 0), (7, 7)]):
        colour = [int(tracklet_colour(k)[i : i + 2], 16) for i in (1, 3, 5)]
        assert out[0, 0, k, :, y, x].tolist() == colour
        assert out[0, 0, k, :, 7 - y, 7 - x].tolist() == [100, 100, 100], "no response, no change"


def test_overlay_of_an_even_map_has_no_tint():
    frames = torch.full((1, 2, 3, 6, 6), 80, dtype=torch.uint8)
    assert overlay(frames, torch.full((1, 2, 1, 3, 3), 0.25), dim=0.0).eq(80).all()


def test_overlay_names_what_does_not_fit():
    frames = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)
    maps = torch.zeros(1, 2, 1, 2, 2)
    with pytest.raises(ValueError, match="expected uint8"):
        overlay(frames.float(), maps)
    with pytest.raises(ValueError, match=r"expected \[B, T, K, h, w\]"):
        overlay(frames, maps[:, :1])
    with pytest.raises(ValueError, match="strength is 2"):
        overlay(frames, maps, strength=2)


def test_colours_of_tracklets_differ_in_brightness_or_hue_and_repeat():
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in TRACKLET_COLOURS])
    distances = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1000 * np.eye(len(rgb))
    assert distances.min() > 60
    assert tracklet_colour(len(TRACKLET_COLOURS)) == tracklet_colour(0)
