import pytest

from art.tools.serve.limits import Limits

LIMIT = 200_000


@pytest.fixture
def site(serving, held, tmp_path):
    with serving(held, tmp_path, limits=Limits(megabytes=LIMIT / 1e6), most_waiting=2) as site:
        yield site


@pytest.fixture(scope="module")
def content(write_video, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("content") / "clip.mp4").read_bytes()


def test_a_clip_goes_in_its_answer_comes_out_and_nothing_stays(site, held, content, until):
    id = site.ask("POST", "/clips?name=my%20clip.mp4", content).json["id"]
    state = until(lambda: (told := site.ask("GET", f"/clips/{id}").json)["step"] and told)
    assert (state["state"], state["step"], state["ahead"]) == ("working", "Holding", 0)
    assert held.given[0].read_bytes() == content
    assert site.ask("GET", f"/clips/{id}/film.mp4").status == 404
    held.go.set()
    assert site.end_of(id)["answer"] == {"frames": 1, "clip": "my clip.mp4"}
    assert site.files() == ["film.mp4"]
    assert site.ask("DELETE", f"/clips/{id}").status == 204
    assert site.files() == [] and site.ask("GET", f"/clips/{id}").status == 404


def test_only_files_of_the_answer_are_given_and_in_parts_where_a_player_asks(site, held, content):
    held.go.set()
    id = site.ask("POST", "/clips", content).json["id"]
    site.end_of(id)
    part = site.ask("GET", f"/clips/{id}/film.mp4", Range="bytes=10-19")
    assert (part.status, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["Content-Type"] == "video/mp4"
    for file in ("sheet.png", ".", "..%2Fin", "%2e%2e", "..%2f..%2fother"):
        assert site.ask("GET", f"/clips/{id}/{file}").status == 404


def test_too_large_is_refused_by_what_is_announced_and_by_what_comes(site, content):
    for body in (b"x" * (LIMIT + 1), iter([content, bytes(LIMIT)])):
        answer = site.ask("POST", "/clips?name=big.mp4", body)
        assert answer.status == 400
        assert answer.json["message"].startswith("A clip may have 0.2 MB here, and “big.mp4” ")
    assert site.files() == [] and not list(site.folder.iterdir())


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "“x.txt” is empty"),
        (b"short", "is no video"),
        (b"a text that is long enough", "“x.txt” is no video that this page reads"),
        (iter([b"one", b" text", b" in many", b" parts"]), "is no video"),
    ],
)
def test_what_is_no_video_is_told_at_once(site, body, told):
    answer = site.ask("POST", "/clips?name=x.txt", body)
    assert answer.status == 400 and told in answer.json["message"]
    assert not list(site.folder.iterdir())


def test_when_all_places_are_taken_it_is_said(site, held, content):
    ids = [site.ask("POST", "/clips", content).json["id"] for _ in range(2)]
    assert [site.ask("GET", f"/clips/{id}").json["ahead"] for id in ids] == [0, 1]
    answer = site.ask("POST", "/clips", content)
    assert answer.status == 503 and "Too many clips are waiting" in answer.json["message"]
    site.ask("DELETE", f"/clips/{ids[1]}")
    assert site.ask("POST", "/clips", content).status == 201


def test_a_sample_is_brought_by_its_name(site, held):
    samples = site.ask("GET", "/about").json["samples"]
    assert len(samples) == 6
    for sample in samples:
        assert site.ask("GET", f"/samples/{sample['file']}").status == 200
        assert site.ask("GET", f"/samples/{sample['file'].replace('mp4', 'jpg')}").status == 200
    held.go.set()
    id = site.ask("POST", "/clips?sample=dance.mp4").json["id"]
    assert site.end_of(id)["answer"]["clip"] == "dance.mp4"
    for name in ("nothing.mp4", "README.md", "..%2Fpage%2Findex.html"):
        assert site.ask("POST", f"/clips?sample={name}").status == 404


def test_the_page_refers_to_nothing_elsewhere(site):
    for path in ("/", "/page/page.js", "/page/result.js", "/page/chart.js", "/page/camera.js", "/page/style.css"):
        text = site.ask("GET", path).content.decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
