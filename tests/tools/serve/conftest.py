"""The page in a thread of this process, asked by plain HTTP; small videos, and a small model."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from fractions import Fraction
from types import SimpleNamespace
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import torch

from art import ARTModel, BackboneClassifier
from art.tools.serve.answer import answer_clip, describe
from art.tools.serve.limits import Asking, Limits

NAMES = ("walk", "run and then run on", "jump", "cartwheel to the right")
SMALL = {
    "backbone_options": {"width": 8, "depth": [1, 1, 1]}, "num_frames": 3, "latent_dim": 16, "num_heads": 2,
    "feedforward_dim": 32, "enhancement_layers": 1, "activation_layers": 2,
}  # fmt: skip
ABOUT = {"kind": "art", "backbone": "tiny", "frames": 3, "tracklets": 2, "classes": NAMES, "device": "cpu"}


def write_video(path, count=10, *, width=96, height=64, rate=10, codec="libx264"):
    """A bright square that goes to the right on a dark ground."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(count):
            picture = np.full((height, width, 3), 40, dtype=np.uint8)
            left = round((width - 16) * i / max(1, count - 1))
            picture[24:40, left : left + 16] = (220, 180, 60)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session", name="write_video")
def _write_video():
    return write_video


@pytest.fixture(scope="session")
def make_model():
    def make(kind="art", **options):
        torch.manual_seed(0)
        cls = {"art": ARTModel, "backbone": BackboneClassifier}[kind]
        return cls(NAMES, **{**SMALL, **options}).eval()

    return make


class InThisProcess:
    """What :class:`art.tools.serve.analyst.Analyst` does, without a process of its own."""

    def __init__(self, model, asking):
        self._model, self._asking = model, asking
        self.about = describe(model, "cpu")

    def answer(self, clip, out, step):
        return answer_clip(self._model, clip, out, self._asking, step)


class Held:
    """Answers when it is let go, and says which clips it was given."""

    about = ABOUT

    def __init__(self):
        self.go, self.given = threading.Event(), []

    def answer(self, clip, out, step):
        self.given.append(clip)
        step("Holding")
        assert self.go.wait(10)
        out.mkdir()
        (out / "film.mp4").write_bytes(bytes(range(100)))
        return {"frames": 1, "clip": clip.name}


@pytest.fixture
def held():
    held = Held()
    yield held
    held.go.set()


@pytest.fixture(scope="session")
def looking(make_model):
    """``looking(kind, seconds=…)``: a model that looks at clips within such limits."""

    def make(kind="art", **limits):
        return InThisProcess(make_model(kind), Asking(top_k=3, moments=3, limits=Limits(**limits)))

    return make


class Site:
    """A page that is being served."""

    def __init__(self, address, folder):
        self.address, self.folder = address, folder

    def ask(self, method, path, body=None, **headers):
        """Status, headers and content of the answer to one request."""
        there = urlsplit(self.address)
        connection = http.client.HTTPConnection(there.hostname, there.port, timeout=20)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        chunked = not isinstance(body, (bytes, str, type(None)))
        try:
            connection.request(method, path, body, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return SimpleNamespace(
            status=answer.status,
            headers=answer.headers,
            content=content,
            json=json.loads(content) if is_json and content else None,
        )

    def end_of(self, id):
        """The state of a clip once it is done or refused."""
        return until(lambda: (state := self.ask("GET", f"/clips/{id}").json)["ahead"] == 0 and ended(state))

    def files(self):
        """What lies in its folder."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


def ended(state):
    return state if state["state"] in ("done", "refused") else None


def until(find, seconds=15.0):
    """What ``find`` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session", name="until")
def _until():
    return until


@contextmanager
def _serving(answers, folder, *, token=None, local=True, limits=None, keep=600.0, most_waiting=8):
    uvicorn = pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    from art.tools.serve.application import make_application
    from art.tools.serve.clips import Clips
    from art.tools.serve.guard import LOCAL_NAMES, Guard

    clips = Clips(folder, answers, keep=keep, most_waiting=most_waiting)
    page = make_application(clips, limits or Limits(), answers.about)
    guarded = Guard(page, token=token, hosts=LOCAL_NAMES if local else None)
    server = uvicorn.Server(
        uvicorn.Config(guarded, log_level="error", ws="none", lifespan="on", timeout_graceful_shutdown=1)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        site = Site(f"http://127.0.0.1:{listening.getsockname()[1]}", folder)
        site.page = page
        try:
            yield site
        finally:
            if hasattr(answers, "go"):
                answers.go.set()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def serving():
    """``with serving(answers, folder, …) as site:``, a page at a free port."""
    return _serving
