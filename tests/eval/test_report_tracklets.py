import matplotlib
import numpy as np
import pytest
import torch

from art.eval.report.style import TRACKLET_COLORS, figure_pixels, png_bytes, tracklet_color
from art.eval.report.tracklets import (
    frame_strip,
    map_peak,
    overlay,
    path_figure,
    prominence,
    shown_frames,
    tinted_frames,
    tracklet_paths,
    tracklet_sheet,
    upsample,
)


def rgb(color):
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def test_peak_is_the_center_of_the_strongest_cell():
    maps = torch.zeros(1, 2, 3, 4)
    maps[0, 0, 2, 1] = 1.0
    maps[0, 1, 0, 3] = 0.5
    expected = torch.tensor([[[1.5 / 4, 2.5 / 3], [3.5 / 4, 0.5 / 3]]])
    torch.testing.assert_close(map_peak(maps), expected)
    tied = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert map_peak(tied).tolist() == [0.75, 0.25], "the first in row-major order"


def test_refined_peak_is_the_centroid_of_the_neighborhood():
    maps = torch.zeros(1, 5)
    maps[0] = torch.tensor([0.0, 3.0, 1.0, 0.0, 2.0])  # the 2 is not a neighbor of the 3
    assert map_peak(maps, refine=True).tolist() == pytest.approx([(3 * 1.5 + 1 * 2.5) / 4 / 5, 0.5])
    assert map_peak(maps).tolist() == pytest.approx([0.3, 0.5])


def test_refined_peak_at_the_border_and_of_zeros():
    maps = torch.zeros(2, 3, 3)
    maps[0, 0, 0], maps[0, 1, 0] = 1.0, 1.0
    assert map_peak(maps, refine=True).tolist() == [
        pytest.approx([1 / 6, 1 / 3]),
        pytest.approx([1 / 6, 1 / 6]),
    ]


def test_peak_of_invalid_maps():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            map_peak(torch.tensor([[0.0, value]]))
    with pytest.raises(ValueError, match=r"expected \[..., h, w\]"):
        map_peak(torch.zeros(3, 0, 4))
    with pytest.raises(ValueError, match="refine"):
        map_peak(torch.tensor([[-1.0, 2.0]]), refine=True)


def test_upsampling_keeps_the_position_of_cells():
    maps = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    large = upsample(maps, (8, 8))
    assert large.shape == (8, 8)
    assert large[:2, :2].eq(1).all(), "the outer half of the bright cell keeps its value"
    assert large[6:].eq(0).all() and large[:, 6:].eq(0).all()
    torch.testing.assert_close(large, large.T)


def test_prominence_per_clip_and_per_frame():
    maps = torch.tensor([[9.0, 1.0, 1.0, 1.0], [3.0, 3.0, 0.0, 0.0]]).reshape(1, 2, 1, 2, 2)
    # Averages 3 and 1.5; the largest excess is 6, which is more than the largest average.
    assert prominence(maps, "clip").flatten().tolist() == [1, 0, 0, 0, 0.25, 0.25, 0, 0]
    assert prominence(maps, "frame").flatten().tolist() == [1, 0, 0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="'clip', 'frame'"):
        prominence(maps, "video")


@pytest.mark.parametrize("scale", ["clip", "frame"])
def test_prominence_of_nearly_uniform_maps_is_small(scale):
    maps = torch.tensor([1.02, 0.98, 1.0, 1.0]).reshape(1, 1, 1, 2, 2)
    torch.testing.assert_close(prominence(maps, scale).flatten(), torch.tensor([0.02, 0, 0, 0]))
    assert prominence(torch.zeros(1, 1, 1, 2, 2), scale).eq(0).all()


def test_overlay_tints_where_the_tracklet_responds():
    frames = torch.full((1, 1, 3, 8, 8), 100, dtype=torch.uint8)
    maps = torch.zeros(1, 1, 2, 2, 2)
    maps[0, 0, 0, 0, 0] = maps[0, 0, 1, 1, 1] = 0.3
    out = overlay(frames, maps, strength=1.0, dim=0.0)
    assert out.shape == (1, 1, 2, 3, 8, 8) and out.dtype == torch.uint8
    for k, (y, x) in enumerate([(0, 0), (7, 7)]):
        assert out[0, 0, k, :, y, x].tolist() == rgb(tracklet_color(k)).tolist()
        assert out[0, 0, k, :, 7 - y, 7 - x].tolist() == [100, 100, 100], "no response, no change"
    uniform = torch.full((1, 1, 1, 3, 3), 0.25)
    assert overlay(frames, uniform, dim=0.0).eq(100).all(), "a uniform map has no tint"


