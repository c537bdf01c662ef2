"""Generate the sample clips of `art serve`, and the screenshots and times in docs/serve.md.

    python docs/serve_material.py samples --data data/motion            # sample clips, from the embedded dataset
    python docs/serve_material.py screenshots --checkpoint runs/motion  # screenshots in headless Chromium, and times

The first command writes ``art/tools/serve/samples.zip``; the second ``docs/pictures/serve/page.jpg``,
``docs/results/serve.json``, and all screenshots to ``build/serve/``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from art.data.motion.takes import CLASSES
from art.tools.serve.app import SAMPLES
from art.train.runtime import provenance

DOCS = Path(__file__).parent
#: Class and number of each sample in the test split that `art prepare motion` writes.
SAMPLE_CLIPS = ((4, 1), (10, 1), (11, 0), (15, 1), (17, 1), (19, 1))
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    samples = commands.add_parser("samples")
    samples.add_argument("--data", type=Path, required=True, help="output directory of art prepare motion")
    screenshots = commands.add_parser("screenshots")
    screenshots.add_argument("--checkpoint", type=Path, required=True, help="a run on motion")
    screenshots.add_argument("--chromium", default="/usr/bin/chromium", help="the browser (default /usr/bin/chromium)")
    screenshots.add_argument("--out", type=Path, default=Path("build/serve"), help="directory of all screenshots")
    arguments = parser.parse_args()
    if arguments.command == "samples":
        write_samples(arguments.data)
    else:
        take_screenshots(arguments.checkpoint, arguments.chromium, arguments.out)


def write_samples(data: Path) -> None:
    """Write six clips of the dataset to an archive, uncompressed and without times, which makes it reproducible."""
    with zipfile.ZipFile(SAMPLES, "w") as archive:
        for label, number in SAMPLE_CLIPS:
            name = zipfile.ZipInfo(CLASSES[label].name.replace(" ", "_") + ".mp4")
            archive.writestr(name, (data / "clips" / "test" / f"{label:02d}_{number:03d}.mp4").read_bytes())


@contextmanager
def serving(checkpoint: Path) -> Iterator[tuple[str, float]]:
    """Start the server, and yield its URL and the seconds until it printed it."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "art", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(match for line in server.stdout if (match := re.search(r"http://\S+", line)))
            yield url.group(), time.perf_counter() - start
        finally:
            server.terminate()


def take_screenshots(checkpoint: Path, chromium: str, out: Path) -> None:
    """Take screenshots at desktop and phone width, combine two for the documentation, and record the times."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with serving(checkpoint) as (url, startup), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        seconds = _visit(browser, url, out, "desktop", width=1280, height=860)
        _visit(browser, url, out, "phone", width=390, height=844)
        browser.close()
    _combine(out / "desktop-after.png", out / "phone-screen.png", DOCS / "pictures" / "serve" / "page.jpg")
    result = {
        "seconds": {"until the page answers": round(startup, 2), **seconds},
        "clip": "24 frames of 112×112, 1.9 s",
        "provenance": {**provenance(), "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()},
    }
    (DOCS / "results" / "serve.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _combine(left: Path, right: Path, target: Path) -> None:
    """Save two images next to each other."""
    images = [Image.open(path).convert("RGB") for path in (left, right)]
    gap = 24
    page = Image.new(
        "RGB", (sum(image.width for image in images) + gap, max(image.height for image in images)), "white"
    )
    page.paste(images[0], (0, 0))
    page.paste(images[1], (images[0].width + gap, 0))
    target.parent.mkdir(exist_ok=True)
    page.save(target, quality=70, optimize=True)


def _visit(browser: Any, url: str, out: Path, name: str, *, width: int, height: int) -> dict[str, float]:
    """Take screenshots before, during and after processing a sample, and with an error; return the times."""
    page = browser.new_page(viewport={"width": width, "height": height})
    times = {}

    def screenshot(state: str) -> None:
        page.screenshot(path=out / f"{name}-{state}.png", full_page=True)

    start = time.perf_counter()
    page.goto(url)
    page.locator("#samples button").first.wait_for()
    times["first visit"] = round(time.perf_counter() - start, 2)
    page.wait_for_load_state("networkidle")
    _wait_until(page, "[...document.querySelectorAll('#samples video')].every((video) => video.readyState >= 2)")
    screenshot("before")
    start = time.perf_counter()
    page.get_by_role("button", name="kick with the left leg").click()
    page.locator("#progress").wait_for()
    screenshot("during")
    page.locator("#result video").wait_for(timeout=120_000)
    times["a sample clip"] = round(time.perf_counter() - start, 2)
    _wait_until(page, "document.querySelector('#result video').currentTime > 1")
    page.get_by_role("button", name="Pause").click()
    screenshot("after")
    page.evaluate("document.querySelector('#result').scrollIntoView({ behavior: 'instant' })")
    page.screenshot(path=out / f"{name}-screen.png")
    page.locator("details summary").click()
    _wait_until(page, "document.querySelector('.sheet img').naturalWidth > 0")
    screenshot("files")
    page.locator("#file").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a video"})
    page.locator("#problem").wait_for()
    screenshot("error")
    page.close()
    return times


def _wait_until(page: Any, expression: str) -> None:
    """Poll from Python: the page's content security policy does not allow ``page.wait_for_function``."""
    while not page.evaluate(expression):
        time.sleep(0.05)


if __name__ == "__main__":
    main()
