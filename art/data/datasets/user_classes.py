"""What a user says of the classes of own clips, in two optional files of the root folder.

``classes.txt``: the class names in the order of their indices, one a line. ``mirror.csv`` with the header
``class,mirror`` allows horizontal flips in training by telling what a class becomes (a class that is not in it stays
what it is; a table without rows changes none).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from art.data.datasets.annotations import read_table, read_text
from art.data.datasets.registry import nearest

CLASSES, MIRROR = "classes.txt", "mirror.csv"


def read_classes(root: Path) -> tuple[str, ...] | None:
    """The class names of ``root/classes.txt``, None where there is no such file.

    Raises:
        ValueError: it is empty, or a line is blank or there twice.
    """
    path = root / CLASSES
    if not path.exists():
        return None
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise ValueError(f"{path}:{number}: is blank; expected one class name a line")
        if line in lines[: number - 1]:
            raise ValueError(f"{path}:{number}: class {line!r} is there already, in line {lines.index(line) + 1}")
    if not lines:
        raise ValueError(f"{path} is empty; expected one class name a line")
    return tuple(lines)


def read_mirror(root: Path, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """What ``root/mirror.csv`` says each class becomes in a mirror, None where there is no such file.

    Raises:
        ValueError: a line that does not fit; the message gives file and line.
    """
    path = root / MIRROR
    if not path.exists():
        return None
    mirror = list(range(len(class_names)))
    index = {name: i for i, name in enumerate(class_names)}
    for line, values in read_table(path, ("class", "mirror")):
        for name in (values["class"], values["mirror"]):
            if name not in index:
                raise ValueError(f"{path}:{line}: {name!r} is no class{nearest(name, tuple(class_names))}")
        first, second = index[values["class"]], index[values["mirror"]]
        mirror[first], mirror[second] = second, first
    return tuple(mirror)
