import matplotlib
import numpy as np
import pytest

from art.eval.report.style import figure_pixels, png_bytes, tracklet_colour
from art.eval.report.tracklets import (
    frame_strip,
    path_picture,
    shown_frames,
    tinted_frames,
    tracklet_paths,
    tracklet_sheet,
)


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [(16, 8, [1, 3, 5, 7, 9, 11, 13, 15]), (3, 8, [0, 1, 2]), (5, 2, [1, 3]), (1, 1, [0])],
)
def test_shown_frames_are_spread_evenly(frames, count, expected):
    assert shown_frames(frames, count).tolist() == expected


def test_shown_frames_of_no_frames():
    with pytest.raises(ValueError, match="at least 1"):
        shown_frames(0, 4)


def test_paths_are_the_peaks():
    maps = np.zeros((2, 1, 2, 2))
    maps[0, 0, 0, 0] = maps[1, 0, 1, 0] = 1
    assert tracklet_paths(maps).tolist() == [[[0.25, 0.25]], [[0.25, 0.75]]]


def has_colour(pixels, colour, tolerance=12):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels.astype(int) - rgb).max(axis=-1) <= tolerance).any()


def test_strip_draws_the_ring_where_the_tracklet_is():
    frames = np.full((4, 20, 20, 3), 40, dtype=np.uint8)
    path = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.75], [0.75, 0.25]])
    figure = frame_strip(frames, np.array([1, 3]), path=path, colour="#E69F00", pixels=100)
    pixels = figure_pixels(figure)
    assert pixels.shape == (100, 200, 3)
    assert has_colour(pixels[74:77, 24:27], "#E69F00"), "frame 1: below left"
    assert has_colour(pixels[24:27, 174:177], "#E69F00"), "frame 3: above right"
    assert not has_colour(pixels[5:15, 60:95], "#E69F00", 40)


def test_strip_fades_what_is_long_past_and_shows_nothing_of_the_future():
    frames = np.full((12, 20, 20, 3), 40, dtype=np.uint8)
    path = np.stack([np.linspace(0.05, 0.95, 12), np.full(12, 0.5)], axis=1)
    first, last = (
        figure_pixels(frame_strip(frames, np.array([i]), path=path, colour="#E69F00", pixels=120)) for i in (0, 11)
    )
    assert not has_colour(first[:, 40:], "#E69F00", 40)
    assert has_colour(last[58:62, 95:105], "#E69F00", 40)
    assert not has_colour(last[:, :40], "#E69F00", 40)


def test_strip_leaves_out_a_limb_that_is_out_of_view():
    frames = np.full((2, 20, 20, 3), 40, dtype=np.uint8)
    limb = np.array([[1.4, 0.5], [0.5, 0.5]])
    without, with_limb = (
        figure_pixels(frame_strip(frames, np.array([i]), limb=limb, pixels=100)).copy() for i in (0, 1)
    )
    without[80:], with_limb[80:] = 40, 40  # the frame's number
    assert not has_colour(without, "#ffffff", 40)
    assert has_colour(with_limb, "#ffffff", 40)


def test_path_picture_shows_every_tracklet():
    paths = np.array([[[0.2, 0.2], [0.2, 0.8]], [[0.8, 0.2], [0.8, 0.8]]])
    pixels = figure_pixels(path_picture(np.zeros((30, 60, 3), dtype=np.uint8), paths, pixels=200))
    assert pixels.shape == (100, 200, 3)
    assert has_colour(pixels, tracklet_colour(0)) and has_colour(pixels, tracklet_colour(1))


def test_tinted_frames_are_one_clip_for_each_tracklet():
    frames = np.zeros((5, 8, 6, 3), dtype=np.uint8)
    assert tinted_frames(frames, np.ones((5, 3, 2, 2))).shape == (3, 5, 8, 6, 3)


@pytest.mark.parametrize("tracklets", [1, 3])
def test_sheet_names_the_texts_and_needs_no_display(tracklets):
    frames = np.zeros((6, 16, 16, 3), dtype=np.uint8)
    maps = np.random.default_rng(0).random((6, tracklets, 4, 4))
    texts = [f"class {k}" for k in range(tracklets)]
    before = dict(matplotlib.rcParams)
    figure = tracklet_sheet(frames, maps, np.full((6, tracklets), 1 / 6), texts, title="what it is", count=4)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == [
        f"tracklet {k + 1}, queried by “class {k}”" for k in range(tracklets)
    ]
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_sheet_refuses_shapes_that_do_not_agree():
    with pytest.raises(ValueError, match="do not agree"):
        tracklet_sheet(np.zeros((5, 8, 8, 3), np.uint8), np.ones((6, 1, 2, 2)), np.ones((6, 1)), ["a"])
