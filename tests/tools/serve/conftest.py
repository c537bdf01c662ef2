"""The page in a thread of this process, requested over plain HTTP."""

import http.client
import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from art.tools.serve.jobs import JobQueue, Limits, RequestOptions
from art.tools.serve.worker import describe, predict_clip


@pytest.fixture(scope="session")
def content(make_video, tmp_path_factory):
    """The bytes of a clip of 10 frames of 96×64."""
    return make_video(tmp_path_factory.mktemp("content") / "clip.mp4").read_bytes()


class BlockingPredictor:
    """Returns a result once ``release`` is set, and records the clips."""

    def __init__(self):
        self.release, self.clips = threading.Event(), []
        self.about = {"kind": "art", "backbone": "tiny", "tracklets": 2, "classes": ["walk", "run"], "device": "cpu"}

    def predict(self, clip, out, report):
        self.clips.append(clip)
        report("Blocking")
        assert self.release.wait(60)
        out.mkdir()
        (out / "film.mp4").write_bytes(bytes(range(100)))
        return {"frames": 1, "clip": clip.name}


@pytest.fixture
def blocking():
    predictor = BlockingPredictor()
    yield predictor
    predictor.release.set()


@pytest.fixture(scope="session")
def make_predictor(make_model):
    """``make_predictor(seconds=…)`` replaces the worker process with a model in this process."""

    def make(**limits):
        model, options = make_model(), RequestOptions(top_k=3, timeline_points=3, limits=Limits(**limits))

        def predict(clip, out, report):
            return predict_clip(model, clip, out, options, report)

        return SimpleNamespace(options=options, about=describe(model, "cpu"), predict=predict)

    return make


class Site:
    """A page that is being served."""

    def __init__(self, url, directory, application):
        self.url, self.directory, self.application = url, directory, application

    def request(self, method, path, body=None, **headers):
        """Return status, headers and content of the response."""
        server = urlsplit(self.url)
        connection = http.client.HTTPConnection(server.hostname, server.port, timeout=60)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        chunked = not isinstance(body, (bytes, str, type(None)))
        try:
            connection.request(method, path, body, headers, encode_chunked=chunked)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return SimpleNamespace(
            status=response.status,
            headers=response.headers,
            content=content,
            json=json.loads(content) if is_json and content else None,
        )

    def wait_for_end(self, id):
        """Return the status of a job once it is done or refused."""
        ended = ("done", "refused")
        return wait_until(lambda: (status := self.request("GET", f"/clips/{id}").json)["state"] in ended and status)

    def files(self):
        """Return the names of the files in its directory, which the server may be removing."""
        return sorted(name for _, _, names in os.walk(self.directory) for name in names)


def wait_until(condition, seconds=60.0):
    """Return the first true value of ``condition``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "timeout"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="session", name="wait_until")
def _wait_until():
    return wait_until


@contextmanager
def _serving(predictor, directory, *, token=None, local=True, limits=None, keep=600.0, max_waiting=8):
    uvicorn = pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from art.tools.serve.app import LOCAL_NAMES, Guard, extract_samples, make_application
    from art.tools.serve.connections import with_deadlines

    queue = JobQueue(directory, predictor, keep=keep, max_waiting=max_waiting)
    samples = extract_samples(directory.with_name(f"{directory.name}-samples"))
    application = make_application(queue, limits or Limits(), predictor.about, samples)
    guarded = Guard(application, token=token, hosts=LOCAL_NAMES if local else None)
    options = {"log_level": "error", "ws": "none", "lifespan": "on", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(guarded, http=with_deadlines(AutoHTTPProtocol), **options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", directory, application)
        finally:
            if hasattr(predictor, "release"):
                predictor.release.set()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def serving():
    """``with serving(predictor, directory, …) as site:`` serves a page on a free port."""
    return _serving
