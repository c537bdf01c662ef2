"""Adapt docstrings to MkDocs: Sphinx-style references, and text that looks like HTML."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Module, NameResolutionError, Object

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`(~?)([^`]+)`")
_SPAN = re.compile(r"(`+[^`]+`+)")
# A list right below its sentence; continuation lines of an item are indented further than its dash.
_LIST = re.compile(r"^((?P<in> *)(?!- )\S.*)\n((?P=in) *- )", re.M)
_FACTORY = re.compile(r"\(lambda: (.*)\)\(\)")


class Docstrings(Extension):
    """``:class:`art.ARTModel` `` becomes a link if the site documents it, and code otherwise."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of each loaded object."""
        if obj.docstring is not None:
            lines = obj.docstring.value.split("\n")
            text = "\n".join(line if line.lstrip().startswith((">>>", "...")) else _no_tags(line) for line in lines)
            obj.docstring.value = _LIST.sub(r"\1\n\n\3", _ROLE.sub(lambda role: _reference(role, obj), text))

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Show defaults of dataclasses as values."""
        for member in _classes(pkg):
            for parameter in member.parameters if "dataclass" in member.labels else ():
                factory = _FACTORY.fullmatch(str(parameter.default or ""))
                if factory:
                    parameter.default = factory[1]


def _no_tags(line: str) -> str:
    """Escape text such as ``cuda:<number>``, which is not HTML."""
    parts = _SPAN.split(line)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def _reference(role: re.Match[str], obj: Object) -> str:
    """An optional cross-reference: a name without an entry is shown without a link."""
    shortened, path = role.groups()
    name = path.rsplit(".", 1)[-1] if shortened or path.startswith(".") else path
    if "." not in path:
        try:
            path = obj.resolve(path)
        except NameResolutionError:
            return f"<code>{name}</code>"
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'


def _classes(module: Module) -> list[Class]:
    found: list[Class] = []
    for member in module.members.values():
        if member.is_alias:
            continue
        if isinstance(member, Class):
            found.append(member)
        elif isinstance(member, Module):
            found += _classes(member)
    return found
