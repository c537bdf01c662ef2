"""What `art serve` and its page of documentation are made with.

    python docs/serve_material.py samples --data data/motion         # the sample clips, from the embedded data set
    python docs/serve_material.py pictures --checkpoint runs/motion  # screenshots in headless Chromium, and the times

The first writes ``art/tools/serve/samples/``, the second ``docs/pictures/serve/page.jpg``, ``docs/results/serve.json``, and
all screenshots into ``build/serve/``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from art.data.decoding.video import read_frames
from art.data.motion.takes import CLASSES
from art.train.runtime import provenance

DOCS = Path(__file__).parent
SAMPLES = DOCS.parent / "art" / "serving" / "samples"
#: Test clips of the data set as `art prepare motion` makes it: the class, and which of its clips.
CHOSEN = ((4, 1), (10, 1), (11, 0), (15, 1), (17, 1), (19, 1))
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def main() -> None:
    """Read the arguments and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    samples = what.add_parser("samples")
    samples.add_argument("--data", type=Path, required=True, help="what art prepare motion made")
    pictures = what.add_parser("pictures")
    pictures.add_argument("--checkpoint", type=Path, required=True, help="a run on motion")
    pictures.add_argument("--chromium", default="/usr/bin/chromium", help="the browser (default /usr/bin/chromium)")
    pictures.add_argument("--out", type=Path, default=Path("build/serve"), help="where all screenshots go")
    arguments = parser.parse_args()
    if arguments.what == "samples":
        copy_samples(arguments.data)
    else:
        take_pictures(arguments.checkpoint, arguments.chromium, arguments.out)


def copy_samples(data: Path) -> None:
    """Six clips, each with its middle frame as a picture."""
    SAMPLES.mkdir(exist_ok=True)
    for label, number in CHOSEN:
        name = CLASSES[label].name.replace(" ", "_")
        clip = data / "clips" / "test" / f"{label:02d}_{number:03d}.mp4"
        shutil.copyfile(clip, SAMPLES / f"{name}.mp4")
        frames = read_frames(clip)
        picture = frames[len(frames) // 2].permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(SAMPLES / f"{name}.jpg", quality=85, optimize=True)


@contextmanager
def serving(checkpoint: Path) -> Iterator[tuple[str, float]]:
    """The address of the page, and seconds until it answered."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "art", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = next(match for line in server.stdout if (match := re.search(r"http://\S+", line)))
            yield found.group(), time.perf_counter() - begun
        finally:
            server.terminate()


def take_pictures(checkpoint: Path, chromium: str, out: Path) -> None:
    """The page before, during and after a clip and with an error, on a desktop and on a phone; two of them for the
    documentation; and how long it took."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with serving(checkpoint) as (address, started), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        seconds = _tour(browser, address, out, "desktop", width=1280, height=860)
        _tour(browser, address, out, "phone", width=390, height=844)
        browser.close()
    _side_by_side(out / "desktop-after.png", out / "phone-screen.png", DOCS / "pictures" / "serve" / "page.jpg")
    result = {
        "seconds": {"until the page answers": round(started, 2), **seconds},
        "clip": "24 frames of 112×112, 1.9 s",
        "provenance": {**provenance(), "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()},
    }
    (DOCS / "results" / "serve.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _side_by_side(desktop: Path, phone: Path, to: Path) -> None:
    """One picture, as high as the higher of the two."""
    both = [Image.open(path).convert("RGB") for path in (desktop, phone)]
    gap = 24
    page = Image.new("RGB", (sum(one.width for one in both) + gap, max(one.height for one in both)), "white")
    page.paste(both[0], (0, 0))
    page.paste(both[1], (both[0].width + gap, 0))
    to.parent.mkdir(exist_ok=True)
    page.save(to, quality=70, optimize=True)


def _tour(browser: Any, address: str, out: Path, name: str, *, width: int, height: int) -> dict[str, float]:
    page = browser.new_page(viewport={"width": width, "height": height})
    times = {}

    def picture(moment: str) -> None:
        page.screenshot(path=out / f"{name}-{moment}.png", full_page=True)

    begun = time.perf_counter()
    page.goto(address)
    page.locator("#samples button").first.wait_for()
    times["first visit"] = round(time.perf_counter() - begun, 2)
    page.wait_for_load_state("networkidle")
    picture("before")
    begun = time.perf_counter()
    page.get_by_role("button", name="kick with the left leg").click()
    page.locator("#progress").wait_for()
    picture("during")
    page.locator("#result video").wait_for(timeout=120_000)
    times["a sample clip"] = round(time.perf_counter() - begun, 2)
    _until(page, "document.querySelector('#result video').currentTime > 1")
    page.get_by_role("button", name="Pause").click()
    picture("after")
    page.evaluate("document.querySelector('#result').scrollIntoView({ behavior: 'instant' })")
    page.screenshot(path=out / f"{name}-screen.png")
    page.locator("details summary").click()
    _until(page, "document.querySelector('.sheet img').naturalWidth > 0")
    picture("files")
    page.locator("#file").set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no video at all"})
    page.locator("#problem").wait_for()
    picture("error")
    page.close()
    return times


def _until(page: Any, expression: str) -> None:
    """Asked from here: the page's own policy lets nothing evaluate a text in it."""
    while not page.evaluate(expression):
        time.sleep(0.05)


if __name__ == "__main__":
    main()
