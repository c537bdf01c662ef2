"""The film, the GIF, the contact sheet, and the drawing code they share."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from art.data.decoding.video import frame_times, read_frames
from art.eval.report.style import figure_pixels, tracklet_color
from art.tools.explain import contact_sheet, explain, probability_figure, saliency_figure, write_film
from art.tools.explain.drawing import (
    available_views,
    chart_classes,
    draw_paths,
    draw_tints,
    text_width,
    truncate_text,
)
from art.tools.explain.film import (
    GIF_FRAMES,
    Scene,
    _gif_frames,
    film_layout,
    gif_layout,
    interpolate,
    layout_for,
    sample_position,
)


def overlap(a, b):
    horizontal = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    vertical = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    return horizontal > 0 and vertical > 0


def panel_of(frames, panel):
    return frames[..., panel.top : panel.top + panel.height, panel.left : panel.left + panel.width]


@pytest.mark.parametrize("aspect", [16 / 9, 1.0, 9 / 16, 21 / 9])
@pytest.mark.parametrize(("panels", "tracklets"), [(1, 0), (2, 2), (3, 2), (3, 7)])
def test_layout_has_no_overlaps(aspect, panels, tracklets):
    for layout in (
        film_layout(aspect, panels, tracklets, chart=True, legend_lines=2),
        film_layout(aspect, panels, tracklets, chart=False),
        gif_layout(aspect, min(panels, 2), tracklets, 480),
    ):
        assert layout.width <= 1280 and layout.height % 2 == layout.width % 2 == 0
        rects = [layout.header, *layout.panels, *layout.strips, *layout.labels]
        rects += [rect for rect in (layout.legend, layout.chart, layout.names) if rect is not None]
        assert not any(overlap(a, b) for i, a in enumerate(rects) for b in rects[i + 1 :])
        for rect in rects:
            assert rect.left >= 0 and rect.left + rect.width <= layout.width
            assert rect.top >= 0 and rect.top + rect.height <= layout.height
        panel = layout.panels[0]
        assert panel.width / panel.height == pytest.approx(aspect, rel=0.03)
        assert layout.height <= 720 or layout.width == 480


def test_film_shows_every_frame_at_its_time_and_advances_the_cursor(make_model, make_video, tmp_path):
    times = [0, 1, 2, 5, 6, 9, 10, 11, 20, 21]  # variable frame rate
    clip = make_video(tmp_path / "a.mp4", times=times)
    write_film(explain(make_model(), clip, timeline_points=3), tmp_path / "film.mp4", tmp_path / "film.gif")
    assert frame_times(tmp_path / "film.mp4") == pytest.approx(np.array(times) / 10, abs=1e-3)
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.codec_context.pix_fmt) == ("h264", 1100, "yuv420p")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.size[0] == 480 and gif.info["loop"] == 0
    frames = read_frames(tmp_path / "film.mp4").float().mean(1)
    layout = film_layout(96 / 64, 2, 2, chart=True, legend_lines=2)
    panel, strip = layout.panels[1], layout.strips[0]
    square_rows = panel_of(frames, panel)[:, panel.height * 24 // 64 : panel.height * 40 // 64]
    brightest = square_rows.mean(1).argmax(-1) / panel.width
    assert (brightest[1:-2].diff() > 0).all() and brightest[-3] - brightest[1] > 0.4  # the square moves to the right
    cursor = frames[:, strip.top + 1, strip.left : strip.left + strip.width].argmin(-1)
    assert cursor[1:].diff().gt(0).all()


def test_film_of_a_portrait_clip(make_model, make_video, tmp_path):
    clip = make_video(tmp_path / "portrait.mp4", 4, width=64, height=96)
    write_film(explain(make_model(), clip, timeline_points=1), tmp_path / "film.mp4", tmp_path / "film.gif")
    panel = film_layout(64 / 96, 2, 2, chart=True, legend_lines=2).panels[0]
    column = panel_of(read_frames(tmp_path / "film.mp4"), panel)[0, 0, :, 4]
    assert column[panel.height * 32 // 96] > column[panel.height * 60 // 96] + 15  # the square is at the left


def test_gif_of_a_long_clip_plays_faster():
    selected, duration = _gif_frames(np.arange(3000) / 30)
    assert len(selected) == GIF_FRAMES and max(selected) < 3000 and duration == 100
    selected, duration = _gif_frames(np.arange(300) / 30)
    assert (len(selected), round(duration)) == (100, 100)
    selected, duration = _gif_frames(np.array([0.0]))
    assert selected == {0}


def test_tint_where_a_tracklet_responds():
    gray = np.full((40, 40, 3), 100, dtype=np.uint8)
    weights = np.zeros((2, 4, 4), dtype=np.float32)
    weights[1, 0, 3] = 1
    tinted = draw_tints(gray, (0, 0, 40, 40), weights)
    pixel, color = tinted[3, 36] / 255, np.array(to_rgb(tracklet_color(1)))
    assert np.abs(pixel - color).sum() < np.abs(100 / 255 - color).sum()
    assert np.ptp(tinted[35, 4].astype(int)) <= 1
    cropped = draw_tints(gray, (10, 10, 30, 30), weights)
    assert cropped[2, 2].max() < 50 < cropped[20, 15].max()


def test_rings_paths_and_boxes_are_relative_to_the_crop():
    black = np.zeros((100, 200, 3), dtype=np.uint8)
    paths = np.array([[[0.2, 0.5]], [[0.8, 0.5]]])
    drawn = draw_paths(black, (50, 0, 150, 100), paths, np.array([[0.7, 0.3, 0.9, 0.7]]), [1.0])
    color = np.array(to_rgb(tracklet_color(0))) * 255
    assert np.abs(drawn[50, 130] - color).max() < 4  # the ring, at 50 + 0.8 · 100
    assert np.abs(drawn[50, 90] - color).max() < 60  # the path
    assert (drawn[:, 145:] == 0).all() and (drawn[:, :60] == 0).all()
    assert drawn[33:68, 120:123].any()  # the box


@pytest.mark.parametrize("side", np.linspace(0.015, 0.2, 12))
@pytest.mark.parametrize("tracklets", [1, 5])
def test_boxes_smaller_than_their_outline(side, tracklets):
    """A single cell of a fine map, and the box of a later tracklet, which has a larger inset."""
    black = np.zeros((720, 1280, 3), np.uint8)
    boxes = np.tile([0.5 - side / 2, 0.5 - side / 2, 0.5 + side / 2, 0.5 + side / 2], (tracklets, 1))
    corner = np.zeros((1, tracklets, 2))
    drawn = draw_paths(black, (280, 0, 1000, 720), corner, boxes, [])
    left, right = round(640 - 360 * side), round(640 + 360 * side)
    assert drawn[round(360 - 360 * side) : round(360 + 360 * side), left:right].any()
    assert not drawn[300:420, : left - 1].any() and not drawn[300:420, right + 1 :].any()


def test_interpolation_between_sampled_frames():
    for frame, value in ((0, 1.0), (2, 1.0), (3, 1.5), (4, 2.0), (6, 3.0), (9, 6.0), (10, 7.0), (11, 7.0)):
        position = sample_position(frame, np.array([2, 6, 10]))
        assert position.covered
        assert interpolate(np.array([[1.0], [3.0], [7.0]]), position) == pytest.approx([value])


def test_sample_position_of_dense_repeated_and_single_frames():
    dense = np.array([20, 22, 24])
    covered = [sample_position(frame, dense).covered for frame in (0, 17, 18, 26, 27, 99)]
    assert covered == [False, False, True, True, False, False]
    repeated = np.array([0, 0, 1, 1])
    assert [sample_position(f, repeated)[:3] for f in (0, 1, 5)] == [(0, 0, 0.0), (2, 2, 0.0), (3, 3, 0.0)]
    assert sample_position(1, np.array([1])).covered


def test_frames_outside_the_sampling_window_have_no_tint(make_model, clip):
    e = explain(make_model(), clip, timeline_points=1)
    e = dataclasses.replace(e, sampled=np.array([4, 5, 6]))
    scene = Scene(e, film_layout(1.5, 2, 2, chart=True), available_views(e))
    panel = scene.layout.panels[0]
    gray = np.full((panel.height, panel.width, 3), 120, dtype=np.uint8)
    for index, tinted in ((0, False), (5, True)):
        page = scene.draw(index, gray).astype(int)
        spread = np.ptp(panel_of(page.transpose(2, 0, 1), panel), axis=0).max()
        assert spread > 50 if tinted else spread == 0


@pytest.mark.parametrize("kind", ["art", "backbone"])
def test_contact_sheet_texts_do_not_overlap(make_model, clip, kind):
    e = explain(make_model(kind), clip, timeline_points=5)
    figure = contact_sheet(e, count=3)
    pixels = figure_pixels(figure)
    assert pixels.shape[1] == 1500 and (pixels[0] == 255).all()
    boxes = [t.get_window_extent() for t in figure.texts if t.get_text()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.x0 >= 0 and box.x1 <= 1500 for box in boxes)
    text = " ".join(t.get_text() for t in figure.texts)
    assert e.class_names[e.predicted] in text and "Grad-CAM" in text and "it has no attention" in text
    assert all(f"query “{query.name}”" in text for query in e.queries)


def test_separate_figures(make_model, clip):
    e = explain(make_model(), clip, timeline_points=3)
    lines = probability_figure(e, top_k=4).axes[0].lines
    drawn = {tuple(np.round(line.get_ydata(), 3)) for line in lines}
    assert drawn == {tuple(np.round(100 * e.probabilities_over_time[:, c], 3)) for c in range(4)}
    assert len(saliency_figure(e).axes) == 2


def test_errors_without_anything_to_draw(make_model, clip):
    e = explain(make_model("backbone"), clip, timeline_points=0)
    with pytest.raises(ValueError, match="no saliency"):
        saliency_figure(e)
    with pytest.raises(ValueError, match="timeline_points above 0"):
        probability_figure(e)
    with pytest.raises(ValueError, match=r"nothing can be drawn for .*no reason.*kind 'art'"):
        available_views(dataclasses.replace(e, grad_cam=None, missing={"grad_cam": "no reason"}))


def test_chart_has_the_predicted_class_first(make_model, clip):
    e = explain(make_model(), clip, timeline_points=2)
    over_time = np.array([[0.1, 0.9, 0, 0], [0.6, 0.1, 0.2, 0.1]], dtype=np.float32)
    e = dataclasses.replace(e, probabilities=over_time[1], probabilities_over_time=over_time)
    assert chart_classes(e, 3) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        [r"$\frac$", "x" * 4000, "\u05e9\u05dc" * 9, "caf\udce9"],
        ["走る" * 99, "$$", "a\nb\x1b[0m\x00", "\u202e\ufeff"],
    ],
    ids=["formula first", "wide first"],
)
def test_pictures_of_any_names(make_model, clip, names):
    """Each text is one line inside the picture, and no name is a formula."""
    e = explain(make_model(), clip, timeline_points=1)
    queries = tuple(
        dataclasses.replace(query, name=name, prompt=f"a {name}") for query, name in zip(e.queries, names, strict=False)
    )
    probabilities = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    e = dataclasses.replace(e, class_names=names, queries=queries, clip=Path(names[0]), probabilities=probabilities)
    sheet = contact_sheet(e)
    figure_pixels(sheet)
    assert len(sheet.texts) > 12 and not any("\n" in text.get_text() for text in sheet.texts)
    boxes = [text.get_window_extent() for text in sheet.texts]
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= sheet.bbox.x1
    scene = Scene(e, layout_for(e), available_views(e))
    panel = scene.layout.panels[0]
    page = scene.draw(0, np.zeros((panel.height, panel.width, 3), np.uint8))
    assert page.shape == (scene.layout.height, scene.layout.width, 3)
    assert (page[:, -8:] == 255).all(), "no text reaches the edge"


@pytest.mark.parametrize("letters", ["a long text that does not fit", "走る" * 20, "i" * 4000, "W" * 4000])
def test_truncated_text_keeps_both_ends(letters):
    assert truncate_text("short", 12, 100) == "short" and truncate_text("a\nb", 12, 100) == r"a\nb"
    text = f"({letters})"
    truncated = truncate_text(text, 12, 100)
    assert truncated[0] == "(" and truncated[-1] == ")" and truncated.count("…") == 1
    assert 100 - 2 * 12 < text_width(truncated, 12) <= 100 < text_width(text, 12)
    assert truncate_text(text, 12, text_width(text, 12)) == text
