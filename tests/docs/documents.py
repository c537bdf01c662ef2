"""The commands and the Python in README.md, CONTRIBUTING.md and docs/: where each stands, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Programs that begin a command within a sentence.
PROGRAMS = ("art", "python", "torchrun", "pip", "make", "pytest", "tensorboard", "mlflow", "wandb", "hf", "pre-commit")
_FENCE = re.compile(r"(?P<fence>`{3,})(?P<language>\w*)")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=\S*")


@dataclass(frozen=True)
class Block:
    """A fenced block of code: ``line`` is the first one of its text in the page."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command, or a whole script, as it is written.

    Attributes:
        text: what is written.
        places: all pages and lines that have it.
        inline: it stands within sentences only.
    """

    text: str
    places: tuple[str, ...]
    inline: bool

    @property
    def words(self) -> str:
        """All of it in one line, without comments."""
        lines = (re.sub(r"(^|\s)#.*", "", line) for line in self.text.replace("\\\n", " ").splitlines())
        return " ".join(" ".join(lines).split())


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md and everything in docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, page: str) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: a block is not closed.
    """
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        match = _FENCE.match(lines[number].strip())
        number += 1
        if match is None:
            continue
        first = number
        while number < len(lines) and lines[number].strip() != match["fence"]:
            number += 1
        if number == len(lines):
            raise ValueError(f"{page}:{first}: a block is opened and not closed")
        found.append(Block(page, first + 1, match["language"], "\n".join(lines[first:number]) + "\n"))
        number += 1
    return found


def statements(text: str) -> Iterator[tuple[int, str]]:
    """The commands of a block with the number of their first line, as bash takes them apart.

    A statement goes on after a backslash at the end of a line, within quotes, and to the end of a here-document.
    """
    lines = iter(enumerate(text.splitlines()))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        whole = line
        while whole.endswith("\\") or _open_quote(whole):
            whole += "\n" + next(lines)[1]
        here = _HERE_DOCUMENT.search(whole)
        while here is not None and whole.splitlines()[-1] != here[2]:
            whole += "\n" + next(lines)[1]
        yield number, whole


def _open_quote(text: str) -> bool:
    """Whether bash is within quotes at the end. What is escaped and what is a comment opens none."""
    bare = re.sub(r"\\.|'[^']*'|\"(?:\\.|[^\"\\])*\"|(?<!\S)#[^\n]*", "", text, flags=re.DOTALL)
    return "'" in bare or '"' in bare


def is_script(text: str) -> bool:
    """Whether the statements of a block belong together: it names its interpreter, or sets variables for the rest."""
    first = next((statement for _, statement in statements(text)), "")
    return text.startswith("#!") or first.startswith("export ") or _ASSIGNMENT.fullmatch(first) is not None


def spans(text: str) -> Iterator[tuple[int, str]]:
    """Commands within sentences, with the line: ``art …``, ``python …`` with at least one argument."""
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line.strip())
        if fence is not None:
            inside = "" if inside == fence["fence"] else inside or fence["fence"]
        elif not inside:
            for span in _SPAN.findall(line):
                words = [word for word in span.split() if not _ASSIGNMENT.fullmatch(word)]
                if len(words) > 1 and words[0] in PROGRAMS:
                    yield number, span


def commands() -> list[Command]:
    """All of them, each once: of ``sh`` blocks and of sentences."""
    found: list[Command] = []
    for path in pages():
        page, text = name_of(path), path.read_text(encoding="utf-8")
        for block in blocks(text, page):
            if block.language in ("sh", "bash", "console"):
                whole = is_script(block.text)
                for number, statement in [(0, block.text)] if whole else statements(block.text):
                    found.append(Command(statement, (f"{page}:{block.line + number}",), inline=False))
        found += [Command(span, (f"{page}:{number}",), inline=True) for number, span in spans(text)]
    return _once(found)


def _once(found: list[Command]) -> list[Command]:
    """Those that say the same but for comments and spaces are one."""
    by_words: dict[str, list[Command]] = {}
    for command in found:
        by_words.setdefault(command.words, []).append(command)
    return [
        Command(same[0].text, tuple(c.places[0] for c in same), all(c.inline for c in same))
        for same in by_words.values()
    ]


def python_pages() -> list[tuple[str, list[Block]]]:
    """The pages that have blocks of Python, with these."""
    found = []
    for path in pages():
        here = [b for b in blocks(path.read_text(encoding="utf-8"), name_of(path)) if b.language == "python"]
        if here:
            found.append((name_of(path), here))
    return found
