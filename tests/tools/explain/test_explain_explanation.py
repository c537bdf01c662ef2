import json

import numpy as np
import pytest
import torch
from PIL import Image

from art.cli import main
from art.data.decoding.video import VideoError, frame_times, read_clip, read_frames
from art.data.transforms.sampling import FrameSampling
from art.tools import explain as explain_package
from art.tools.explain import explain, write_film
from art.tools.explain.explanation import response_boxes

FILES = ["explanation.json", "film.gif", "film.mp4", "sheet.png"]


def test_arrays_and_probabilities_over_time_match_the_model(make_model, clip):
    model = make_model()
    e = explain(model, clip, timeline_points=4)
    crops = model.center_crop(read_clip(clip, 3)[None])
    with torch.no_grad():
        out = model(crops, return_maps=True)
    assert torch.equal(torch.from_numpy(e.frames).permute(0, 3, 1, 2), crops[0])
    for actual, expected in (
        (e.maps, out.maps[0]),
        (e.saliency, out.saliency[0]),
        (e.probabilities, out.logits[0].softmax(0)),
    ):
        assert np.allclose(actual, expected.numpy(), atol=1e-6)
    best = [(e.class_names[i], pytest.approx(float(e.probabilities[i]), abs=1e-6)) for i in e.best(4)]
    assert model.predict(clip, 4) == best
    assert (e.times, e.sampled.tolist(), e.size) == (pytest.approx(np.arange(10) / 10), [1, 5, 8], (64, 96))
    assert e.maps.shape == (3, 2, *e.grad_cam.shape[1:])
    assert e.centers.shape == (3, 2, 2) and e.boxes.shape == (3, 2, 4)
    inside = (e.boxes[..., :2] <= e.centers + 1e-6) & (e.centers <= e.boxes[..., 2:] + 1e-6)
    assert inside.all()
    assert [query.label for query in e.queries] == out.selected[0].tolist()
    assert (e.rollout, e.missing) == (None, {"rollout": "it has no attention"})

    assert e.timeline == pytest.approx([0.2, 0.4, 0.7, 0.9])  # 3, 5, 8 and 10 frames
    for end, probabilities in zip((0.25, 0.45, 0.75, None), e.probabilities_over_time, strict=True):
        with torch.no_grad():
            expected = model(model.center_crop(read_clip(clip, 3, end=end)[None])).logits[0].softmax(0)
        assert np.allclose(probabilities, expected.numpy(), atol=1e-5)
    assert explain(model, clip, timeline_points=0).probabilities_over_time.shape == (0, 4)
    assert len(explain(model, clip, timeline_points=99).timeline) == 10


def test_query_is_the_prompt_of_the_selected_semantics(make_model, clip):
    model = make_model(templates=["{label}", "someone does {label}"])
    model.prompts = [f"to {name}" for name in model.class_names]
    e = explain(model, clip, timeline_points=0)
    video = torch.from_numpy(e.frames).permute(0, 3, 1, 2)[None]
    with torch.no_grad():
        selection = model.semantics.select(model(video).video_latent, 2)
        latent = model.semantics.projection(model.semantics.bank)
    for query, semantics in zip(e.queries, selection.semantics[0], strict=True):
        prompt = int((latent[:, query.label] - semantics).abs().sum(-1).argmin())
        assert query.prompt == ["to {label}", "someone does to {label}"][prompt].replace("{label}", query.name)


def test_crop_and_dense_window_are_located_in_the_clip(make_model, clip):
    e = explain(make_model(test_crop=0.5), clip, timeline_points=0)
    assert e.crop == pytest.approx((32 / 96, 16 / 64, 64 / 96, 48 / 64))
    model = make_model()
    model.sampling = FrameSampling("dense", 1)
    assert explain(model, clip, timeline_points=2).sampled.tolist() == [4, 5, 6]


def test_backbone_has_grad_cam_of_the_target_and_no_tracklets(make_model, clip):
    e = explain(make_model("backbone"), clip, timeline_points=1)
    assert (e.maps, e.centers, e.boxes, e.saliency, e.queries) == (None, None, None, None, ())
    assert e.grad_cam.shape == (3, 14, 14) and e.num_tracklets == 0
    assert json.loads(json.dumps(e.as_json()))["tracklets"] == []
    other = explain(make_model("backbone"), clip, timeline_points=0, target=(e.target + 1) % 4)
    assert not np.array_equal(e.grad_cam, other.grad_cam)


