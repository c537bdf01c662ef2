"""Sizes of the CUDA kernels, parsed from the lines of their source that select a kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_CSRC = Path(__file__).parents[2] / "csrc"


class Linker(NamedTuple):
    """A kernel that links frames of up to ``most`` responses; ``square`` is 0 if a warp processes a pair of frames."""

    most: int
    rows: int
    square: int


def _constant(file: str, name: str) -> int:
    found = re.search(rf"\b{name} = (\d+);", (_CSRC / file).read_text())
    assert found is not None, f"{name} is no longer in csrc/{file}"
    return int(found[1])


def most_rows() -> int:
    """Rows of the largest assignment problem."""
    return _constant("assignment.hpp", "kMaxSize")


def enumerated_rows() -> int:
    """Largest number of rows for which one thread compares all matchings."""
    return _constant("assignment.hpp", "kMaxEnumerated")


def lanes_of_rows() -> dict[int, int]:
    """Largest number of rows, and the lanes of a group, for problems solved by a group of lanes."""
    text = (_CSRC / "assignment_cuda.cuh").read_text()
    found = re.findall(r"size <= (\d+)\) return run\(solve_staged<Real, (\d+)>", text)
    assert found, "csrc/assignment_cuda.cuh no longer selects solve_staged by size"
    return {int(size): int(lanes) for size, lanes in found}


def linkers() -> list[Linker]:
    """The linking kernels by their largest number of responses per frame."""
    text = (_CSRC / "linking_cuda.cuh").read_text()
    few = re.findall(r"size <= (\d+)\) return run\(link_few<Real, (\d+)>", text)
    many = re.findall(r"return run\(link_many<Real, (\d+), (\d+)>", text)
    assert few and many, "csrc/linking_cuda.cuh no longer selects link_few and link_many by size"
    by_warp = [Linker(int(most), int(rows), 0) for most, rows in few]
    return by_warp + [Linker(int(rows), int(rows), int(square)) for rows, square in many]


def tile_units() -> int:
    """Units of 16 bytes (float32) per response in a tile of the linking kernel."""
    return _constant("linking_cuda.cuh", "kTileUnits")
