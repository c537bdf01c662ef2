"""The import graph: `art_kernels` does not depend on `art`, and no module imports itself through others."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("art", "art_kernels", "benchmarks")


def source_files() -> dict[str, Path]:
    """Return the file of each module by its dotted name."""
    files = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            files[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return files


FILES = source_files()


def known_module(name: str) -> str | None:
    """Return the longest prefix of a dotted name that is a module of this repository."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def imported_modules(module: str) -> set[str]:
    """Return what a module imports, at import time or later; imports for type checkers do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: relative import; use an absolute one"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            target = known_module(name)
            while target:  # importing a.b.c also imports a and a.b, unless they are being imported already
                if not f"{module}.".startswith(f"{target}."):
                    found.add(target)
                target = target.rpartition(".")[0]
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(FILES[module].read_text(encoding="utf-8")))
    return found


GRAPH = {module: imported_modules(module) for module in FILES}


def test_no_import_cycles():
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(GRAPH[module]):
                follow(target, [*path, module])
            done.add(module)

    for module in sorted(GRAPH):
        follow(module, [])


def test_the_kernels_do_not_depend_on_the_model():
    depends = {m: [t for t in targets if t.split(".")[0] != "art_kernels"] for m, targets in GRAPH.items()}
    assert {m: targets for m, targets in depends.items() if m.startswith("art_kernels") and targets} == {}
    assert not [m for m, targets in GRAPH.items() if m.startswith("art.") and any("benchmarks" in t for t in targets)]
