"""``art serve`` as a user starts and stops it."""

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
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model().save_pretrained(folder)
    return folder


def test_from_the_printed_address_to_an_answer_and_to_a_clean_end(checkpoint, tmp_path):
    command = [sys.executable, "-m", "art", "serve", "--checkpoint", str(checkpoint), "--port", "0", "--moments", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as server:
        try:
            assert server.stdout.readline() == f"loaded {checkpoint}: 4 classes, kind art, backbone tiny, on cpu\n"
            opened = re.fullmatch(r"open http://(127.0.0.1):(\d+)/ \(Ctrl-C stops it\)\n", server.stdout.readline())
            host, port = opened.groups()
            site = http.client.HTTPConnection(host, int(port), timeout=20)

            def ask(method, path):
                site.request(method, path)
                return json.loads(site.getresponse().read())

            id = ask("POST", "/clips?sample=dance.mp4")["id"]
            end = time.monotonic() + 20
            while (state := ask("GET", f"/clips/{id}"))["state"] != "done":
                assert state["state"] in ("waiting", "working") and time.monotonic() < end
                time.sleep(0.1)
            assert state["answer"]["frames"] == 24
            assert [path.name for path in tmp_path.rglob("*.mp4")] == ["film.mp4"]
            ask_again = ask("POST", "/clips?sample=dance.mp4")  # stopped while it looks at a clip
            assert ask_again["id"] != id
            begun = time.monotonic()
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate(timeout=20)
        finally:
            server.kill()
    assert server.returncode == 143, said
    assert said == "art: stopped by SIGTERM; what was brought is removed\n"
    assert time.monotonic() - begun < 5
    assert not list(tmp_path.glob("art-serve-*"))


def test_a_port_that_is_taken(checkpoint, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run("--checkpoint", checkpoint, "--port", port) == 2
    said = capsys.readouterr().err
    assert said == f"art: error: --port: {port} is taken on 127.0.0.1; choose another, or 0 for one that is free\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "70000"], "--port: got 70000, expected 0 to 65535"),
        (["--host", "192.0.2.1"], "--host: 192.0.2.1 cannot be listened on"),
        (["--host", "no such host"], "--host: 'no such host' is no address"),
        (["--token", "short"], "--token: has 5 characters, expected at least 16"),
        (["--token", "with a space in the middle"], "--token: expected letters, digits and signs"),
        (["--top-k", "0"], "--top-k: got 0"),
        (["--moments", "-1"], "--moments: got -1"),
        (["--max-megabytes", "0"], "--max-megabytes: got 0.0"),
        (["--max-waiting", "0"], "--max-waiting: got 0"),
        (["--timeout", "0"], "--timeout: got 0.0"),
        (["--keep-minutes", "-1"], "--keep-minutes: got -1.0"),
    ],
)
def test_wrong_options_are_told_before_anything_is_loaded(capsys, monkeypatch, arguments, told):
    monkeypatch.setattr("art.tools.serve.server.Analyst", lambda *_, **__: pytest.fail("it began to load the model"))
    assert run("--checkpoint", "nowhere", *arguments) == 2
    assert told in capsys.readouterr().err


def test_a_missing_library_is_told_with_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run("--checkpoint", "nowhere") == 2
    assert "pip install 'art-kernels[serve]'" in capsys.readouterr().err


def test_the_page_itself_needs_no_torch():
    code = "import sys, art.tools.serve, art.tools.serve.application, art.tools.serve.guard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_machines_need_a_token(monkeypatch):
    from art.tools.serve.server import ServeSettings, _greeting, _token, is_loopback

    monkeypatch.delenv("ART_SERVE_TOKEN", raising=False)
    about = {"classes": [1, 2], "kind": "art", "backbone": "tiny", "device": "cpu"}
    here, everywhere = (ServeSettings("runs/x", host=host) for host in ("127.0.0.1", "0.0.0.0"))
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.9", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1")))
    assert _token(here) == (None, False)
    made, is_made = _token(everywhere)
    assert is_made and len(made) >= 32 and _token(everywhere)[0] != made
    assert f"open http://{socket.gethostname()}:80/?token={made} " in _greeting(everywhere, 80, about, made)
    monkeypatch.setenv("ART_SERVE_TOKEN", "a-token-of-24-characters")
    assert _token(here) == _token(everywhere) == ("a-token-of-24-characters", False)
    assert "token" not in _greeting(everywhere, 80, about, None)
    monkeypatch.setenv("ART_SERVE_TOKEN", "")
    with pytest.raises(ValueError, match="ART_SERVE_TOKEN: has 0 characters"):
        _token(everywhere)
