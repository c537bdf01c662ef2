"""``art serve`` from start to stop."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from art.cli import main

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")


def run(*arguments):
    return main(["serve", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoint(make_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    make_model().save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_start_result_and_sigterm(checkpoint, tmp_path):
    arguments = ["--checkpoint", str(checkpoint), "--port", "0", "--timeline-points", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "art", "serve", *arguments]
    with subprocess.Popen(command, **pipes, text=True, env=environment) as server:
        try:
            assert server.stdout.readline() == f"loaded {checkpoint}: 4 classes, kind art, backbone tiny, on cpu\n"
            line = server.stdout.readline()
            host, port = re.fullmatch(r"open http://(127.0.0.1):(\d+)/ \(press Ctrl-C to stop\)\n", line).groups()
            connection = http.client.HTTPConnection(host, int(port), timeout=20)

            def request(method, path):
                connection.request(method, path)
                return json.loads(connection.getresponse().read())

            id = request("POST", "/clips?sample=dance.mp4")["id"]
            end = time.monotonic() + 120
            while (status := request("GET", f"/clips/{id}"))["state"] != "done":
                assert status["state"] in ("waiting", "working") and time.monotonic() < end
                time.sleep(0.1)
            assert status["result"]["frames"] == 24
            assert [path.name for path in tmp_path.rglob("out/*.mp4")] == ["film.mp4"]
            assert not list(tmp_path.rglob("in/*"))  # the uploaded clip is deleted
            request("POST", "/clips?sample=dance.mp4")  # stopped while a clip is in progress
            server.send_signal(signal.SIGTERM)
            _, stderr = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 143, stderr
    assert stderr == "art: stopped by SIGTERM; uploaded clips and results are deleted\n"
    assert not list(tmp_path.glob("art-serve-*"))


def test_port_in_use(checkpoint, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run("--checkpoint", checkpoint, "--port", port) == 2
    message = f"--port: {port} is in use on 127.0.0.1; choose another one, or 0 for a free one"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port: got 70000, expected 0 to 65535"),
        (["--host", "192.0.2.1"], "--host: cannot listen on 192.0.2.1"),
        (["--host", "no such host"], "--host: cannot resolve 'no such host'"),
        (["--token", "short"], "--token: got 5 characters, expected at least 16"),
        (["--token", "with a space in the middle"], "--token: expected printable ASCII characters"),
        (["--top-k", "0"], "--top-k: got 0"),
        (["--timeline-points", "-1"], "--timeline-points: got -1"),
        (["--max-megabytes", "0"], "--max-megabytes: got 0.0"),
        (["--max-waiting", "0"], "--max-waiting: got 0"),
        (["--timeout", "0"], "--timeout: got 0.0"),
        (["--keep-minutes", "-1"], "--keep-minutes: got -1.0"),
    ],
)
def test_invalid_options_are_reported_before_the_model_loads(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("art.tools.serve.server.WorkerProcess", lambda *_, **__: pytest.fail("loading started"))
    assert run("--checkpoint", "nowhere", *arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_library_is_reported_with_the_pip_command(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run("--checkpoint", "nowhere") == 2
    assert "pip install 'art-kernels[serve]'" in capsys.readouterr().err


def test_server_process_does_not_import_torch():
    code = "import sys, art.tools.serve, art.tools.serve.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_token_is_generated_for_other_machines(monkeypatch):
    from art.tools.serve.server import ServeSettings, _startup_message, _token, is_loopback

    monkeypatch.delenv("ART_SERVE_TOKEN", raising=False)
    about = {"classes": [1, 2], "kind": "art", "backbone": "tiny", "device": "cpu"}
    local, public = (ServeSettings("runs/x", host=host) for host in ("127.0.0.1", "0.0.0.0"))
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.9", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1")))
    assert _token(local) == (None, False)
    token, generated = _token(public)
    assert generated and len(token) >= 32 and _token(public)[0] != token
    assert f"open http://{socket.gethostname()}:80/?token={token} " in _startup_message(public, 80, about, token)
    monkeypatch.setenv("ART_SERVE_TOKEN", "a-token-of-24-characters")
    assert _token(local) == _token(public) == ("a-token-of-24-characters", False)
    assert "token" not in _startup_message(public, 80, about, None)
    monkeypatch.setenv("ART_SERVE_TOKEN", "")
    with pytest.raises(ValueError, match="ART_SERVE_TOKEN: got 0 characters"):
        _token(public)


class Loop:
    """A clock that is set by the test."""

    def __init__(self):
        self.now, self.timers = 0.0, {}

    def call_later(self, seconds, function):
        timer = SimpleNamespace(cancel=lambda: self.timers.pop(id(timer), None))
        self.timers[id(timer)] = (self.now + seconds, function, timer)
        return timer

    def advance(self, seconds):
        self.now += seconds
        for key, (end, function, _) in list(self.timers.items()):
            if end <= self.now:
                self.timers.pop(key, None)
                function()


class Transport(asyncio.Transport):
    """Records what is written and whether the connection was closed."""

    def __init__(self):
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.closed, self.written = False, b""

    def abort(self):
        self.closed = True

    close = abort

    def is_closing(self):
        return self.closed

    def write(self, data):
        self.written += data

    pause_reading = resume_reading = lambda self: None


@pytest.fixture
def connect():
    """Open a connection to a server that admits four, without a network."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    from art.tools.serve.connections import with_deadlines

    config, state, protocol = (
        uvicorn.Config(None, limit_concurrency=4, interface="asgi3"),
        ServerState(),
        with_deadlines(H11Protocol),
    )
    config.loaded, config.loaded_app, config.ws_protocol_class = True, None, None

    def make(loop):
        loop.create_task = lambda coroutine, **_: (coroutine.close(), Task())[1]
        connection = protocol(config, state, {}, loop)
        connection.connection_made(Transport())
        return connection

    return make


class Task:
    def add_done_callback(self, function):
        pass


def test_incomplete_headers_have_a_deadline(connect):
    loop = Loop()
    slow, complete = connect(loop), connect(loop)
    slow.data_received(b"GET /abo")
    complete.data_received(b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n")
    loop.advance(9)
    slow.data_received(b"u")  # does not extend the deadline
    assert not slow.transport.closed
    loop.advance(1)
    assert slow.transport.closed and not complete.transport.closed
    complete.pause_writing()
    loop.advance(59)
    assert not complete.transport.closed
    loop.advance(1)
    assert complete.transport.closed


def test_connections_without_a_request_make_room(connect):
    loop = Loop()
    slow = [connect(loop) for _ in range(9)]
    for connection in slow:
        connection.data_received(b"GET /abo")
    new = connect(loop)
    new.data_received(b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert new.cycle is not None and not new.transport.closed
    assert [connection.transport.closed for connection in slow] == [True] * 7 + [False] * 2
    assert len(new.connections) == 3
