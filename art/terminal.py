"""Output to a terminal or a log: names that are safe to print, their width in columns, and progress."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TextIO

#: Maximum width of a table in columns.
MAX_COLUMNS = 120
#: Minimum number of seconds between two lines of progress in a log.
LOG_SECONDS = 10.0

_JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of some scripts and of emoji
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories: control, format, surrogate, line and paragraph separator


def printable(text: str) -> str:
    r"""Escape the characters of a name that are not visible or change how the text around them is displayed.

    These are control characters such as line breaks and the start of a terminal command, bidirectional controls, and
    bytes of a file name that are not UTF-8 (surrogates).

    Examples:
        >>> from art.terminal import printable
        >>> print(printable("walk\nrun"))
        walk\nrun
    """
    return "".join(_escape(letter) if unicodedata.category(letter) in _ESCAPED else letter for letter in text)


def _escape(letter: str) -> str:
    return letter if letter in _JOINERS else letter.encode("unicode_escape").decode()


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Format ``3, "clip"`` as ``3 clips``; ``nouns`` is the plural if it has another ending."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def list_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def short_repr(value: object, most: int = 80) -> str:
    """Return ``repr(value)`` for an error message, truncated to ``most`` characters."""
    return _truncated(repr(value), most)


def one_line(error: BaseException, most: int = 300) -> str:
    """Return the message of an error on one line, truncated to ``most`` characters."""
    return _truncated(" ".join(str(error).split()), most)


def _truncated(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def letter_columns(letter: str) -> int:
    """Return the columns of a terminal that a letter fills: 2 for wide (CJK, emoji), 0 for combining ones, else 1."""
    if letter in _JOINERS or unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def text_columns(text: str) -> int:
    """Return the number of columns of a printable text."""
    return sum(map(letter_columns, text))


def shorten(text: str, columns: int) -> str:
    """Replace the middle of a text that is wider than ``columns`` with an ellipsis.

    Both ends are kept because similar classes differ at either end.
    """
    if text_columns(text) <= columns:
        return text
    tail = (columns - 1) // 2
    return _first(text, columns - 1 - tail).rstrip() + "…" + _last(text, tail).lstrip()


def _first(text: str, columns: int) -> str:
    used = 0
    for index, letter in enumerate(text):
        used += letter_columns(letter)
        if used > columns:
            return text[:index]
    return text


def _last(text: str, columns: int) -> str:
    used = 0
    for index in range(len(text) - 1, -1, -1):
        used += letter_columns(text[index])
        if used > columns:
            start = index + 1
            while start < len(text) and not letter_columns(text[start]):  # marks of the letter that was cut
                start += 1
            return text[start:]
    return text


def short_names(names: Sequence[str], columns: int) -> list[str]:
    """Return printable names of at most ``columns`` columns; different names with equal results are numbered.

    Examples:
        >>> from art.terminal import short_names
        >>> short_names(["step forward twice fast", "step forward once fast", "run"], 12)
        ['step…fast #0', 'step…fast #1', 'run']
    """
    short = [shorten(printable(name), columns) for name in names]
    counts = Counter(short)
    for index, name in enumerate(names):
        if counts[short[index]] > 1 and short[index] != name:
            suffix = f" #{index}"
            short[index] = shorten(printable(name), columns - len(suffix)) + suffix
    return short


def pad(text: str, columns: int) -> str:
    """Append spaces up to a number of columns."""
    return text + " " * (columns - text_columns(text))


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def prepare_output() -> None:
    """Prepare stdout and stderr of a command: names that their encoding does not have are printed as escapes, and
    libraries show no progress bars in a log."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not is_terminal(sys.stderr):
        os.environ.setdefault("TQDM_DISABLE", "1")


class Progress:
    """Shows the progress of a loop on stderr: a bar in a terminal, and otherwise at most one line every 10 seconds.

    Args:
        title: what is done, such as "check".
        total: number of steps.
        unit: what a step processes, in the singular.
        initial: steps that were done before.
        show: False shows nothing.
        leave: keep the bar in the terminal when it is complete.
        stream: None is stderr.
        clock: time in seconds.

    Examples:
        >>> from art.terminal import Progress
        >>> with Progress("check", 3, "file") as progress:
        ...     for _ in range(3):
        ...         progress.update()
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        *,
        initial: int = 0,
        show: bool = True,
        leave: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit, self._show = title, total, unit, show
        self._stream, self._clock = stream or sys.stderr, clock
        self._initial = self._done = initial
        self._start = self._last_line = clock()
        self._bar: Any = None
        # tqdm belongs to the extra "train"; without it a terminal gets the lines of a log.
        if show and is_terminal(self._stream) and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, desc=title, unit=unit, leave=leave, file=self._stream, disable=False
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, **values: str) -> None:
        """Count one step, and show ``values`` next to the count."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            self._bar.update()
        elif self._show and self._clock() - self._last_line >= LOG_SECONDS:
            self._last_line = self._clock()
            print(self._line(values), file=self._stream, flush=True)

    def _line(self, values: dict[str, str]) -> str:
        steps, left = self._done - self._initial, self._total - self._done
        minutes, seconds = divmod(round((self._last_line - self._start) / steps * left), 60)
        more = "".join(f", {name} {value}" for name, value in values.items())
        percent = 100 * self._done / max(self._total, 1)
        count = f"{self._done} of {self._total} {self._unit}{'s' * (self._total != 1)} ({percent:.0f} %)"
        return f"{self._title}: {count}, about {minutes}:{seconds:02} min left{more}"


class ProgressLines:
    """Prints results during a loop to stdout: every line in a terminal, and otherwise at most one every 10 seconds.

    Lines appear above the bar of a :class:`Progress`.

    Args:
        stream: None is stdout.
        clock: time in seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last_line: float | None = None

    def print(self, text: str, *, always: bool = False) -> None:
        """Print a line; ``always`` for one that must be in a log, such as the last one or an error."""
        stream, now = self._stream or sys.stdout, self._clock()
        if not (always or is_terminal(stream) or self._last_line is None or now - self._last_line >= LOG_SECONDS):
            return
        self._last_line = now
        if "tqdm" in sys.modules:  # a bar may be active
            sys.modules["tqdm"].tqdm.write(text, file=stream)
        else:
            print(text, file=stream)
        stream.flush()
