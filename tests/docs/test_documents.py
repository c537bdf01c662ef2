"""How pages are taken apart into commands."""

import pytest
from documents import blocks, is_script, spans, statements


@pytest.mark.parametrize(
    "text, expected",
    [
        ("one\ntwo  # a comment\n", ["one", "two  # a comment"]),
        ("# a comment\n\none\n", ["one"]),
        ("one \\\n  --two\nthree\n", ["one \\\n  --two", "three"]),
        ("echo 'one\ntwo'\nthree\n", ["echo 'one\ntwo'", "three"]),
        ("echo one  # it's no quote\ntwo\n", ["echo one  # it's no quote", "two"]),
        ("echo \"it's\" 'say \"x'\ntwo\n", ["echo \"it's\" 'say \"x'", "two"]),
        ("python - <<'END'\nimport x\nEND\ntwo\n", ["python - <<'END'\nimport x\nEND", "two"]),
        ("X=1 one 'a#b'\n", ["X=1 one 'a#b'"]),
    ],
)
def test_statements_are_those_of_bash(text, expected):
    assert [statement for _, statement in statements(text)] == expected


def test_a_statement_knows_its_line():
    assert [number for number, _ in statements("# no\none \\\n two\n\nthree\n")] == [1, 4]


def test_what_belongs_together_is_a_script():
    assert is_script("#!/bin/bash\none\n") and is_script("export X=1\none $X\n") and is_script("x=1\none $x\n")
    assert not is_script("X=1 one\ntwo\n") and not is_script("# export\none\n")


def test_blocks_have_their_language_and_line():
    found = blocks("a\n```sh\none\n```\n~~\n````python\n```\ntwo\n````\n", "p.md")
    assert [(b.language, b.line, b.text) for b in found] == [("sh", 3, "one\n"), ("python", 7, "```\ntwo\n")]
    with pytest.raises(ValueError, match=r"p\.md:1"):
        blocks("```sh\none\n", "p.md")


def test_commands_in_sentences_are_found_and_those_in_blocks_are_not():
    text = "Call `art train CONFIG` or `art`, `X=1 python a.py`.\n```sh\n`art no`\n```\n`make test`, `x art y`\n"
    assert list(spans(text)) == [(1, "art train CONFIG"), (1, "X=1 python a.py"), (5, "make test")]
