"""``art serve`` from start to stop."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

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
