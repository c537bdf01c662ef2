"""The drawings and cost tables of the pages are up to date with the code."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from art_kernels.flops import _pool_tracklets, _pool_tracklets_backward
from art_kernels.region_attention import configs
from art_kernels.tracklet_pooling.reference import Arguments
from benchmarks.contrast_providers import ContrastShape
from docs import cost_tables
from docs.drawings import csrc
from docs.drawings.attention import forward
from docs.drawings.card import WIDTH, Card, digest_of
from docs.drawings.drawn import DRAWINGS, PICTURES

ROOT = Path(__file__).parents[2]

_SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", DRAWINGS)
def test_committed_drawing_is_up_to_date(name):
    directory, draw = DRAWINGS[name]
    path = PICTURES / directory / f"{name}.svg"
    again = f"draw it again: python -m docs.drawings {name}"
    assert path.is_file(), again
    text, card = path.read_text(encoding="utf-8"), draw()
    assert digest_of(text) == card.digest(), again
    assert path.stat().st_size <= 60 * 1024
    image = ElementTree.fromstring(text)
    assert image.get("width") == f"{0.75 * WIDTH:g}pt"
    words = [line for _, line in card.texts()]
    assert len(words) > 3
    written = {"".join(element.itertext()).strip() for element in image.iter(f"{_SVG}text")}
    assert set(words) <= written, "the file is not what was drawn"


@pytest.mark.parametrize("name", DRAWINGS)
def test_text_is_legible_and_inside_the_card(name):
    card = DRAWINGS[name][1]()
    for points, line in card.texts():
        assert points >= 8.5, line
    assert card.overflowing() == []


def test_no_obsolete_drawings():
    there = {
        path.relative_to(PICTURES).as_posix()
        for directory in ("idea", "kernels")
        for path in (PICTURES / directory).glob("*.svg")
    }
    assert there == {f"{directory}/{name}.svg" for name, (directory, _) in DRAWINGS.items()}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_is_on_a_page_with_a_text_alternative(name):
    link = f"pictures/{DRAWINGS[name][0]}/{name}.svg"
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    shown = [line for page in pages for line in page.splitlines() if link in line]
    assert shown, f"no page shows {link}"
    assert all(len(line.split("](")[0]) > 30 for line in shown)


def test_drawing_changes_with_the_config_table(monkeypatch):
    before = forward().digest()
    key = ("forward", "nvidia", 2)
    wider = [line._replace(block_n=64) for line in configs.TABLE[key]]
    monkeypatch.setitem(configs.TABLE, key, wider)
    assert forward().digest() != before


def test_digest_depends_on_the_drawing():
    cards = [Card(100, "a label") for _ in range(3)]
    for card, text in zip(cards, ("the same", "the same", "another"), strict=True):
        card.text(20, 20, text)
    assert cards[0].digest() == cards[1].digest() != cards[2].digest()
    assert cards[0].svg() == cards[1].svg()
    assert digest_of(cards[2].svg()) == cards[2].digest()
    assert digest_of("<svg/>") is None


def test_overflowing_text_is_detected():
    card = Card(100, "a label")
    card.text(650, 50, "this is longer than what is left")
    assert card.overflowing() == ["this is longer than what is left"]


def test_sizes_of_the_cuda_kernels_are_parsed():
    assert csrc.lanes_of_rows() == {8: 8, 16: 16, 32: 32}
    assert (csrc.enumerated_rows(), csrc.most_rows()) == (4, 256)
    assert [linker.most for linker in csrc.linkers()] == [2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("page", cost_tables.TABLES)
def test_cost_tables_are_up_to_date(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert cost_tables.with_table(text, cost_tables.TABLES[page]()) == text, (
        "write it again: python -m docs.cost_tables"
    )


def test_page_without_table_marks():
    with pytest.raises(ValueError, match="costs: begin"):
        cost_tables.with_table("# A page\n", "| a |")


def test_pooling_operations_match_the_flop_counter():
    b, t, k, c = 3, 5, 2, 7
    shape = ContrastShape("of mine", "pool_tracklets", (b, t, k, c), b)
    responses, semantics = (b, t, k, c), (b, k, c)
    squares, projections = 2 * b * t * k * c, 2 * 2 * b * t * k * c  # norms; backward also the component along r
    shapes = Arguments(responses, semantics, 0.01, None)
    products = _pool_tracklets(shapes)
    assert shape.operations("forward") == products + squares
    products = _pool_tracklets_backward(shapes, {"responses": True, "semantics": True})
    assert shape.operations("backward") == products + projections
