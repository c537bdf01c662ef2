"""Convert formulas to MathML while the site is built, so that no script is needed to render them."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

# As pymdownx.arithmatex marks them with `generic: true`.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)

# The converter adds no space between a function and its argument.
_APPLIED = re.compile(r"(<mi>(?:log|exp|ln|cos|sin|tan|tanh)</mi>)(?=<m(?:i|sub|sup|subsup|frac)>)")


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace each LaTeX formula by MathML; an invalid one stops the build."""

    def inline(match: re.Match[str]) -> str:
        return mathml(html.unescape(match[1]), "inline", page.file.src_uri)

    def block(match: re.Match[str]) -> str:
        return f'<div class="formula">{mathml(html.unescape(match[1]), "block", page.file.src_uri)}</div>'

    return _BLOCK.sub(block, _INLINE.sub(inline, content))


def mathml(latex: str, display: str, page: str) -> str:
    """Convert a formula to MathML.

    Raises:
        PluginError: the formula is invalid or contains an unknown command.
    """
    try:
        made = convert(latex.strip(), display=display)
    except Exception as error:
        raise PluginError(f"{page}: the formula {latex.strip()!r} cannot be parsed: {error!r}") from error
    unknown = re.findall(r"\\[A-Za-z]+", re.sub(r"<[^>]*>", " ", made))
    if unknown:
        raise PluginError(f"{page}: the formula {latex.strip()!r} contains the unknown command {unknown[0]}")
    return _APPLIED.sub(r'\1<mspace width="0.17em"/>', made)
