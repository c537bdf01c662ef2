"""The film, the animation and the sheet, as somebody else's decoder sees them."""

import dataclasses

import av
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from art.data.decoding.video import frame_times, read_frames
from art.eval.report.style import figure_pixels, tracklet_colour
from art.tools.explain import contact_sheet, explain, probability_figure, saliency_figure, write_film
from art.tools.explain.film import GIF_FRAMES, _gif_frames
from art.tools.explain.layout import film_layout, small_layout
from art.tools.explain.painting import tinted, with_tracklets
from art.tools.explain.scene import Scene, fitted, shown_classes, text_width, views_of


def overlap(a, b):
    across = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    down = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    return across > 0 and down > 0


@pytest.mark.parametrize("aspect", [16 / 9, 1.0, 9 / 16, 21 / 9])
@pytest.mark.parametrize(("panels", "tracklets"), [(1, 0), (2, 2), (3, 2), (3, 7)])
def test_nothing_of_a_picture_lies_on_anything_else(aspect, panels, tracklets):
    for layout in (
        film_layout(aspect, panels, tracklets, chart=True, notes=2),
        film_layout(aspect, panels, tracklets, chart=False),
        small_layout(aspect, min(panels, 2), tracklets, 480),
    ):
        assert layout.width <= 1280 and layout.height % 2 == layout.width % 2 == 0
        places = [layout.header, *layout.panels, *layout.strips, *layout.labels]
        places += [rect for rect in (layout.legend, layout.chart, layout.names) if rect is not None]
        assert not any(overlap(a, b) for i, a in enumerate(places) for b in places[i + 1 :])
        for rect in places:
            assert rect.left >= 0 and rect.left + rect.width <= layout.width
            assert rect.top >= 0 and rect.top + rect.height <= layout.height
        panel = layout.panels[0]
        assert panel.width / panel.height == pytest.approx(aspect, rel=0.03)
        assert layout.height <= 720 or layout.width == 480


def test_a_film_has_every_frame_at_its_time(make_model, make_video, tmp_path):
    times = [0, 1, 2, 5, 6, 9, 10, 11, 20, 21]  # of a varying rate
    clip = make_video(tmp_path / "a.mp4", times=times)
    e = explain(make_model(), clip, moments=3)
    write_film(e, tmp_path / "film.mp4", tmp_path / "film.gif")
    assert frame_times(tmp_path / "film.mp4") == pytest.approx(np.array(times) / 10, abs=1e-3)
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.codec_context.pix_fmt) == ("h264", 1100, "yuv420p")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.size[0] == 480 and gif.info["loop"] == 0


