"""Execute notebooks once, cache the results by content, and add them to the site as pages with their outputs."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import KernelManager
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "notebooks"
SECONDS_PER_CELL = 120


def executed(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with outputs, from the cache if it has run before with this text and these package sources.

    Args:
        path: the committed notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    text = path.read_text(encoding="utf-8")
    cached = CACHE / f"{path.stem}-{_digest(text)}.ipynb"
    CACHE.mkdir(parents=True, exist_ok=True)
    with cached.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cached.exists():
            notebook = nbformat.reads(text, as_version=4)
            _execute(notebook)
            whole = cached.with_suffix(".part")
            nbformat.write(notebook, whole)
            whole.replace(cached)  # an interrupted build leaves no partial file
    return nbformat.read(cached, as_version=4)


def _digest(text: str) -> str:
    sources = sorted(source for package in ("art", "art_kernels") for source in (ROOT / package).rglob("*.py"))
    parts = [text.encode(), *(source.read_bytes() for source in sources)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _execute(notebook: nbformat.NotebookNode) -> None:
    """Run it in an empty directory. The kernel uses file sockets, so no other process can take its ports."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as sockets:
        place = {"connection_file": f"{sockets}/kernel.json", "ip": f"{sockets}/kernel"}
        kernel = KernelManager(kernel_name="python3", transport="ipc", **place)
        resources = {"metadata": {"path": directory}}
        try:
            NotebookClient(notebook, km=kernel, timeout=SECONDS_PER_CELL, resources=resources).execute()
        finally:
            if kernel.has_kernel:
                kernel.shutdown_kernel(now=True)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, its figures, and the notebook for download."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # silences a warning of the kernel's debugger
    for path in sorted((Path(config.config_file_path).parent / "notebooks").glob("*.ipynb")):
        markdown, pictures = as_page(executed(path), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=markdown))
        files.append(File.generated(config, f"notebooks/files/{path.name}", abs_src_path=str(path)))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def as_page(notebook: nbformat.NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """Return the notebook in Markdown, and its figures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code" and cell.source.strip():
            parts.append(f"```python\n{cell.source.rstrip()}\n```")
            parts += [_shown(output, name, pictures) for output in cell.outputs]
    note = f"*Download: [{name}.ipynb](files/{name}.ipynb). The outputs were computed when this site was built.*"
    title, _, rest = "\n\n".join(part for part in parts if part).partition("\n")
    return f"{title}\n\n{note}\n{rest}\n", pictures


def _shown(output: Any, name: str, pictures: dict[str, bytes]) -> str:
    """Return one output of a cell as Markdown; a figure is added to `pictures`."""
    if output.output_type == "stream":
        return "" if output.name == "stderr" else _text(output.text)
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}-{len(pictures) + 1}.png"
        pictures[file] = base64.b64decode(data["image/png"])
        return f"![Figure {len(pictures)} of the notebook]({file})"
    return data.get("text/markdown") or _text(data.get("text/plain", ""))


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
