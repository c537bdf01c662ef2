"""By plain HTTP, as somebody would who is not to get in."""

import re

import pytest

TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def closed(serving, looking, tmp_path_factory):
    """A page with a token, at an address that any name may mean."""
    with serving(looking(), tmp_path_factory.mktemp("closed"), token=TOKEN, local=False) as site:
        yield site


@pytest.fixture(scope="module")
def local(serving, looking, tmp_path_factory):
    """A page without a token, on this machine only."""
    with serving(looking(), tmp_path_factory.mktemp("local")) as site:
        yield site


def routes(site):
    """Every method and path of the page."""
    from starlette.routing import Mount

    for route in site.page.routes:
        if isinstance(route, Mount):
            yield "GET", route.path + "/style.css"
            yield "GET", route.path + "/dance.mp4"
        else:
            path = re.sub(r"{\w+}", "x", route.path)
            yield from ((method, path) for method in route.methods)
    yield "GET", "/not/there"
    yield "OPTIONS", "/"


def test_without_the_token_there_is_nothing_but_the_question_for_it(closed):
    asked = list(routes(closed))
    assert len(asked) >= 12
    for method, path in asked:
        answer = closed.ask(method, path, b"clip" if method == "POST" else None)
        assert (method, path, answer.status) == (method, path, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert method == "HEAD" or answer.json == {"message": "This page needs its token."}
    assert closed.files() == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xe4"},
        {"Cookie": f"art-serve={TOKEN}"},
        {"Upgrade": "websocket", "Connection": "Upgrade"},
    ],
)
def test_what_is_like_the_token_is_not_it(closed, headers):
    assert closed.ask("GET", "/about", **headers).status == 401


def test_a_program_gives_the_token_in_a_header(closed):
    assert closed.ask("GET", "/about", Authorization=f"Bearer {TOKEN}").json["kind"] == "art"


def test_the_printed_address_lets_a_browser_in_and_hides_the_token(closed):
    answer = closed.ask("GET", f"/?token={TOKEN}&view=1")
    assert (answer.status, answer.headers["Location"]) == (303, "/?view=1")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    kept = cookie.partition(";")[0]
    assert closed.ask("GET", "/about", Cookie=kept).status == 200
    assert closed.ask("GET", "/about", Cookie=kept[:-1]).status == 401
    assert closed.ask("GET", "/?token=wrong").status == 401
    assert "Set-Cookie" not in closed.ask("GET", "/?token=wrong").headers


def test_a_redirect_stays_on_this_host(closed):
    assert closed.ask("GET", f"//elsewhere.example/?token={TOKEN}").headers["Location"] == "/elsewhere.example/"


def test_a_browser_is_asked_on_a_page(closed):
    page = closed.ask("GET", "/", Accept="text/html")
    assert page.status == 401 and b'action="/login"' in page.content
    assert "style-src 'sha256-" in page.headers["Content-Security-Policy"]
    wrong = closed.ask("POST", "/login", b"token=nonsense", Accept="text/html")
    assert wrong.status == 401 and b"That is not the token." in wrong.content
    right = closed.ask("POST", "/login", f"token={TOKEN}")
    assert right.status == 303 and right.headers["Location"] == "/"
    assert closed.ask("POST", "/login", b"token=" + b"x" * 5000).status == 413


def test_with_a_token_the_page_may_have_any_name(closed):
    assert closed.ask("GET", "/about", Host="box.example:80", Authorization=f"Bearer {TOKEN}").status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:9999", 200),  # through a tunnel
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
        ("LOCALHOST", 200),
        ("attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_a_name_that_was_made_to_mean_this_machine_is_refused(local, host, status):
    assert local.ask("GET", "/about", Host=host).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 201),
    ],
)
def test_other_pages_cannot_send_clips(local, headers, status):
    assert local.ask("POST", "/clips?sample=dance.mp4", **headers).status == status


def test_its_own_page_can(local):
    assert local.ask("POST", "/clips?sample=dance.mp4", Origin=local.address).status == 201


def test_a_browser_is_told_to_keep_to_this_page(local):
    for path in ("/", "/about", "/page/page.js", "/nowhere"):
        headers = local.ask("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
