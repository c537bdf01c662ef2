import json

import av
import pytest

from art.tools.explain import explain
from art.tools.explain.write import FILES
from art.tools.serve.answer import answer_clip, as_shown, describe
from art.tools.serve.limits import Asking, Limits, Refused


@pytest.fixture
def clip(write_video, tmp_path, monkeypatch):
    """Below the current folder, as the process of the model has it."""
    monkeypatch.chdir(tmp_path)
    return write_video(tmp_path / "square.mp4").relative_to(tmp_path)


def test_an_answer_is_what_the_model_says(make_model, clip, tmp_path):
    model, steps = make_model(), []
    answer = answer_clip(model, clip, tmp_path / "out", Asking(top_k=3, moments=2), steps.append)
    assert steps == ["Reading the clip", "Asking the model", "Drawing the film"]
    predicted = model.predict(clip, 3)
    assert [told["name"] for told in answer["classes"]] == [name for name, _ in predicted]
    assert [told["share"] for told in answer["classes"]] == pytest.approx([share for _, share in predicted], abs=1e-6)
    assert (answer["clip"], answer["frames"], answer["seconds"]) == ("square.mp4", 10, 0.9)
    assert len(answer["tracklets"]) == model.options.num_tracklets
    for tracklet in answer["tracklets"]:
        assert sum(frame["share"] for frame in tracklet["saliency"]) == pytest.approx(1, abs=1e-5)
        assert tracklet["class"] in model.class_names and tracklet["class"] in tracklet["prompt"]
    assert answer["over_time"]["seconds"] == [0.4, 0.9]
    json.dumps(answer)


def test_the_files_are_whole_and_name_no_folder(make_model, clip, tmp_path):
    answer_clip(make_model(), clip, tmp_path / "out", Asking(moments=2), lambda _: None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert json.loads((tmp_path / "out" / "explanation.json").read_text())["clip"] == "square.mp4"


def test_browsers_play_the_film_and_its_panels_lie_in_it(make_model, clip, tmp_path):
    answer = answer_clip(make_model(), clip, tmp_path / "out", Asking(moments=0), lambda _: None)
    with av.open(str(tmp_path / "out" / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (answer["film"]["width"], answer["film"]["height"])
    assert [panel["title"] for panel in answer["film"]["panels"]] == ["Tracklets", "Grad-CAM"]
    for panel in answer["film"]["panels"]:
        assert 0 <= panel["left"] <= panel["left"] + panel["width"] <= answer["film"]["width"]
        assert 0 <= panel["top"] <= panel["top"] + panel["height"] <= answer["film"]["height"]
    assert answer["over_time"] is None


def test_of_a_backbone_alone_it_is_said_that_there_are_no_tracklets(make_model, clip, tmp_path):
    model = make_model("backbone")
    answer = answer_clip(model, clip, tmp_path / "out", Asking(moments=0), lambda _: None)
    assert answer["tracklets"] == [] and [panel["title"] for panel in answer["film"]["panels"]] == ["Grad-CAM"]
    assert (
        "has no tracklets" in answer["notes"][0]
        and "No attention roll-out of this backbone: it has no attention" in answer["notes"][1]
    )
    assert describe(model, "cpu")["tracklets"] == 0


def test_where_nothing_can_be_drawn_the_classes_are_told(make_model, clip, tmp_path, monkeypatch):
    from art.tools.explain import explanation
    from art.tools.explain.blocks import NotAvailable

    def none(*_):
        raise NotAvailable("there is none")

    monkeypatch.setattr(explanation, "grad_cam", none)
    answer = answer_clip(make_model("backbone"), clip, tmp_path / "out", Asking(moments=0), lambda _: None)
    assert answer["film"] is None and len(answer["classes"]) == 4 and not (tmp_path / "out").exists()
    assert "No Grad-CAM of this backbone: there is none." in answer["notes"]


def test_a_clip_damaged_in_its_middle_is_refused(make_model, write_video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_video(tmp_path / "long.mp4", 60, width=320, height=240)
    content = bytearray(path.read_bytes())
    content[200 : len(content) // 2] = b"\xff" * (len(content) // 2 - 200)
    path.write_bytes(content)
    with pytest.raises(Refused, match=r"^“long.mp4” .*The file may be damaged") as told:
        answer_clip(make_model(), path.relative_to(tmp_path), tmp_path / "out", Asking(moments=0), lambda _: None)
    assert str(tmp_path) not in str(told.value)


def test_limits_come_before_the_model(clip, tmp_path):
    with pytest.raises(Refused, match="A clip may have 5 frames here"):
        answer_clip(None, clip, tmp_path / "out", Asking(limits=Limits(frames=5)), lambda _: None)


def test_the_chart_names_what_was_likely_at_some_time(make_model, clip):
    shown = as_shown(explain(make_model(), clip, moments=2), 2)
    assert shown["over_time"]["lines"][0]["name"] == shown["classes"][0]["name"]
    assert all(len(line["shares"]) == 2 for line in shown["over_time"]["lines"])