def test_overlay_of_invalid_arguments():
    frames = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)
    maps = torch.zeros(1, 2, 1, 2, 2)
    with pytest.raises(ValueError, match="expected uint8"):
        overlay(frames.float(), maps)
    with pytest.raises(ValueError, match=r"expected \[B, T, K, h, w\]"):
        overlay(frames, maps[:, :1])
    with pytest.raises(ValueError, match="strength is 2"):
        overlay(frames, maps, strength=2)


def test_tracklet_colors_are_distinct_and_repeat():
    colors = np.stack([rgb(color) for color in TRACKLET_COLORS])
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1000 * np.eye(len(colors))
    assert distances.min() > 60
    assert tracklet_color(len(TRACKLET_COLORS)) == tracklet_color(0)


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [(16, 8, [1, 3, 5, 7, 9, 11, 13, 15]), (3, 8, [0, 1, 2]), (5, 2, [1, 3]), (1, 1, [0])],
)
def test_shown_frames_are_evenly_spaced(frames, count, expected):
    assert shown_frames(frames, count).tolist() == expected
    with pytest.raises(ValueError, match="at least 1"):
        shown_frames(0, 4)


def test_paths_are_the_peaks():
    maps = np.zeros((2, 1, 2, 2))
    maps[0, 0, 0, 0] = maps[1, 0, 1, 0] = 1
    assert tracklet_paths(maps).tolist() == [[[0.25, 0.25]], [[0.25, 0.75]]]


def has_color(pixels, color, tolerance=12):
    return (np.abs(pixels.astype(int) - rgb(color)).max(axis=-1) <= tolerance).any()


def test_strip_draws_a_ring_at_the_position():
    frames = np.full((4, 20, 20, 3), 40, dtype=np.uint8)
    path = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.75], [0.75, 0.25]])
    figure = frame_strip(frames, np.array([1, 3]), path=path, color="#E69F00", pixels=100)
    pixels = figure_pixels(figure)
    assert pixels.shape == (100, 200, 3)
    assert has_color(pixels[74:77, 24:27], "#E69F00"), "frame 1: lower left"
    assert has_color(pixels[24:27, 174:177], "#E69F00"), "frame 3: upper right"
    assert not has_color(pixels[5:15, 60:95], "#E69F00", 40)


def test_strip_fades_the_past_and_omits_the_future():
    frames = np.full((12, 20, 20, 3), 40, dtype=np.uint8)
    path = np.stack([np.linspace(0.05, 0.95, 12), np.full(12, 0.5)], axis=1)
    first, last = (
        figure_pixels(frame_strip(frames, np.array([i]), path=path, color="#E69F00", pixels=120)) for i in (0, 11)
    )
    assert not has_color(first[:, 40:], "#E69F00", 40)
    assert has_color(last[58:62, 95:105], "#E69F00", 40)
    assert not has_color(last[:, :40], "#E69F00", 40)


def test_strip_omits_a_limb_out_of_view():
    frames = np.full((2, 20, 20, 3), 40, dtype=np.uint8)
    limb = np.array([[1.4, 0.5], [0.5, 0.5]])
    without, with_limb = (
        figure_pixels(frame_strip(frames, np.array([i]), limb=limb, pixels=100)).copy() for i in (0, 1)
    )
    without[80:], with_limb[80:] = 40, 40  # the frame's number
    assert not has_color(without, "#ffffff", 40)
    assert has_color(with_limb, "#ffffff", 40)


def test_path_figure_shows_every_tracklet():
    paths = np.array([[[0.2, 0.2], [0.2, 0.8]], [[0.8, 0.2], [0.8, 0.8]]])
    pixels = figure_pixels(path_figure(np.zeros((30, 60, 3), dtype=np.uint8), paths, pixels=200))
    assert pixels.shape == (100, 200, 3)
    assert has_color(pixels, tracklet_color(0)) and has_color(pixels, tracklet_color(1))


def test_tinted_frames_shape():
    frames = np.zeros((5, 8, 6, 3), dtype=np.uint8)
    assert tinted_frames(frames, np.ones((5, 3, 2, 2))).shape == (3, 5, 8, 6, 3)


@pytest.mark.parametrize("tracklets", [1, 3])
def test_sheet_titles_and_unchanged_settings(tracklets):
    frames = np.zeros((6, 16, 16, 3), dtype=np.uint8)
    maps = np.random.default_rng(0).random((6, tracklets, 4, 4))
    texts = [f"class {k}" for k in range(tracklets)]
    before = dict(matplotlib.rcParams)
    figure = tracklet_sheet(frames, maps, np.full((6, tracklets), 1 / 6), texts, title="walk", count=4)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == [
        f"tracklet {k + 1}, queried by “class {k}”" for k in range(tracklets)
    ]
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_sheet_of_invalid_shapes():
    with pytest.raises(ValueError, match="do not match"):
        tracklet_sheet(np.zeros((5, 8, 8, 3), np.uint8), np.ones((6, 1, 2, 2)), np.ones((6, 1)), ["a"])