def test_a_film_shows_its_frame_and_the_time_goes_on(make_model, clip, tmp_path):
    e = explain(make_model(), clip, moments=3)
    write_film(e, tmp_path / "film.mp4", tmp_path / "film.gif")
    frames = read_frames(tmp_path / "film.mp4").float().mean(1)
    layout = film_layout(96 / 64, 2, 2, chart=True, notes=2)
    panel, strip = layout.panels[1], layout.strips[0]
    inner = frames[:, panel.top : panel.top + panel.height, panel.left : panel.left + panel.width]
    brightest = inner[:, panel.height * 24 // 64 : panel.height * 40 // 64].mean(1).argmax(-1) / panel.width
    assert (brightest[1:-2].diff() > 0).all() and brightest[-3] - brightest[1] > 0.4  # the square goes to the right
    row = frames[:, strip.top + 1, strip.left : strip.left + strip.width]
    assert row.argmin(-1)[1:].diff().gt(0).all()  # the line of now


def test_a_tall_clip_stays_tall(make_model, make_video, tmp_path):
    clip = make_video(tmp_path / "tall.mp4", 4, width=64, height=96)
    e = explain(make_model(), clip, moments=1)
    write_film(e, tmp_path / "film.mp4", tmp_path / "film.gif")
    panel = film_layout(64 / 96, 2, 2, chart=True, notes=2).panels[0]
    shown = read_frames(tmp_path / "film.mp4")[
        :, :, panel.top : panel.top + panel.height, panel.left : panel.left + panel.width
    ]
    assert (
        shown[0, 0, panel.height * 32 // 96, 4] > shown[0, 0, panel.height * 60 // 96, 4] + 15
    )  # the square, on the left


def test_a_long_clip_becomes_a_short_animation():
    chosen, wait = _gif_frames(np.arange(3000) / 30)
    assert len(chosen) == GIF_FRAMES and max(chosen) < 3000 and wait == 100
    chosen, wait = _gif_frames(np.arange(300) / 30)
    assert (len(chosen), round(wait)) == (100, 100)
    chosen, wait = _gif_frames(np.array([0.0]))
    assert chosen == {0}


def test_a_scene_is_tinted_where_a_tracklet_responds():
    grey = np.full((40, 40, 3), 100, dtype=np.uint8)
    weights = np.zeros((2, 4, 4), dtype=np.float32)
    weights[1, 0, 3] = 1
    picture = tinted(grey, (0, 0, 40, 40), weights)
    there, colour = picture[3, 36] / 255, np.array(to_rgb(tracklet_colour(1)))
    assert np.abs(there - colour).sum() < np.abs(100 / 255 - colour).sum()
    assert np.ptp(picture[35, 4].astype(int)) <= 1
    outside = tinted(grey, (10, 10, 30, 30), weights)
    assert outside[2, 2].max() < 50 < outside[20, 15].max()


def test_rings_lie_on_the_centres_of_the_crop():
    black = np.zeros((100, 200, 3), dtype=np.uint8)
    paths = np.array([[[0.2, 0.5]], [[0.8, 0.5]]])
    picture = with_tracklets(black, (50, 0, 150, 100), paths, np.array([[0.7, 0.3, 0.9, 0.7]]), [1.0])
    colour = np.array(to_rgb(tracklet_colour(0))) * 255
    assert np.abs(picture[50, 130] - colour).max() < 4  # the ring, at 50 + 0.8 · 100
    assert np.abs(picture[50, 90] - colour).max() < 60  # the path
    assert (picture[:, 145:] == 0).all() and (picture[:, :60] == 0).all()
    assert picture[33:68, 120:123].any()  # the box


@pytest.mark.parametrize("share", np.linspace(0.015, 0.2, 12))
@pytest.mark.parametrize("tracklets", [1, 5])
def test_boxes_smaller_than_their_outline_are_drawn(share, tracklets):
    """A single cell of a fine map, and the box of a late tracklet, which lies further inside."""
    black = np.zeros((720, 1280, 3), np.uint8)
    boxes = np.tile([0.5 - share / 2, 0.5 - share / 2, 0.5 + share / 2, 0.5 + share / 2], (tracklets, 1))
    corner = np.zeros((1, tracklets, 2))
    picture = with_tracklets(black, (280, 0, 1000, 720), corner, boxes, [])
    left, right = round(640 - 360 * share), round(640 + 360 * share)
    around = picture[round(360 - 360 * share) : round(360 + 360 * share), left:right].any(-1)
    assert around.any()
    assert not picture[300:420, : left - 1].any() and not picture[300:420, right + 1 :].any()


def test_frames_that_no_shown_one_stands_for_have_no_tint(make_model, clip):
    e = explain(make_model(), clip, moments=1)
    e = dataclasses.replace(e, sampled=np.array([4, 5, 6]))
    scene = Scene(e, film_layout(1.5, 2, 2, chart=True), views_of(e))
    panel = scene.layout.panels[0]
    grey = np.full((panel.height, panel.width, 3), 120, dtype=np.uint8)
    cut = lambda page: page[panel.top : panel.top + panel.height, panel.left : panel.left + panel.width].astype(int)  # noqa: E731
    assert np.ptp(cut(scene.draw(0, grey)), axis=-1).max() == 0
    assert np.ptp(cut(scene.draw(5, grey)), axis=-1).max() > 50


@pytest.mark.parametrize("kind", ["art", "backbone"])
def test_the_sheet_is_drawn_and_its_texts_lie_apart(make_model, clip, kind):
    e = explain(make_model(kind), clip, moments=5)
    figure = contact_sheet(e, count=3)
    pixels = figure_pixels(figure)
    assert pixels.shape[1] == 1500 and (pixels[0] == 255).all()
    boxes = [t.get_window_extent() for t in figure.texts if t.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.x0 >= 0 and box.x1 <= 1500 for box in boxes)
    said = " ".join(t.get_text() for t in figure.texts)
    assert e.class_names[e.predicted] in said and "Grad-CAM" in said and "it has no attention" in said
    assert all(f"asks for “{query.name}”" in said for query in e.queries)


def test_parts_may_be_had_alone(make_model, clip):
    e = explain(make_model(), clip, moments=3)
    lines = probability_figure(e, top_k=4).axes[0].lines
    drawn = {tuple(np.round(line.get_ydata(), 3)) for line in lines}
    assert drawn == {tuple(np.round(100 * e.probabilities_over_time[:, c], 3)) for c in range(4)}
    assert len(saliency_figure(e).axes) == 2
    alone = explain(make_model("backbone"), clip, moments=0)
    with pytest.raises(ValueError, match="no saliency"):
        saliency_figure(alone)
    with pytest.raises(ValueError, match="moments above 0"):
        probability_figure(alone)
    with pytest.raises(ValueError, match=r"nothing of .* can be drawn.*no way.*kind 'art'"):
        views_of(dataclasses.replace(alone, grad_cam=None, missing={"grad_cam": "no way"}))


def test_the_chart_names_the_answer_first_and_what_was_likely_once(make_model, clip):
    e = explain(make_model(), clip, moments=2)
    over_time = np.array([[0.1, 0.9, 0, 0], [0.6, 0.1, 0.2, 0.1]], dtype=np.float32)
    e = dataclasses.replace(e, probabilities=over_time[1], probabilities_over_time=over_time)
    assert shown_classes(e, 3) == [0, 1, 2]


def test_texts_that_do_not_fit_end_in_dots():
    assert fitted("short", 12, 100) == "short"
    cut = fitted("a long text that does not fit", 12, 100)
    assert cut.endswith("…") and text_width(cut, 12) <= 100 < text_width("a long text that does not fit", 12)
