"""Save one clip with the attention maps of all heads from a report of `art probe` as the picture of docs/frozen.md.

python docs/frozen_material.py runs/probe/report.html  # docs/pictures/frozen-maps.jpg, with headless Chromium
"""

from __future__ import annotations

import argparse
from pathlib import Path

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PICTURE = Path(__file__).parent / "pictures" / "frozen-maps.jpg"


def main() -> None:
    """Parse the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.html in the output of art probe")
    parser.add_argument("--clip", type=int, default=0, help="number of the clip in the report (default 0)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser (default /usr/bin/chromium)")
    arguments = parser.parse_args()
    take_picture(arguments.report, arguments.clip, arguments.chromium)


def take_picture(report: Path, clip: int, chromium: str) -> None:
    """Save the card of a clip."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1560, "height": 900})
        page.goto(report.absolute().as_uri())
        page.locator("#maps article").nth(clip).screenshot(path=PICTURE, type="jpeg", quality=85)
        browser.close()


if __name__ == "__main__":
    main()
