import json

import numpy as np
import pytest
import torch

from art.data.decoding.video import VideoError, read_clip
from art.data.transforms.sampling import FrameSampling
from art.tools.explain import explain


def test_arrays_are_what_the_model_says(make_model, clip):
    model = make_model()
    e = explain(model, clip, moments=4)
    crops = model.centre_crop(read_clip(clip, 3)[None])
    with torch.no_grad():
        out = model(crops, return_maps=True)
    assert torch.equal(torch.from_numpy(e.frames).permute(0, 3, 1, 2), crops[0])
    for found, expected in (
        (e.maps, out.maps[0]),
        (e.saliency, out.saliency[0]),
        (e.probabilities, out.logits[0].softmax(0)),
    ):
        assert np.allclose(found, expected.numpy(), atol=1e-6)
    named = [(e.class_names[i], pytest.approx(float(e.probabilities[i]), abs=1e-6)) for i in e.best(4)]
    assert model.predict(clip, 4) == named
    assert (e.times, e.sampled.tolist(), e.size) == (pytest.approx(np.arange(10) / 10), [1, 5, 8], (64, 96))
    assert e.maps.shape == (3, 2, *e.grad_cam.shape[1:])
    assert e.centres.shape == (3, 2, 2) and e.boxes.shape == (3, 2, 4)
    inside = (e.boxes[..., :2] <= e.centres + 1e-6) & (e.centres <= e.boxes[..., 2:] + 1e-6)
    assert inside.all()
    assert [query.label for query in e.queries] == out.selected[0].tolist()
    assert (e.rollout, e.missing) == (None, {"rollout": "it has no attention"})


def test_probabilities_over_time_are_answers_to_beginnings_of_the_clip(make_model, clip):
    model = make_model()
    e = explain(model, clip, moments=4)
    assert e.beginnings == pytest.approx([0.2, 0.4, 0.7, 0.9])  # of 3, 5, 8 and 10 frames
    for end, probabilities in zip((0.25, 0.45, 0.75, None), e.probabilities_over_time, strict=True):
        with torch.no_grad():
            expected = model(model.centre_crop(read_clip(clip, 3, end=end)[None])).logits[0].softmax(0)
        assert np.allclose(probabilities, expected.numpy(), atol=1e-5)
    assert explain(model, clip, moments=0).probabilities_over_time.shape == (0, 4)
    assert len(explain(model, clip, moments=99).beginnings) == 10


def test_the_text_that_asks_is_the_prompt_of_the_selected_semantics(make_model, clip):
    model = make_model(templates=["{label}", "someone does {label}"])
    model.prompts = [f"to {name}" for name in model.class_names]
    e = explain(model, clip, moments=0)
    video = torch.from_numpy(e.frames).permute(0, 3, 1, 2)[None]
    with torch.no_grad():
        selection = model.semantics.select(model(video).video_latent, 2)
        latent = model.semantics.projection(model.semantics.bank)
    for query, semantics in zip(e.queries, selection.semantics[0], strict=True):
        prompt = int((latent[:, query.label] - semantics).abs().sum(-1).argmin())
        assert query.prompt == ["to {label}", "someone does to {label}"][prompt].replace("{label}", query.name)


def test_the_crop_is_where_the_model_looks(make_model, clip):
    e = explain(make_model(test_crop=0.5), clip, moments=0)
    assert e.crop == pytest.approx((32 / 96, 16 / 64, 64 / 96, 48 / 64))


def test_a_window_of_dense_sampling_is_explained_where_it_lies(make_model, clip):
    model = make_model()
    model.sampling = FrameSampling("dense", 1)
    assert explain(model, clip, moments=2).sampled.tolist() == [4, 5, 6]


def test_a_backbone_alone_has_no_tracklets(make_model, clip):
    e = explain(make_model("backbone"), clip, moments=1)
    assert (e.maps, e.centres, e.boxes, e.saliency, e.queries) == (None, None, None, None, ())
    assert e.grad_cam.shape == (3, 14, 14) and e.num_tracklets == 0
    assert json.loads(json.dumps(e.as_json()))["tracklets"] == []


def test_grad_cam_may_ask_for_another_class(make_model, clip):
    model = make_model()
    maps = [explain(model, clip, moments=0, target=target).grad_cam for target in (0, 1)]
    assert not np.array_equal(*maps)
    with pytest.raises(ValueError, match="target is 4, expected a class, 0 to 3"):
        explain(model, clip, target=4)
    with pytest.raises(ValueError, match="moments is -1"):
        explain(model, clip, moments=-1)


def test_what_is_no_video_is_named(make_model, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for path, reason in (
        (tmp_path / "text.mp4", "cannot be read"),
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(VideoError, match=reason):
            explain(make_model(), path)


def test_numbers_are_written_without_pictures(make_model, clip):
    e = explain(make_model(), clip, moments=2)
    said = json.loads(json.dumps(e.as_json()))
    assert np.allclose(said["probabilities_over_time"], e.probabilities_over_time, atol=1e-5)
    assert np.allclose(said["tracklets"][1]["boxes"], e.boxes[:, 1], atol=1e-5)
    assert said["tracklets"][0]["class"] == e.queries[0].name
    assert said["sampled_seconds"] == [0.1, 0.5, 0.8]
