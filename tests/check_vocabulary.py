"""Check that all text of the repository uses the vocabulary of CONTRIBUTING.md: `python tests/check_vocabulary.py`.

Prints each line that contains a word to avoid, with the word to use, and exits with status 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {  # of text files
    ".py", ".md", ".html", ".js", ".css", ".hpp", ".cpp", ".cu", ".cuh", ".toml", ".yaml", ".yml", ".cff", ".ipynb",
}  # fmt: skip
EXTENSIONLESS = {"Makefile", "run"}

#: Pattern, and what to use instead.
AVOID = {
    r"says?|said|tells?|told": "reports, prints, raises, logs",
    r"gives?|gave": "returns",
    r"stands|lies": "is, is stored in",
    r"asks?(?: for)?|asked for|wants?": "requires, requests",
    r"brings? (?:a|the|your) (?:clip|video)s?": "upload a clip",
    r"leaves? (?:that|it|them|this)? ?out|left[ _]out": "disable, skip, omit",
    r"as fast as": "a speedup over",
    r"besides?|likewise": "next to, vs., also",
    r"so many": "every n-th, this number of",
    r"written down": "reference, naive loop",
    r"goes on": "resumes, continues",
    r"(?:is|are|be|being|was|were) looked at": "is evaluated, is inspected",
    r"shares? of": "fraction of, ratio",
    r"folders?": "directory",
    r"whatever|whichever": "any, regardless of",
    r"of (?:its|their) own": "separate, dedicated",
    r"in place of": "instead of",
    r"put away": "reshard, store, save",
    r"colours?|coloured|colouring": "color",
    r"cent(?:re|red|res|ring)": "center",
    r"(?:normal|initial|optim|organ|recogn|serial|summar|visual|vector|general|parallel|quant|random|synchron|util"
    r"|minim|maxim|token|rasteri|special|categor|emphas|priorit|penal|regular|standard|stabil|final)is(?:e|es|ed|ing"
    r"|ation|ations|er|ers)": "the -ize spelling",
    r"behaviours?|neighbours?|neighbouring|favours?|favourite|labell(?:ed|ing)|modell(?:ed|ing)|cancell(?:ed|ing)"
    r"|travell(?:ed|ing)|grey|greyscale|licences?|catalogue|metres?|analyse[ds]?|artefacts?|programme|judgement"
    r"|defence|fulfil": "the American spelling",
}
_PATTERN = re.compile(
    r"(?<![\w`\"'/.=-])(?:" + "|".join(f"(?P<w{i}>{words})" for i, words in enumerate(AVOID)) + r")(?![\w`\"'/=]|-\w)",
    re.IGNORECASE,
)
#: Files that must contain these words, and why.
ALLOWED = {
    "tests/check_vocabulary.py": "the list itself",
    "CONTRIBUTING.md": "the glossary",
    "art/data/datasets/ntu.py": "the published class names",
}


#: Names that users type or that saved files contain: a dataset, deprecated aliases, a prompt of saved banks.
_EXEMPT = re.compile(r'prepare folder|(\w+) = renamed_attribute|"can you recognise the action')


def tracked_files() -> Iterator[Path]:
    """Yield the tracked text files of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if name not in ALLOWED and (path.suffix in SUFFIXES or path.name in EXTENSIONLESS) and path.is_file():
            yield path


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the word found and the words to use instead."""
    replacements = list(AVOID.values())
    for number, line in enumerate(text.splitlines(), 1):
        line = _EXEMPT.sub("", line)
        for match in _PATTERN.finditer(line):
            assert match.lastgroup is not None
            yield number, match[0], replacements[int(match.lastgroup[1:])]


def main(arguments: list[str]) -> int:
    """Check the files named in `arguments`, or all tracked ones; return the exit status."""
    count = 0
    for path in [Path(name) for name in arguments] or tracked_files():
        for number, word, instead in findings(path.read_text(encoding="utf-8")):
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            print(f"{shown}:{number}: {word!r}: use {instead}")
            count += 1
    if count:
        print(f"{count} words to avoid; the glossary is in CONTRIBUTING.md", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
