"""Benchmarks of the operations and models against PyTorch and other libraries; see README.md.

They measure the installed `art_kernels`, which contains the compiled module of csrc/. The checkout contains the sources
of `art_kernels`, without that module unless the installation is editable, and both `python -m` and the scripts put the
checkout first in `sys.path`. Importing this package therefore moves it to the end.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prefer_installed(root: Path) -> None:
    """Move `root` to the end of `sys.path`, so that installed packages are found before the sources in it."""
    sys.path[:] = [*(entry for entry in sys.path if Path(entry).resolve() != root), str(root)]


def require_compiled_module() -> None:
    """Check that the imported `art_kernels` has its compiled module.

    Raises:
        RuntimeError: it does not; the message contains the command to run.
    """
    package = Path(importlib.import_module("art_kernels").__path__[0])
    if not any(list(package.glob(f"**/_csrc{suffix}")) for suffix in EXTENSION_SUFFIXES):
        raise RuntimeError(
            f"{package} has no compiled module, so its operations cannot be measured: run `pip install .` in {ROOT}, "
            "or `pip install -e .` to measure the sources"
        )


if "art_kernels" not in sys.modules:
    prefer_installed(ROOT)
