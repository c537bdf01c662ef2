"""docs/choices.md lists every option of the model, and keys of a run, with the defaults of the code."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from art.model.options import ARTOptions
from art.train.config import Config

PAGE = Path(__file__).parents[2] / "docs" / "choices.md"
_ROW = re.compile(r"^\| `([a-z_.]+)` \| `([^`]*)` \| (\w+) \|", re.MULTILINE)


def rows() -> list[tuple[str, str, str]]:
    return _ROW.findall(PAGE.read_text(encoding="utf-8"))


def value_of(cell: str) -> object:
    """Parse a default as in a configuration file; a quotient is evaluated."""
    if found := re.fullmatch(r"([\d.]+)/([\d.]+)", cell):
        return float(found[1]) / float(found[2])
    return yaml.safe_load(cell)


def test_every_model_option_is_listed_once():
    named = [name for name, _, _ in rows() if "." not in name]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(ARTOptions))


@pytest.mark.parametrize(("name", "cell"), [row[:2] for row in rows()], ids=[row[0] for row in rows()])
def test_defaults_match_the_code(name, cell):
    *path, key = name.split(".") if "." in name else ("model", name)
    section = Config()
    for part in path:
        section = getattr(section, part)
    assert hasattr(section, key), f"{name} is on docs/choices.md but is not a configuration key"
    default, shown = getattr(section, key), value_of(cell)
    assert shown == default and isinstance(shown, bool) == isinstance(default, bool)


def test_sources():
    assert {source for _, _, source in rows()} == {"paper", "reading", "beyond"}


def test_our_readings_are_not_attributed_to_the_paper():
    attributes = re.split(r"\n        (?=\w+: )", ARTOptions.__doc__ or "")[1:]
    readings = {text.split(":")[0].strip() for text in attributes if "our reading" in " ".join(text.split())}
    assert readings, "the docstring of ARTOptions no longer marks our readings"
    on_the_page = {name: source for name, _, source in rows()}
    assert readings <= on_the_page.keys()
    assert {name for name in readings if on_the_page[name] == "paper"} == set()
