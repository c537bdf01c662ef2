"""Add pages for files outside docs/ that the documentation links to: README, sources, results.

The build does not know the repository's public address, so a link such as ``../art/model/options.py`` leads to a page
of the site that shows that file. Links in the pages are unchanged and work in the repository as well.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

DOCS, PREFIX = "docs", "repository"
#: Linked from the navigation itself.
IN_NAV = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
#: Languages of files shown with highlighting, by suffix or name.
LANGUAGES = {
    ".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".txt": "text", ".sh": "sh", "Makefile": "make",
    ".cpp": "cpp", ".hpp": "cpp", ".cu": "cuda", ".cuh": "cuda", ".in": "text", "LICENSE": "text",
}  # fmt: skip
_CODE = re.compile(r"(^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))", re.S | re.M)
_LINK = re.compile(r"(\]\(\s*<?|\b(?:src|href|srcset)=\"|^ {0,3}\[[^\]\n]+\]:\s*)([^\s()\"'<>]+)", re.M)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//|/|#", re.I)


def links(markdown: str) -> list[str]:
    """Return every link of a page outside of code."""
    found: list[str] = []

    def note(link: str) -> str:
        found.append(link)
        return link

    with_links(markdown, note)
    return found


def with_links(markdown: str, change: Callable[[str], str]) -> str:
    """Return the page with each link changed; code is unchanged."""

    def replace(match: re.Match[str]) -> str:
        return match[1] + change(match[2])

    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(replace, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(replace, markdown[end:])])


def leads_elsewhere(link: str) -> bool:
    """Return whether a link leaves the repository or stays on its page."""
    return _ELSEWHERE.match(link) is not None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page, or a copy, of each file outside docs/ that a page links to, recursively."""
    root = Path(config.config_file_path).parent
    pages = [(origin(file.src_uri), file.content_string) for file in files.documentation_pages()]
    pages.append(("mkdocs.yml", "".join(f"[]({name})" for name in IN_NAV)))
    while pages:
        path, markdown = pages.pop()
        for link in links(markdown):
            if leads_elsewhere(link):
                continue
            target = target_of(path, link)
            uri = destination(root, target)
            if uri is None or files.get_file_from_path(uri) is not None or not uri.startswith(PREFIX):
                continue
            if not uri.endswith(".md"):
                files.append(_file(config, uri, abs_src_path=str(root / target)))
                continue
            files.append(_file(config, uri, content=shown(root, target)))
            pages.append((origin(uri), files.get_file_from_path(uri).content_string))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert links of the repository to links between files of the site."""
    root, uri = Path(config.config_file_path).parent, page.file.src_uri
    here = origin(uri)
    if uri.startswith(PREFIX) and not here.endswith(".md"):
        page.meta["search"] = {"exclude": True}  # otherwise sources would rank before the documentation

    def change(link: str) -> str:
        if leads_elsewhere(link):
            return link
        target = destination(root, target_of(here, link))
        if target is None or files.get_file_from_path(target) is None:
            return link  # MkDocs reports the dead link
        anchor = "#" + link.split("#", 1)[1] if "#" in link else ""
        return posixpath.relpath(target, posixpath.dirname(uri)) + anchor

    return with_links(markdown, change)


def origin(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    if uri.startswith("notebooks/"):
        return uri.removesuffix(".md") + ".ipynb"
    if not uri.startswith(f"{PREFIX}/"):
        return f"{DOCS}/{uri}"
    path = uri.removeprefix(f"{PREFIX}/")
    shortened = path.removesuffix(".md")
    return shortened if _language(shortened) or shortened.endswith("/contents") else path


def destination(root: Path, path: str) -> str | None:
    """Return the path on the site of a file or directory of the repository, or None."""
    if path.startswith("..") or not (root / path).exists():
        return None
    if (root / path).is_dir():
        return f"{PREFIX}/{path}/contents.md"
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    if _language(path):
        return f"{PREFIX}/{path}.md"
    return path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else f"{PREFIX}/{path}"


def shown(root: Path, path: str) -> str:
    """Return the page that shows a file or directory."""
    if (root / path).is_dir():
        names = sorted(p.name for p in (root / path).iterdir() if not p.name.startswith((".", "__")))
        return "\n".join([f"# {path}/", "", *(f"- [{name}]({name})" for name in names)])
    text = (root / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    fence = "`" * 4 if "```" in text else "```"
    return f'# {path}\n\n{fence}{_language(path)} linenums="1"\n{text.rstrip()}\n{fence}\n'


def target_of(page: str, link: str) -> str:
    """The path in the repository that a link of a page means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link.split("#", 1)[0]))


def _language(path: str) -> str | None:
    return LANGUAGES.get(posixpath.splitext(path)[1] or posixpath.basename(path))


def _file(config: MkDocsConfig, uri: str, **source: str) -> File:
    return File.generated(config, uri, inclusion=InclusionLevel.NOT_IN_NAV, **source)
