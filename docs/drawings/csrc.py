"""Sizes of the CUDA kernels, from the lines of their source that choose a kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parents[2] / "csrc"


class Linker(NamedTuple):
    """A kernel that links frames of up to ``most`` responses; ``square`` is 0 where a warp takes a pair of frames."""

    most: int
    rows: int
    square: int


def _constant(file: str, name: str) -> int:
    found = re.search(rf"\b{name} = (\d+);", (_FOLDER / file).read_text())
    assert found is not None, f"{name} is no longer in csrc/{file}"
    return int(found[1])


def most_rows() -> int:
    """Rows of the largest assignment problem."""
    return _constant("assignment.hpp", "kMaxSize")


def enumerated_rows() -> int:
    """Up to so many rows a thread compares all matchings of a problem."""
    return _constant("enumeration_cuda.cuh", "kMaxEnumerated")


def lanes_of_rows() -> dict[int, int]:
    """Of the problems that a group of lanes solves: the most rows, and the lanes of a group."""
    text = (_FOLDER / "assignment_cuda.cuh").read_text()
    found = re.findall(r"size <= (\d+)\) return run\(solve_staged<Real, (\d+)>", text)
    assert found, "csrc/assignment_cuda.cuh no longer chooses solve_staged by size"
    return {int(size): int(lanes) for size, lanes in found}


def linkers() -> list[Linker]:
    """The kernels that link, by the most responses a frame; the last has no bound but that of the operation."""
    text = (_FOLDER / "linking_cuda.cuh").read_text()
    few = re.findall(r"size <= (\d+)\) return run\(link_few<Real, (\d+)>", text)
    many = re.findall(r"return run\(link_many<Real, (\d+), (\d+)>", text)
    assert few and many, "csrc/linking_cuda.cuh no longer chooses link_few and link_many by size"
    by_warp = [Linker(int(most), int(rows), 0) for most, rows in few]
    return by_warp + [Linker(int(rows), int(rows), int(square)) for rows, square in many]


def tile_units() -> int:
    """Units of 16 bytes (of float32) of each response that a tile of the linking kernel has."""
    return _constant("linking_cuda.cuh", "kTileUnits")
