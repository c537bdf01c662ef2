"""The page in headless Chromium, at the width of a desktop and of a phone."""

import os
import re
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: the page of art serve is NOT tested in a browser (apt-get install chromium)"
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
DESKTOP, PHONE = (1280, 860), (390, 844)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(serving, looking, tmp_path_factory):
    limits = {"megabytes": 2.0, "seconds": 3.0}
    looking = looking(**limits)
    with serving(looking, tmp_path_factory.mktemp("site"), limits=looking._asking.limits) as site:
        yield site


@pytest.fixture(scope="module")
def clip(write_video, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("browser") / "a square that moves.mp4", width=160, height=120)


@contextmanager
def opened(browser, site, size):
    """A page, of which everything it asks for and complains about is noted, and must be in order at the end."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, has_touch=size is PHONE)
    page.set_default_timeout(15_000)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(site.address)
    page.locator("#samples button").first.wait_for()
    yield page
    page.close()
    assert asked and not [url for url in asked if not url.startswith((site.address, "data:", "blob:"))]
    assert not [text for text in complaints if "400" not in text and "404" not in text], complaints


def fits(page):
    """Whether nothing has to be scrolled sideways to be read."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def plays(page, until):
    """Whether the film has pictures, and goes on."""
    video = "document.querySelector('#result video')"
    until(lambda: page.evaluate(f"{video}.videoWidth > 0 && {video}.currentTime > 0.1"))
    return True


def test_a_clip_goes_in_and_film_and_classes_come_out(browser, site, clip, until):
    with opened(browser, site, DESKTOP) as page:
        assert "ART with 2 tracklets on tiny: 4 classes" in page.locator("#about").inner_text()
        page.locator("#file").set_input_files(clip)
        result = page.locator("#result")
        result.locator("video").wait_for()
        assert plays(page, until)
        told = result.inner_text()
        assert "a square that moves.mp4: 10 frames, 0.9 s" in told and "Tracklet 2 asks for" in told
        classes = result.locator(".classes li").all_inner_texts()
        assert len(classes) == 3 and all("%" in text for text in classes)
        assert page.evaluate("document.activeElement.textContent") == "“" + classes[0].split("\n")[0] + "”"
        assert site.files() == ["explanation.json", "film.gif", "film.mp4", "sheet.png"]

        shown = "document.querySelector('.stage').getBoundingClientRect()"
        aspect = page.evaluate(f"{shown}.width / {shown}.height")
        result.get_by_text("Whole film").click()
        assert page.evaluate(f"{shown}.width / {shown}.height") > 1.1 * aspect
        result.get_by_role("button", name="Pause").click()
        result.get_by_label("Time in the clip").fill("0.5")
        until(lambda: result.locator(".player .time").inner_text() == "0.5 / 0.9 s")
        result.get_by_text("Contact sheet and files").click()
        until(lambda: page.evaluate("document.querySelector('.sheet img').naturalWidth > 0"))
        assert page.evaluate("[...document.images].every((image) => image.hasAttribute('alt'))")
        with page.expect_download() as saved:
            result.get_by_role("link", name="Numbers").click()
        assert saved.value.suggested_filename == "explanation.json"
    until(lambda: not site.files())  # the page has left, and with it the answer


def test_what_goes_wrong_is_said_so_that_a_person_understands(browser, site, clip, write_video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:1000])
    (tmp_path / "notes.txt").write_text("These are notes, and no video.")
    (tmp_path / "large.mp4").write_bytes(clip.read_bytes() + bytes(2_000_000))
    write_video(tmp_path / "long.mp4", 41)
    with opened(browser, site, PHONE) as page:
        for file, told in (
            ("broken.mp4", "“broken.mp4” cannot be read"),
            ("notes.txt", "“notes.txt” is no video that this page reads. It takes MP4, MOV, WebM, MKV and AVI files."),
            ("large.mp4", "A clip may have 2 MB here, and “large.mp4” has 2.0 MB. Cut it"),
            ("long.mp4", "A clip may last 3 s here, and “long.mp4” lasts 4.1 s. Cut it shorter."),
        ):
            page.locator("#file").set_input_files(tmp_path / file)
            problem = page.get_by_role("alert").filter(has_text=told)
            problem.wait_for()
            assert str(tmp_path) not in problem.inner_text() and fits(page)
            assert page.locator("#result").is_hidden() and page.locator("#progress").is_hidden()
    assert site.files() == []


def test_a_phone_shows_everything_without_scrolling_sideways_and_keys_are_enough(browser, site, until):
    with opened(browser, site, PHONE) as page:
        assert fits(page)
        page.locator("#samples button").nth(1).focus()
        page.keyboard.press("Enter")
        page.locator("#result video").wait_for()
        assert plays(page, until) and fits(page)
        assert page.locator("#result").bounding_box()["width"] > 340
        assert "The sample shows “dance”." in page.locator("#result").inner_text()
        page.locator("details summary").focus()
        page.keyboard.press("Enter")
        page.locator(".sheet img").wait_for()
        assert fits(page)
        texts = "[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && e.innerText?.trim())"
        assert page.evaluate(f"Math.min(...{texts}.map((e) => parseFloat(getComputedStyle(e).fontSize)))") >= 13


def test_the_camera_films_a_clip(browser, site, until):
    with opened(browser, site, PHONE) as page:
        page.get_by_role("button", name="Use the camera").click()
        until(lambda: page.evaluate("document.querySelector('#preview').videoWidth > 0"))
        assert fits(page)
        page.get_by_role("button", name="Record").click()
        page.get_by_role("button", name="Stop").click()  # at once: a slip of the finger
        page.get_by_text("That was too short.").wait_for()
        page.get_by_role("button", name="Record").click()
        until(lambda: re.match(r"0\.[6-9]|[12]\.", page.locator("#recorded").inner_text()))
        page.get_by_role("button", name="Stop").click()
        page.locator("#result video").wait_for()
        assert plays(page, until) and "camera.webm" in page.locator("#result").inner_text()
        assert page.locator("#filming").is_hidden()


def test_the_token_is_typed_in(browser, serving, held, tmp_path):
    token = "a-token-of-24-characters"
    with serving(held, tmp_path, token=token, local=False) as site:
        page = browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]})
        page.goto(site.address)
        assert fits(page)
        for given in ("wrong", token):
            page.get_by_label("Token").fill(given)
            page.keyboard.press("Enter")
            if given == "wrong":
                page.get_by_text("That is not the token.").wait_for()
        page.locator("#samples button").first.wait_for()
        assert page.url == f"{site.address}/"
        page.close()


def test_a_clip_is_dropped_and_given_up(browser, serving, held, tmp_path, until):
    with serving(held, tmp_path) as site, opened(browser, site, DESKTOP) as page:
        page.evaluate(
            """async () => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([await (await fetch("/samples/dance.mp4")).blob()], "dropped.mp4"));
              document.getElementById("drop").dispatchEvent(
                new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
            }"""
        )
        until(lambda: page.locator("#step").inner_text() == "Holding …")
        assert held.given[0].name == "dropped.mp4"
        page.get_by_role("button", name="Cancel").click()
        assert page.locator("#empty").is_visible()
        held.go.set()
        until(lambda: not site.files())
