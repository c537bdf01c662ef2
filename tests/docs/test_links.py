"""No dead links in pages, notebooks and docstrings. For the built site see ``test_site.py``."""

import ast
import functools
import json
import os
import re
import urllib.request
from pathlib import Path

import pytest

from docs.hooks.repository import leads_elsewhere, links, target_of

ROOT = Path(__file__).parents[2]
#: Addresses invented for examples.
MADE_UP = re.compile(r"https?://(host|localhost|127\.0\.0\.1|HOST|server|bucket|example\.(?:org|com))\b")
#: Published without https.
PLAIN_HTTP = {"http://www.svcl.ucsd.edu/projects/resound/dataset.html"}
_ADDRESS = re.compile(r"https?://[^\s<>\"'`)\]}|\\]+")
_FENCED = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.S | re.M)


def texts() -> dict[str, str]:
    """Return the Markdown of each page and notebook by path."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in pages}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path.relative_to(ROOT).as_posix()] = "\n\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
    return found


@functools.cache
def docstrings() -> dict[str, list[str]]:
    """Return the docstrings of each source file."""
    found = {}
    for path in (
        p
        for package in ("art", "art_kernels", "benchmarks", "examples", "docs")
        for p in (ROOT / package).rglob("*.py")
    ):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds))
        found[path.relative_to(ROOT).as_posix()] = [text for node in nodes if (text := ast.get_docstring(node))]
    return found


def anchors(markdown: str) -> set[str]:
    """Return the anchors of the headings of a page, as on GitHub and on the site."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*\s*$", _FENCED.sub("", markdown), re.M):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(name if name not in found else next(n for i in range(1, 99) if (n := f"{name}-{i}") not in found))
    return found


TEXTS = texts()


@pytest.mark.parametrize("page", TEXTS)
def test_links_of_a_page(page):
    for link in links(TEXTS[page]):
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "mailto:")) or link in PLAIN_HTTP, f"{page}: {link} is not https"
            continue
        assert not link.startswith("/"), f"{page}: {link} is absolute and dead in a copy of the repository"
        anchor = link.partition("#")[2]
        target = page if leads_elsewhere(link) else target_of(page, link)
        assert not target.startswith(".."), f"{page}: {link} is outside the repository"
        assert (ROOT / target).exists(), f"{page}: {link}: {target} does not exist"
        if anchor:
            text = TEXTS.get(target)
            assert text is not None, f"{page}: {link} has an anchor, but {target} is not a page"
            assert anchor in anchors(text), f"{page}: {link}: {target} has only {sorted(anchors(text))}"


def test_files_named_in_docstrings_exist():
    for path, found in docstrings().items():
        for name in re.findall(r"\b(?:docs|tests|benchmarks|examples|configs|csrc)/[\w.*/-]*[\w*]", " ".join(found)):
            places = (ROOT, (ROOT / path).parent)
            assert any(next(place.glob(name), None) for place in places), f"{path} names {name}, which does not exist"


def addresses() -> set[str]:
    """Return every external address in pages, notebooks and docstrings."""
    text = "\n".join([*TEXTS.values(), *(text for found in docstrings().values() for text in found)])
    return {address.rstrip(".,;:") for address in _ADDRESS.findall(text) if not MADE_UP.match(address)}


def test_external_addresses_use_https():
    assert not [a for a in addresses() if not a.startswith("https://") and a not in PLAIN_HTTP]


@pytest.mark.skipif("ART_TEST_NETWORK" not in os.environ, reason="requires a network: set ART_TEST_NETWORK=1")
def test_external_addresses_respond():
    dead = {}
    for address in sorted(addresses()):
        request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except OSError as error:
            dead[address] = str(error)
    assert not dead