def test_directory_of_frames_is_explained_like_the_video(make_model, clip, tmp_path, monkeypatch):
    directory, model = tmp_path / "frames", make_model()
    directory.mkdir()
    for number, frame in enumerate(read_frames(clip).permute(0, 2, 3, 1).numpy(), start=1):
        Image.fromarray(frame).save(directory / f"{number:05}.png")
    monkeypatch.setattr("art.tools.explain.explanation._FRAMES_AT_ONCE", 4)
    video, frames = explain(model, clip, timeline_points=2), explain(model, directory, timeline_points=2)
    assert np.array_equal(frames.frames, video.frames) and frames.size == video.size
    assert np.array_equal(frames.probabilities_over_time, video.probabilities_over_time)
    assert frames.times == pytest.approx(np.arange(10) / 25)
    write_film(frames, tmp_path / "film.mp4", tmp_path / "film.gif")
    assert frame_times(tmp_path / "film.mp4") == pytest.approx(frames.times, abs=1e-4)


def test_invalid_arguments_and_files(make_model, clip, tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="target: got 4, expected a class index from 0 to 3"):
        explain(model, clip, target=4)
    with pytest.raises(ValueError, match="timeline_points: got -1"):
        explain(model, clip, timeline_points=-1)
    (tmp_path / "text.mp4").write_text("no video")
    for path, reason in (
        (tmp_path / "text.mp4", "cannot be read"),
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "frames"),
    ):
        with pytest.raises(VideoError, match=reason):
            explain(model, path)


def test_as_json_and_deprecated_names(make_model, clip):
    with pytest.deprecated_call():
        e = explain(make_model(), clip, moments=2)
    data = json.loads(json.dumps(e.as_json()))
    assert np.allclose(data["probabilities_over_time"], e.probabilities_over_time, atol=1e-5)
    assert np.allclose(data["tracklets"][1]["boxes"], e.boxes[:, 1], atol=1e-5)
    assert data["tracklets"][0]["class"] == e.queries[0].name
    assert data["sampled_seconds"] == [0.1, 0.5, 0.8]
    with pytest.deprecated_call():
        assert e.centres is e.centers
    with pytest.deprecated_call():
        assert e.beginnings is e.timeline and len(e.timeline) == 2
    with pytest.deprecated_call():
        assert explain_package.explain_to_folder is explain_package.explain_to_directory


@pytest.mark.parametrize(
    ("weights", "level", "box"),
    [
        # The 8 at the lower right is above the level but touches only a corner; the 3 is below it.
        ([[0, 8, 0, 0], [0, 9, 7, 0], [0, 3, 0, 8], [0, 0, 0, 0]], 0.5, [0.25, 0, 0.75, 0.5]),
        ([[9, 9, 9], [0, 0, 9], [9, 9, 9], [0, 0, 0]], 0.5, [0, 0, 1, 0.75]),
        ([[0, 0, 0, 0], [0, 9, 7, 0]], 0.9, [0.25, 0.5, 0.5, 1]),
        ([[1 / 9] * 3] * 3, 0.5, [0, 0, 1, 1]),
    ],
    ids=["component of the peak", "bent component", "high level", "constant map"],
)
def test_response_box(weights, level, box):
    maps = np.array(weights, dtype=np.float32)[None, None]
    assert response_boxes(maps, level=level)[0, 0] == pytest.approx(box)


@pytest.mark.parametrize("level", [0, 1.1])
def test_response_box_level_out_of_range(level):
    with pytest.raises(ValueError, match="level: got"):
        response_boxes(np.ones((1, 1, 2, 2)), level=level)


def run(*arguments):
    return main(["explain", *(str(argument) for argument in arguments)])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "flag", "count"), [("art", "--timeline-points", 3), ("backbone", "--moments", 0)])
def test_command_writes_all_files(make_model, clip, tmp_path, capsys, kind, flag, count):
    make_model(kind).save_pretrained(tmp_path / "model")
    out = tmp_path / "new" / "out"
    assert run(clip, "--checkpoint", tmp_path / "model", "--out", out, flag, count, "--top-k", 2) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert "it has no attention" in capsys.readouterr().out
    data = json.loads((out / "explanation.json").read_text())
    assert data["clip"] == str(clip) and len(data["timeline_seconds"]) == count


def test_command_checks_arguments_before_writing(make_model, clip, tmp_path, capsys):
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    out = tmp_path / "out"
    for arguments, message in (
        ((clip, "--out", tmp_path / "file"), "is not a directory"),
        ((tmp_path / "broken.mp4", "--out", out), "broken.mp4: cannot be read"),
        ((clip, "--out", out, "--top-k", 0), "top_k: got 0"),
        ((clip, "--out", out, "--timeline-points", -1), "timeline_points: got -1"),
    ):
        assert run(*arguments, "--checkpoint", tmp_path / "model") == 2
        assert message in capsys.readouterr().err
    assert run(clip, "--checkpoint", tmp_path, "--out", out) == 2
    assert "no config.json" in capsys.readouterr().err
    assert not out.exists()
