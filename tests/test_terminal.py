"""Names and progress as a terminal and a log receive them."""

import io
import re
import sys
import unicodedata
from pathlib import Path

import pytest

import art
from art.terminal import (
    LOG_SECONDS,
    Progress,
    ProgressLines,
    pad,
    prepare_output,
    printable,
    short_names,
    shorten,
    text_columns,
)

PERSIAN = "\u0645\u06cc\u200c\u0631\u0648\u0645"  # its spelling needs the zero-width non-joiner


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_b^c 100 % $x$ <b>", "a_b^c 100 % $x$ <b>"),
        ("走る é\u00a0ü 🏃", "走る é\u00a0ü 🏃"),
        (PERSIAN, PERSIAN),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[31mred\x1b[0m\x07\x00", r"\x1b[31mred\x1b[0m\x07\x00"),
        ("\x85\u2028\u2029", r"\x85\u2028\u2029"),
        ("ab\u202edc\u2066", r"ab\u202edc\u2066"),
        ("\ufeffa\u200bb", r"\ufeffa\u200bb"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_printable_escapes_what_is_invisible_or_moves_the_cursor(name, expected):
    assert printable(name) == expected
    printable(name).encode("utf-8")


def test_columns_of_wide_and_combining_letters():
    assert [text_columns(text) for text in ("walk", "走る", "e\u0301", "ｱ", "Ａ", PERSIAN)] == [4, 4, 1, 1, 2, 5]
    assert pad("走る", 6) == "走る  " and pad("walk", 6) == "walk  "


@pytest.mark.parametrize("letter", ["a", "走", "e\u0301"])
def test_shortened_text_fits_and_keeps_both_ends(letter):
    text = "[" + letter * 200 + "]"
    for columns in (8, 9, 40):
        short = shorten(text, columns)
        assert columns - 2 <= text_columns(short) <= columns
        assert short.startswith("[" + letter) and short.endswith(letter + "]") and "…" in short
        assert unicodedata.combining(short[short.index("…") + 1]) == 0  # no mark without its letter
    assert shorten(text, 500) == text


def test_short_names_are_distinct():
    middle = [f"start {'x' * 60}{i}{'x' * 60} end" for i in range(11)]
    names = short_names([*middle, "run", "start " + "y" * 10], 40)
    assert len(set(names)) == 13 and max(map(text_columns, names)) <= 40
    assert names[10].endswith("#10") and names[11] == "run"


def run(progress, clock, steps, seconds, **values):
    with progress:
        for _ in range(steps):
            clock.now += seconds
            progress.update(**values)


def test_log_has_at_most_one_plain_line_in_ten_seconds():
    clock, log = Clock(), io.StringIO()
    run(Progress("check", 320, "file", stream=log, clock=clock), clock, 320, 0.125, loss="0.5")
    assert log.getvalue().splitlines() == [
        f"check: {done} of 320 files ({done / 3.2:.0f} %), about 0:{40 - done // 8:02} min left, loss 0.5"
        for done in (80, 160, 240, 320)
    ]
    assert LOG_SECONDS == 10


def test_short_or_hidden_loop_prints_nothing_to_a_log():
    clock, log = Clock(), io.StringIO()
    run(Progress("check", 90, "file", stream=log, clock=clock), clock, 90, 0.1)
    run(Progress("check", 9, "file", stream=log, clock=clock, show=False), clock, 9, 100)
    assert log.getvalue() == ""


def test_resumed_loop_counts_earlier_steps_but_not_their_time():
    clock, log = Clock(), io.StringIO()
    run(Progress("motion", 100, "clip", initial=80, stream=log, clock=clock), clock, 10, 2.0)
    assert log.getvalue().splitlines()[-1] == "motion: 90 of 100 clips (90 %), about 0:20 min left"


def test_terminal_has_a_bar(monkeypatch):
    clock, terminal = Clock(), Terminal()
    run(Progress("check", 3, "file", stream=terminal, clock=clock), clock, 3, 20.0, loss="0.5")
    assert "\r" in terminal.getvalue() and "check: 100%" in terminal.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    dumb = Terminal()
    run(Progress("check", 3, "file", stream=dumb, clock=clock), clock, 3, 20.0)
    assert len(dumb.getvalue().splitlines()) == 3 and "\r" not in dumb.getvalue()


def test_result_lines_are_limited_in_a_log_only():
    clock = Clock()
    for stream, expected in ((io.StringIO(), ["1", "5", "6"]), (Terminal(), list("123456"))):
        lines = ProgressLines(stream, clock)
        for number in range(1, 7):
            clock.now += 2.5
            lines.print(str(number), always=number == 6)
        assert stream.getvalue().splitlines() == expected


def test_streams_without_the_letters_of_a_name(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    monkeypatch.setenv("TQDM_DISABLE", "0")
    prepare_output()
    print("走る", flush=True)
    assert buffer.getvalue() == rb"\u8d70\u308b" + b"\n"


def test_all_progress_is_shown_by_one_module():
    package = Path(art.__file__).parent
    users = {
        path.name for path in package.rglob("*.py") if re.search(r"^\s*(import|from) tqdm", path.read_text(), re.M)
    }
    assert users == {"terminal.py"}
