"""The routes of the page, and what the guard rejects, over plain HTTP."""

import asyncio
import re
import socket
from urllib.parse import urlsplit

import pytest

from art.data.motion.takes import CLASSES
from art.tools.serve.jobs import Limits
from art.tools.serve.worker import check_clip

pytest.importorskip("starlette", reason="the extra [serve] is not installed")

LIMIT = 200_000
TOKEN = "a-token-of-24-characters"


@pytest.fixture
def site(serving, blocking, tmp_path):
    with serving(blocking, tmp_path, limits=Limits(megabytes=LIMIT / 1e6), max_waiting=2) as site:
        yield site


@pytest.fixture(scope="module")
def guarded(serving, make_predictor, tmp_path_factory):
    """A page with a token, under any host name."""
    with serving(make_predictor(), tmp_path_factory.mktemp("guarded"), token=TOKEN, local=False) as site:
        yield site


@pytest.fixture(scope="module")
def local(serving, make_predictor, tmp_path_factory):
    """A page without a token, on this machine only."""
    with serving(make_predictor(), tmp_path_factory.mktemp("local")) as site:
        yield site


def test_upload_result_and_deletion(site, blocking, content, wait_until):
    id = site.request("POST", "/clips?name=my%20clip.mp4", content).json["id"]
    status = wait_until(lambda: (status := site.request("GET", f"/clips/{id}").json)["step"] and status)
    assert (status["state"], status["step"], status["ahead"]) == ("working", "Blocking", 0)
    assert blocking.clips[0].read_bytes() == content
    assert site.request("GET", f"/clips/{id}/film.mp4").status == 404
    blocking.release.set()
    assert site.wait_for_end(id)["result"] == {"frames": 1, "clip": "my clip.mp4"}
    assert site.files() == ["film.mp4"]
    assert site.request("DELETE", f"/clips/{id}").status == 204
    assert site.files() == [] and site.request("GET", f"/clips/{id}").status == 404


