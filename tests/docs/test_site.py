"""The site builds with warnings as errors, and its links work without a network."""

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from mkdocs.exceptions import PluginError
from test_docstrings import PUBLIC

from docs.hooks import formulas, notebooks, repository

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: Pages with the widest tables, formulas, code and images.
WIDE = ("index", "choices", "region_attention", "kernels/index", "datasets", "api/train", "repository/index")


@dataclass
class Page(HTMLParser):
    """Anchors and links of a page."""

    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    without_text: list[str] = field(default_factory=list)
    formulas: int = 0
    title: str = ""

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.formulas += tag == "math"
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(values["href"])
        elif "src" in values:
            self.loaded.add(values["src"])
        if tag == "img" and not values.get("alt", "").strip():
            self.without_text.append(values["src"])


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built once for all workers."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    with (directory / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "site.log").exists():
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory / "site")]
            built = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
            )
            (directory / "site.log").write_text(f"{built.returncode}\n{built.stderr}")
    code, _, log = (directory / "site.log").read_text().partition("\n")
    assert code == "0", log
    return directory / "site"


@pytest.fixture(scope="session")
def pages(site):
    parsed = {}
    for path in site.rglob("*.html"):
        parsed[path] = Page()
        parsed[path].feed(path.read_text(encoding="utf-8"))
    return parsed


def test_links_and_images_exist(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("https", "http", "mailto", "data") or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or not target.is_relative_to(site):
                dead.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                dead.append(f"{path.relative_to(site)}: {link}: no such anchor")
    assert not dead, "\n".join(dead)


def test_nothing_is_loaded_from_other_servers(site, pages):
    for path, page in pages.items():
        assert not {link for link in page.loaded if urlsplit(link).netloc}, path
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_images_have_text_alternatives(pages):
    for path, page in pages.items():
        assert not page.without_text, path


def test_formulas_are_mathml(site, pages):
    for source in (ROOT / "docs").rglob("*.md"):
        blocks = source.read_text(encoding="utf-8").count("\n$$\n") // 2
        path = site / source.relative_to(ROOT / "docs").with_suffix(".html")
        if path in pages:
            assert pages[path].formulas >= blocks, path
            assert "arithmatex" not in path.read_text(encoding="utf-8")
    assert sum(page.formulas for page in pages.values()) > 10


def test_every_public_name_has_an_anchor(site, pages):
    anchors = {name for path in (site / "api").glob("*.html") for name in pages[path].ids}
    for module, name in PUBLIC:
        assert any(anchor.endswith(f".{name}") for anchor in anchors), f"{module}.{name}"


def test_markdown_renders_the_same_in_the_repository_and_on_the_site():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        lines = re.sub(r"^(```+).*?^\1\s*$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M).split("\n")
        for before, line in itertools.pairwise(lines):
            item, follows = re.match(r"( *)([-*]|\d+\.) ", line), before.strip() != ""
            assert not item or len(item[1]) % 4 == 0, f"{path}: {line!r} is indented by other than 4 spaces"
            below = item is not None and follows and not re.match(r" *([-*]|\d+\.) |  ", before)
            assert not below, f"{path}: no empty line before the list at {line!r}"
            table = line.startswith("|") and follows and not before.startswith("|")
            assert not table, f"{path}: no empty line before the table at {line!r}"


def test_docstrings_leave_no_sphinx_markup(site):
    for path in (site / "api").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r":(?:class|func|meth|attr|mod|data):", text), path
        assert "&lt;autoref" not in text, path
        assert not re.search(r"^ *- \w", re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.S), re.M), path


def test_every_notebook_has_a_page_with_its_figures(site, pages):
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = pages[site / "notebooks" / f"{notebook.stem}.html"]
        assert any(link.endswith(".png") for link in page.loaded), notebook
        assert f"files/{notebook.name}" in page.links


def test_search_finds_the_operations(site):
    index = (site / "search/search_index.js").read_text(encoding="utf-8")
    for name in ("RegionCrossAttention", "link_tracklets", "optim"):
        assert name in index


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the site is NOT tested in a browser")
class TestInABrowser:
    def test_no_page_is_wider_than_a_phone(self, site, browser):
        page = browser.new_page(viewport={"width": 390, "height": 844})
        for name in WIDE:
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name

    def test_search_works_in_pages_that_are_files(self, site, browser):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto((site / "index.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("linear_assignment", delay=5)
        page.wait_for_selector(".md-search-result__item a[href*='api/art_kernels.html']", timeout=20_000)


class TestRepository:
    def test_links_outside_code_are_changed(self):
        text = "[a](a.md#b), `[b](b.md)`, ![c](c.png)\n```\n[d](d.md)\n```\n[e]: e.py\n"
        changed = "[a](A.MD#B), `[b](b.md)`, ![c](C.PNG)\n```\n[d](d.md)\n```\n[e]: E.PY\n"
        assert repository.with_links(text, str.upper) == changed
        assert repository.links(text) == ["a.md#b", "c.png", "e.py"]

    @pytest.mark.parametrize(
        "path, uri",
        [
            ("docs/export.md", "export.md"),
            ("README.md", "repository/README.md"),
            ("art/model/options.py", "repository/art/model/options.py.md"),
            ("configs/parts", "repository/configs/parts/contents.md"),
            ("docs/results/motion.json", "results/motion.json"),
            ("benchmarks/results/model-cpu.json", "repository/benchmarks/results/model-cpu.json"),
            ("docs/nowhere.md", None),
            ("../elsewhere.md", None),
        ],
    )
    def test_destination_of_repository_files(self, path, uri):
        assert repository.destination(ROOT, path) == uri
        if uri is not None and uri.endswith(".md") and not (ROOT / path).is_dir():
            assert repository.origin(uri) == path


def test_the_changelog_names_this_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()


class TestFormulas:
    def test_a_formula_is_mathml(self):
        assert formulas.mathml(r"\frac{a}{b}", "inline", "page.md").startswith("<math")

    @pytest.mark.parametrize("latex", [r"\frac{a}{", r"\nosuchcommand{a}"])
    def test_invalid_formula_stops_the_build(self, latex):
        with pytest.raises(PluginError, match=r"page\.md"):
            formulas.mathml(latex, "inline", "page.md")


class TestNotebooks:
    def test_a_page_of_text_code_and_figures(self):
        cell = nbformat.v4.new_code_cell("print(1)")
        cell.outputs = [
            nbformat.v4.new_output("stream", name="stdout", text="1\n"),
            nbformat.v4.new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"}),
        ]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n\nText."), cell])
        markdown, images = notebooks.as_page(notebook, "name")
        assert markdown.startswith("# Title\n\n")
        assert "```python\nprint(1)\n```\n\n```text\n1\n```" in markdown
        assert list(images) == ["name-1.png"] and "(name-1.png)" in markdown
