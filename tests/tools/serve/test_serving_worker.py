"""Checking a clip, explaining the prediction for it, and the process that does both."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import av
import pytest

from art.tools.serve.jobs import Limits, Refused, RequestOptions
from art.tools.serve.server import WorkerProcess

pytestmark = pytest.mark.slow

FILES = ["explanation.json", "film.gif", "film.mp4", "sheet.png"]


def predict(model, clip, out, report=lambda step: None, **options):
    from art.tools.serve.worker import predict_clip  # not at the top: worker processes import this file, without torch

    return predict_clip(model, clip, out, RequestOptions(**options), report)


@pytest.fixture
def relative_clip(clip, tmp_path, monkeypatch):
    """A clip in the current directory, as in the worker process."""
    monkeypatch.chdir(tmp_path)
    return clip.relative_to(tmp_path)


def test_result_and_files_match_the_model(make_model, relative_clip, tmp_path):
    model, steps = make_model(), []
    result = predict(model, relative_clip, tmp_path / "out", steps.append, top_k=3, timeline_points=2)
    assert steps == ["Reading the clip", "Running the model", "Rendering the film"]
    predicted = model.predict(relative_clip, 3)
    assert [entry["name"] for entry in result["classes"]] == [name for name, _ in predicted]
    probabilities = [entry["probability"] for entry in result["classes"]]
    assert probabilities == pytest.approx([probability for _, probability in predicted], abs=1e-6)
    assert (result["clip"], result["frames"], result["seconds"]) == ("square.mp4", 10, 0.9)
    assert len(result["tracklets"]) == model.options.num_tracklets
    for tracklet in result["tracklets"]:
        assert sum(frame["weight"] for frame in tracklet["saliency"]) == pytest.approx(1, abs=1e-5)
        assert tracklet["class"] in model.class_names and tracklet["class"] in tracklet["prompt"]
    assert result["timeline"]["seconds"] == [0.4, 0.9]
    assert result["timeline"]["lines"][0]["name"] == result["classes"][0]["name"]
    assert all(len(line["probabilities"]) == 2 for line in result["timeline"]["lines"])
    json.dumps(result)

    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "explanation.json").read_text())["clip"] == "square.mp4"  # no directory of the server
    film = result["film"]
    with av.open(str(out / "film.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (film["width"], film["height"])
    assert [panel["title"] for panel in film["panels"]] == ["Tracklets", "Grad-CAM"]
    for panel in film["panels"]:
        assert 0 <= panel["left"] <= panel["left"] + panel["width"] <= film["width"]
        assert 0 <= panel["top"] <= panel["top"] + panel["height"] <= film["height"]


def test_result_of_a_backbone(make_model, relative_clip, tmp_path):
    from art.tools.serve.worker import describe

    model = make_model("backbone")
    result = predict(model, relative_clip, tmp_path / "out", timeline_points=0)
    assert result["tracklets"] == [] and [panel["title"] for panel in result["film"]["panels"]] == ["Grad-CAM"]
    assert "without tracklets" in result["notes"][0]
    assert result["notes"][1] == "No attention rollout for this backbone: it has no attention."
    assert describe(model, "cpu")["tracklets"] == 0 and result["timeline"] is None


def test_result_without_anything_to_draw(make_model, relative_clip, tmp_path, monkeypatch):
    from art.tools.explain import explanation
    from art.tools.explain.backbone_maps import MapUnavailable

    def unavailable(*_):
        raise MapUnavailable("it is not supported")

    monkeypatch.setattr(explanation, "grad_cam", unavailable)
    result = predict(make_model("backbone"), relative_clip, tmp_path / "out", timeline_points=0)
    assert result["film"] is None and len(result["classes"]) == 4 and not (tmp_path / "out").exists()
    assert "No Grad-CAM for this backbone: it is not supported." in result["notes"]


def test_clip_damaged_in_the_middle_is_refused(make_model, make_video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make_video(tmp_path / "long.mp4", 60, width=320, height=240)
    damaged = bytearray(path.read_bytes())
    damaged[200 : len(damaged) // 2] = b"\xff" * (len(damaged) // 2 - 200)
    path.write_bytes(damaged)
    with pytest.raises(Refused, match=r"^“long.mp4” .*The file may be damaged") as refused:
        predict(make_model(), path.relative_to(tmp_path), tmp_path / "out", timeline_points=0)
    assert str(tmp_path) not in str(refused.value)


def test_limits_are_checked_before_the_model_runs(relative_clip, tmp_path):
    with pytest.raises(Refused, match="has more frames than the limit of 5"):
        predict(None, relative_clip, tmp_path / "out", limits=Limits(frames=5))


@pytest.fixture
def check_clip():
    from art.tools.serve.worker import check_clip

    return check_clip


@pytest.fixture
def refusal(check_clip, tmp_path):
    """``refusal(content, limits)``: the message for a file with that content."""

    def check(content, limits=None, name="clip.mp4"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(Refused) as refused:
            check_clip(path, limits or Limits())
        assert str(tmp_path) not in str(refused.value)
        return str(refused.value)

    return check


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.avi", "clip.m4v", "clip.webm"])
def test_accepted_containers_at_the_limits(check_clip, make_video, tmp_path, name):
    path = make_video(tmp_path / name, codec="libvpx" if name.endswith("webm") else "libx264")
    check_clip(path.rename(tmp_path / "any name"), Limits(seconds=0.9, frames=10, megapixels=96 * 64 / 1e6))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"seconds": 0.85}, "“clip.mp4” is longer than the limit of 0.85 s (1.0 s). Trim the clip."),
        ({"frames": 9}, "“clip.mp4” has more frames than the limit of 9. Trim the clip"),
        ({"megapixels": 0.006}, "“clip.mp4” are 96×64 (0.00614 megapixels), larger than the limit of 0.006 megapixels"),
    ],
)
def test_message_states_limit_and_actual_value(refusal, content, limits, message):
    assert message in refusal(content, Limits(**limits))


def test_damaged_empty_and_other_files_are_distinguished(refusal, content):
    assert "“clip.mp4” cannot be read: Invalid data" in refusal(content[:200])
    assert "The file may be damaged" in refusal(content[:200])
    assert refusal(b"") == "“clip.mp4” is empty (0 bytes)."
    message = refusal(b"notes of a meeting", name="notes.txt")
    assert "“notes.txt” is not a supported video. Supported formats are MP4" in message
    # FFmpeg detects the format from more than the first bytes, here of a file that starts like QuickTime.
    assert "cannot be read" in refusal(b"\0\0\0\x10free" + bytes(8) + b"#EXTM3U\n" * 40)


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nhttp://127.0.0.1:9/x\n",
        b"ffconcat version 1.0\nfile other.mp4\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    ],
    ids=["HLS", "concat", "SDP", "DASH"],
)
def test_files_that_refer_to_other_files_are_never_opened(refusal, content, monkeypatch):
    monkeypatch.setattr("art.tools.serve.worker.open_source", lambda path: pytest.fail("the file was opened"))
    assert "is not a supported video" in refusal(content)


def test_names_in_a_result_are_visible_and_can_be_sent(make_model, clip):
    from art.tools.explain import explain
    from art.tools.serve.worker import result_for_page

    names = ["a\x00\x1b[0m", "b\u202ec", "caf\udce9", "<b>走る"]
    e = explain(make_model(), clip, timeline_points=1)
    queries = tuple(dataclasses.replace(query, name=names[2], prompt=f"a {names[2]}") for query in e.queries)
    result = result_for_page(dataclasses.replace(e, class_names=names, queries=queries), 4)
    shown = {r"a\x00\x1b[0m", r"b\u202ec", r"caf\udce9", "<b>走る"}
    assert {entry["name"] for entry in result["classes"]} == shown
    assert {line["name"] for line in result["timeline"]["lines"]} == shown
    assert result["tracklets"][0]["prompt"] == r"a caf\udce9"
    json.dumps(result, ensure_ascii=False).encode("utf-8")


def test_probabilities_that_are_not_finite_are_refused(make_model, relative_clip, tmp_path):
    model = make_model("backbone")
    model.video_head.weight.data.fill_(float("nan"))
    with pytest.raises(Refused, match="probabilities are not finite"):
        predict(model, relative_clip, tmp_path / "out")


def fake_worker(connection, checkpoint, device, options):
    """Replaces the target of the worker process: the name of each clip determines the reply."""
    if checkpoint.name == "invalid":
        connection.send(("error", ValueError("it is invalid")))
        return
    if checkpoint.name == "exits":
        os._exit(3)
    connection.send(("ready", {"pid": os.getpid()}))
    while True:
        clip, out = connection.recv()
        connection.send(("step", clip.name))
        if clip.name == "crash":
            os._exit(9)
        if clip.name == "crash once" and not out.with_name("crashed").exists():
            out.with_name("crashed").touch()
            out.mkdir()
            os._exit(9)
        if clip.name == "hang":
            time.sleep(60)
        message = ("refused", "It is bad.") if clip.name == "bad" else ("result", {"pid": os.getpid()})
        connection.send(message)


@pytest.fixture
def make_worker():
    workers = []

    def make(checkpoint="valid", **options):
        workers.append(WorkerProcess(Path(checkpoint), None, target=fake_worker, **options))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def send(worker, name, report=lambda step: None):
    return worker.predict(Path(name), Path("out"), report)


def test_process_is_reused(make_worker):
    worker, steps = make_worker(), []
    pid = worker.start()["pid"]
    assert send(worker, "good", steps.append) == {"pid": pid} and steps == ["good"]
    with pytest.raises(Refused, match=r"^It is bad.$"):
        send(worker, "bad")
    assert send(worker, "good") == {"pid": pid}


def test_process_is_replaced_after_a_crash_and_a_timeout(make_worker):
    worker = make_worker(timeout=2.0)
    pids = {worker.start()["pid"]}
    with pytest.raises(Refused, match="Something went wrong while processing your clip"):
        send(worker, "crash")
    pids.add(send(worker, "good")["pid"])
    with pytest.raises(Refused, match="longer than the limit of 2 s"):
        send(worker, "hang")
    pids.add(send(worker, "good")["pid"])
    assert len(pids) == 3


def test_clip_is_processed_again_by_a_new_process(make_worker, tmp_path, caplog):
    worker, steps = make_worker(), []
    pid = worker.start()["pid"]
    assert worker.predict(Path("crash once"), tmp_path / "out", steps.append)["pid"] != pid
    assert steps == ["crash once", "Restarting the model", "crash once"] and "exit code 9" in caplog.text
    assert not (tmp_path / "out").exists(), "files of the first attempt are removed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_idle_process_that_was_killed_or_hangs_does_not_lose_the_next_clip(make_worker, number):
    worker = make_worker(timeout=4.0)
    pid = worker.start()["pid"]
    os.kill(pid, number)
    other = send(worker, "good")["pid"]
    assert other != pid and send(worker, "good") == {"pid": other}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_errors_while_loading_the_model(make_worker):
    with pytest.raises(ValueError, match="it is invalid"):
        make_worker("invalid").start()
    with pytest.raises(RuntimeError, match="the worker process exited while loading the model"):
        make_worker("exits").start()


def test_close_does_not_wait_for_a_clip(make_worker):
    worker, refusals, started = make_worker(), [], threading.Event()

    def run():
        with pytest.raises(Refused) as refused:
            send(worker, "hang", lambda step: started.set())
        refusals.append(refused)

    worker.start()
    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    worker.close()
    thread.join(20)  # the clip takes 60 s
    assert refusals
    with pytest.raises(Refused, match="shutting down"):
        send(worker, "good")