def test_only_files_of_the_result_are_served_with_range_requests(site, blocking, content):
    blocking.release.set()
    id = site.request("POST", "/clips", content).json["id"]
    site.wait_for_end(id)
    part = site.request("GET", f"/clips/{id}/film.mp4", Range="bytes=10-19")
    assert (part.status, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["Content-Type"] == "video/mp4"
    for file in ("sheet.png", ".", "..%2Fin", "%2e%2e", "..%2f..%2fother"):
        assert site.request("GET", f"/clips/{id}/{file}").status == 404


def test_size_limit_applies_to_the_announced_and_the_actual_size(site, content):
    for body in (b"x" * (LIMIT + 1), iter([content, bytes(LIMIT)])):
        response = site.request("POST", "/clips?name=big.mp4", body)
        assert response.status == 400
        assert response.json["message"].startswith("“big.mp4” is larger than the limit of 0.2 MB")
    assert site.files() == [] and not list(site.directory.iterdir())


def test_other_files_are_rejected_during_the_upload(site):
    chunks = iter([b"one", b" text", b" in several", b" parts"])
    for body in (b"", b"short", b"a text that is long enough", chunks):
        response = site.request("POST", "/clips?name=x.txt", body)
        assert response.status == 400
        assert ("“x.txt” is not a supported video" if body else "“x.txt” is empty") in response.json["message"]
        assert not list(site.directory.iterdir())


def test_full_queue(site, content):
    ids = [site.request("POST", "/clips", content).json["id"] for _ in range(2)]
    assert [site.request("GET", f"/clips/{id}").json["ahead"] for id in ids] == [0, 1]
    response = site.request("POST", "/clips", content)
    assert response.status == 503 and "Too many clips are waiting" in response.json["message"]
    site.request("DELETE", f"/clips/{ids[1]}")
    assert site.request("POST", "/clips", content).status == 201


def test_upload_is_canceled_when_it_is_too_slow(site, content, monkeypatch):
    monkeypatch.setattr("art.tools.serve.jobs._UPLOAD_GRACE", -1.0)  # at the next check
    monkeypatch.setattr("art.tools.serve.jobs._CLEANUP_INTERVAL", 0.01)
    server = urlsplit(site.url)
    with socket.create_connection((server.hostname, server.port), timeout=10) as connection:
        connection.sendall(b"POST /clips HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + content[:20])
        assert connection.recv(100).startswith(b"HTTP/1.1 408")  # without more data
    assert not list(site.directory.iterdir())


def test_samples(site, blocking, tmp_path_factory):
    from art.tools.serve.app import SAMPLES, extract_samples

    samples = site.request("GET", "/about").json["samples"]
    extracted = sorted(extract_samples(tmp_path_factory.mktemp("samples")).iterdir())
    assert len(samples) == 6 and [sample["file"] for sample in samples] == [path.name for path in extracted]
    assert {sample["title"] for sample in samples} < {motion.name for motion in CLASSES}
    for path in extracted:
        response = site.request("GET", f"/samples/{path.name}", Range="bytes=10-19")
        assert (response.status, response.content) == (206, path.read_bytes()[10:20])
        assert site.request("GET", f"/samples/{path.name}").content == path.read_bytes()
        check_clip(path, Limits(seconds=2, frames=24, megapixels=112 * 112 / 1e6))
    assert SAMPLES.stat().st_size < 300_000
    blocking.release.set()
    id = site.request("POST", "/clips?sample=dance.mp4").json["id"]
    assert site.wait_for_end(id)["result"]["clip"] == "dance.mp4"
    for name in ("nothing.mp4", "..%2Fpage%2Findex.html"):
        assert site.request("POST", f"/clips?sample={name}").status == 404


def test_page_has_no_external_resources(site):
    from art.tools.serve.app import PAGE

    for file in PAGE.iterdir():
        text = site.request("GET", f"/page/{file.name}").content.decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text


def routes(site):
    """Every method and path of the page."""
    from starlette.routing import Mount

    for route in site.application.routes:
        if isinstance(route, Mount):
            yield "GET", route.path + "/style.css"
            yield "GET", route.path + "/dance.mp4"
        else:
            path = re.sub(r"{\w+}", "x", route.path)
            yield from ((method, path) for method in route.methods)
    yield "GET", "/not/there"
    yield "OPTIONS", "/"


def test_every_route_requires_the_token(guarded):
    requests = list(routes(guarded))
    assert len(requests) >= 12
    for method, path in requests:
        response = guarded.request(method, path, b"clip" if method == "POST" else None)
        assert (method, path, response.status) == (method, path, 401)
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert method == "HEAD" or response.json == {"message": "This page requires a token."}
    assert guarded.files() == []


def test_invalid_credentials(guarded):
    for value in (f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}", "Bearer \xe4"):
        assert guarded.request("GET", "/about", Authorization=value).status == 401
    for headers in ({"Cookie": f"art-serve={TOKEN}"}, {"Upgrade": "websocket", "Connection": "Upgrade"}):
        assert guarded.request("GET", "/about", **headers).status == 401


def test_token_in_a_header_works_under_any_host_name(guarded):
    assert guarded.request("GET", "/about", Authorization=f"Bearer {TOKEN}").json["kind"] == "art"
    response = guarded.request("GET", "/about", Host="box.example:80", Authorization=f"Bearer {TOKEN}")
    assert response.status == 200


def test_token_in_the_address_is_replaced_by_a_cookie(guarded):
    response = guarded.request("GET", f"/?token={TOKEN}&view=1")
    assert (response.status, response.headers["Location"]) == (303, "/?view=1")
    header = response.headers["Set-Cookie"]
    assert "HttpOnly" in header and "SameSite=strict" in header and TOKEN not in header
    cookie = header.partition(";")[0]
    assert guarded.request("GET", "/about", Cookie=cookie).status == 200
    assert guarded.request("GET", "/about", Cookie=cookie[:-1]).status == 401
    wrong = guarded.request("GET", "/?token=wrong")
    assert wrong.status == 401 and "Set-Cookie" not in wrong.headers
    redirect = guarded.request("GET", f"//elsewhere.example/?token={TOKEN}")
    assert redirect.headers["Location"] == "/elsewhere.example/"  # on this host


def test_login_page(guarded):
    page = guarded.request("GET", "/", Accept="text/html")
    assert page.status == 401 and b'action="/login"' in page.content
    assert "style-src 'sha256-" in page.headers["Content-Security-Policy"]
    wrong = guarded.request("POST", "/login", b"token=nonsense", Accept="text/html")
    assert wrong.status == 401 and b"Invalid token." in wrong.content
    right = guarded.request("POST", "/login", f"token={TOKEN}")
    assert right.status == 303 and right.headers["Location"] == "/"
    assert guarded.request("POST", "/login", b"token=" + b"x" * 5000).status == 413


def test_host_header(local):
    for host in ("localhost", "localhost:9999", "127.0.0.1:80", "[::1]:80", "LOCALHOST"):  # any port, for tunnels
        assert local.request("GET", "/about", Host=host).status == 200
    for host in ("attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example"):
        assert local.request("GET", "/about", Host=host).status == 421


@pytest.mark.parametrize(
    "host", ["[", "", "[::1", "[zz]", "[1.2]", "a b", "a/b", "u@localhost", "localhost:99999", "::1"]
)
def test_malformed_host(local, guarded, host):
    for site in (local, guarded):
        for path in ("/about", f"/?token={TOKEN}"):
            response = site.request("GET", path, Host=host, Authorization=f"Bearer {TOKEN}")
            assert (response.status, response.json["message"]) == (400, "The Host header is malformed.")


@pytest.mark.parametrize(
    "origin",
    ["http://[", "http://[::1", "http://]", "//[", "", "http:", "localhost", "http://a b", "http://a:x", "é"],
)
def test_malformed_origin(local, guarded, origin):
    for site in (local, guarded):
        for method, path in (("POST", "/clips?sample=dance.mp4"), ("GET", "/about")):
            response = site.request(method, path, Origin=origin, Authorization=f"Bearer {TOKEN}")
            assert (response.status, response.json["message"]) == (400, "The Origin header is malformed.")


def test_other_malformed_headers_and_paths_are_never_internal_errors(local):
    headers = [
        {"Range": value}
        for value in ("bytes", "bytes=a-b", "bytes=5-1", "items=0-1", f"bytes=0-{'9' * 5000}", "bytes=-")
    ]
    headers += [{"Cookie": value} for value in ('a="\\', "=", "\xff=\xfe", '"\\400"')]
    headers += [{"If_Modified_Since": "Mon, 99 Foo 0000 99:99:99"}, {"Content_Length": "-1"}, {"Content_Length": "x"}]
    headers += [{"Sec_Fetch_Site": "\xff"}, {"Accept": "\xff"}, {"Authorization": "\xff"}, {"If_Range": "\xff"}]
    for extra in headers:
        assert local.request("GET", "/page/style.css", **extra).status < 500, extra
    for path in (
        "/page/%00",
        "/clips/%00",
        "/clips/x/%ff",
        "/%ff%fe",
        "/samples/" + "x" * 5000,
        "/page/%5c..%5c",
        "/a%0d%0ab",
    ):
        assert local.request("GET", path).status in (400, 404), path
    assert local.request("POST", "/clips?sample=%00").status == 404


class FakeTime:
    """A clock that sleeping advances."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def request_status(guard, client, token=None, cookie=None, path="/about"):
    """Send one request from an address to a guard, without a network."""
    headers = [(b"host", b"box.example")]
    headers += [(b"authorization", b"Bearer " + token.encode())] if token else []
    headers += [(b"cookie", cookie.encode())] if cookie else []
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": headers,
        "client": (client, 1), "server": ("0.0.0.0", 80), "scheme": "http", "root_path": "",
    }  # fmt: skip
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, None, send))
    start = sent[0]
    return start["status"], dict(start["headers"])


@pytest.fixture
def limited():
    from starlette.responses import PlainTextResponse

    from art.tools.serve.app import Guard, TokenAttempts

    clock = FakeTime()
    attempts = TokenAttempts(clock, clock.sleep)
    return clock, Guard(PlainTextResponse("in"), token=TOKEN, hosts=None, attempts=attempts)


def test_wrong_tokens_are_delayed_then_refused(limited):
    clock, guard = limited
    _, headers = request_status(guard, "10.0.0.2", path=f"/?token={TOKEN}")
    cookie = headers[b"set-cookie"].decode().partition(";")[0]
    start, statuses, times = clock.now, [], []
    for number in range(14):
        path = ("/about", "/?token=wrong")[number % 2]
        statuses.append(request_status(guard, "10.0.0.1", None if number % 2 else f"wrong {number}", path=path)[0])
        times.append(clock.now - start)
    assert statuses == [401] * 10 + [429] * 4
    assert times == [0] * 5 + [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert request_status(guard, "10.0.0.1", "wrong")[1][b"retry-after"] == b"60"
    now = clock.now
    assert request_status(guard, "10.0.0.2", TOKEN)[0] == 200 and clock.now == now, "another client"
    assert request_status(guard, "10.0.0.1", cookie=cookie)[0] == 200 and clock.now == now, "a browser at this address"
    assert request_status(guard, "10.0.0.1")[0] == 401 and clock.now == now, "without a token"
    assert request_status(guard, "10.0.0.1", TOKEN)[0] == 200 and clock.now == now + 1, "after the delay"
    clock.now += 301
    now = clock.now
    assert request_status(guard, "10.0.0.1", "wrong")[0] == 401 and clock.now == now, "forgotten"


def test_addresses_of_one_ipv6_client_count_together(limited):
    _, guard = limited
    statuses = [request_status(guard, f"2001:db8::{number:x}", "wrong")[0] for number in range(1, 13)]
    assert statuses == [401] * 10 + [429] * 2
    assert request_status(guard, "2001:db8:0:1::1", "wrong")[0] == 401


def test_parallel_wrong_tokens_are_refused_without_a_check():
    from art.tools.serve.app import TokenAttempts

    async def run():
        clock, released = FakeTime(), asyncio.Event()

        async def sleep(_):
            await released.wait()

        attempts = TokenAttempts(clock, sleep)
        for _ in range(5):
            assert await attempts.admit("a") and attempts.fail("a")
        waiting = [asyncio.create_task(attempts.admit("a")) for _ in range(20)]
        await asyncio.sleep(0)
        refused = [task.result() for task in waiting if task.done()]
        assert await attempts.admit("b")
        released.set()
        return refused, await asyncio.gather(*waiting)

    refused, admitted = asyncio.run(run())
    assert refused == [False] * 16 and sum(admitted) == 4


def test_memory_for_wrong_tokens_is_limited(limited):
    _, guard = limited
    for number in range(1030):
        guard._attempts.fail(str(number))
    assert len(guard._attempts._clients) == 1024


def test_cross_site_uploads_are_rejected(local):
    for headers in ({}, {"Origin": local.url}, {"Sec_Fetch_Site": "same-origin"}):
        assert local.request("POST", "/clips?sample=dance.mp4", **headers).status == 201
    rejected = [{"Origin": origin} for origin in ("http://attacker.example", "http://localhost:1", "null")]
    for headers in (*rejected, {"Sec_Fetch_Site": "cross-site"}):
        assert local.request("POST", "/clips?sample=dance.mp4", **headers).status == 403


def test_security_headers(local):
    for path in ("/", "/about", "/page/page.js", "/nowhere"):
        headers = local.request("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
