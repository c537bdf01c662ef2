"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

#: The end of the name of a file that is being written.
PARTIAL = ".partial"


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name first: whoever sees ``path`` sees all of it.

    Args:
        path: where the file is to be; its folder is made if need be.
        write: writes the file to the path that it is given. Whatever it raises removes what it wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_writable(folder: Path, argument: str) -> None:
    """Raise ValueError unless files can be written to ``folder``, which need not be there yet; nothing is made.

    Args:
        folder: the folder.
        argument: what the user called it, for the error.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{argument} {folder}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{argument} {folder} cannot be written to; choose a folder of your own")
