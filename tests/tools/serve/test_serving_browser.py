"""The page in headless Chromium, at desktop and phone width."""

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
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
DESKTOP, PHONE = (1280, 860), (390, 844)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(serving, make_predictor, tmp_path_factory):
    predictor = make_predictor(megabytes=2.0, seconds=6.0)
    with serving(predictor, tmp_path_factory.mktemp("site"), limits=predictor.options.limits) as site:
        yield site


@pytest.fixture(scope="module")
def clip(make_video, tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("browser") / "moving square.mp4", width=160, height=120)


@contextmanager
def open_page(browser, site, size):
    """Open the page, and check its requests and console messages at the end."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, has_touch=size is PHONE)
    page.set_default_timeout(60_000)
    urls, messages = [], []
    page.on("request", lambda request: urls.append(request.url))
    page.on("console", lambda message: messages.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(site.url)
    page.locator("#samples button").first.wait_for()
    yield page
    page.close()
    assert urls and not [url for url in urls if not url.startswith((site.url, "data:", "blob:"))]
    assert not [text for text in messages if "400" not in text and "404" not in text], messages


def fits(page):
    """Return whether the page needs no horizontal scrolling."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def wait_until_film_plays(page, wait_until):
    video = "document.querySelector('#result video')"
    wait_until(lambda: page.evaluate(f"{video}.videoWidth > 0 && {video}.currentTime > 0.1"))


def test_upload_and_result(browser, site, clip, wait_until):
    with open_page(browser, site, DESKTOP) as page:
        assert "ART with 2 tracklets on tiny, 4 classes" in page.locator("#about").inner_text()
        # The poster of each sample is one of its frames.
        samples = "[...document.querySelectorAll('#samples video')]"
        wait_until(
            lambda: page.evaluate(f"{samples}.every((video) => video.readyState >= 2)")
        )  # their frames are shown
        page.locator("#file").set_input_files(clip)
        result = page.locator("#result")
        result.locator("video").wait_for()
        wait_until_film_plays(page, wait_until)
        text = result.inner_text()
        assert "moving square.mp4: 10 frames, 0.9\u00a0s" in text and "Tracklet 2, query" in text
        classes = result.locator(".classes li").all_inner_texts()
        assert len(classes) == 3 and all("%" in text for text in classes)
        assert page.evaluate("document.activeElement.textContent") == "“" + classes[0].split("\n")[0] + "”"
        assert site.files() == ["explanation.json", "film.gif", "film.mp4", "sheet.png"]

        stage = "document.querySelector('.stage').getBoundingClientRect()"
        aspect = page.evaluate(f"{stage}.width / {stage}.height")
        result.get_by_text("Full film").click()
        assert page.evaluate(f"{stage}.width / {stage}.height") > 1.1 * aspect
        result.get_by_role("button", name="Pause").click()
        result.get_by_label("Time in the clip").fill("0.5")
        wait_until(lambda: result.locator(".player .time").inner_text() == "0.5 / 0.9 s")
        result.get_by_text("Contact sheet and downloads").click()
        wait_until(lambda: page.evaluate("document.querySelector('.sheet img').naturalWidth > 0"))
        assert page.evaluate("[...document.images].every((image) => image.hasAttribute('alt'))")
        with page.expect_download() as download:
            result.get_by_role("link", name="Data").click()
        assert download.value.suggested_filename == "explanation.json"
    wait_until(lambda: not site.files())  # the result is deleted when the page is left


def test_error_messages(browser, site, clip, make_video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:1000])
    (tmp_path / "notes.txt").write_text("These are notes, not a video.")
    (tmp_path / "large.mp4").write_bytes(clip.read_bytes() + bytes(2_000_000))
    make_video(tmp_path / "long.mp4", 71)
    with open_page(browser, site, PHONE) as page:
        for file, message in (
            ("broken.mp4", "“broken.mp4” cannot be read"),
            ("notes.txt", "“notes.txt” is not a supported video. Supported formats are MP4, MOV, WebM, MKV and AVI."),
            ("large.mp4", "“large.mp4” is larger than the limit of 2 MB (2.0 MB). Trim the clip"),
            ("long.mp4", "“long.mp4” is longer than the limit of 6 s (7.1 s). Trim the clip."),
        ):
            page.locator("#file").set_input_files(tmp_path / file)
            alert = page.get_by_role("alert").filter(has_text=message)
            alert.wait_for()
            assert str(tmp_path) not in alert.inner_text() and fits(page)
            assert page.locator("#result").is_hidden() and page.locator("#progress").is_hidden()
    assert site.files() == []


def test_phone_layout_and_keyboard(browser, site, wait_until):
    with open_page(browser, site, PHONE) as page:
        assert fits(page)
        page.locator("#samples button").nth(1).focus()
        page.keyboard.press("Enter")
        page.locator("#result video").wait_for()
        wait_until_film_plays(page, wait_until)
        assert fits(page)
        assert page.locator("#result").bounding_box()["width"] > 340
        assert "True class of the sample: “dance”" in page.locator("#result").inner_text()
        page.locator("details summary").focus()
        page.keyboard.press("Enter")
        page.locator(".sheet img").wait_for()
        assert fits(page)
        texts = "[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && e.innerText?.trim())"
        assert page.evaluate(f"Math.min(...{texts}.map((e) => parseFloat(getComputedStyle(e).fontSize)))") >= 13


def test_camera(browser, site, wait_until):
    with open_page(browser, site, PHONE) as page:
        page.get_by_role("button", name="Use the camera").click()
        wait_until(lambda: page.evaluate("document.querySelector('#preview').videoWidth > 0"))
        assert fits(page)
        page.get_by_role("button", name="Record").click()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("The recording was too short.").wait_for()
        page.get_by_role("button", name="Record").click()
        wait_until(lambda: re.match(r"0\.[6-9]|[1-5]\.", page.locator("#recorded").inner_text()))
        page.get_by_role("button", name="Stop").click()
        page.locator("#result video").wait_for()
        wait_until_film_plays(page, wait_until)
        assert "camera.webm" in page.locator("#result").inner_text()
        assert page.locator("#recorder").is_hidden()


def test_login(browser, serving, blocking, tmp_path):
    token = "a-token-of-24-characters"
    with serving(blocking, tmp_path, token=token, local=False) as site:
        page = browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]})
        page.goto(site.url)
        assert fits(page)
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("Invalid token.").wait_for()
        page.get_by_label("Token").fill(token)
        page.keyboard.press("Enter")
        page.locator("#samples button").first.wait_for()
        assert page.url == f"{site.url}/"
        page.close()


def test_drop_and_cancel(browser, serving, blocking, tmp_path, wait_until):
    with serving(blocking, tmp_path) as site, open_page(browser, site, DESKTOP) as page:
        page.evaluate(
            """async () => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([await (await fetch("/samples/dance.mp4")).blob()], "dropped.mp4"));
              document.getElementById("drop").dispatchEvent(
                new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
            }"""
        )
        wait_until(lambda: page.locator("#step").inner_text() == "Blocking…")
        assert blocking.clips[0].name == "dropped.mp4"
        page.get_by_role("button", name="Cancel").click()
        assert page.locator("#empty").is_visible()
        blocking.release.set()
        wait_until(lambda: not site.files())
