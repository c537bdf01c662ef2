"""Registers and memory of the CUDA kernels in the native module, for each architecture they were compiled for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from art_kernels.tracklet_linking import cpp

_KERNEL = re.compile(r"_ZN3art\d+([a-z_]+?)(?:I(\w+?)EEv|E)\w*$")
_ARGUMENT = re.compile(r"Li(\d+)E|([fd])")


class Kernel(NamedTuple):
    """A kernel compiled for one architecture.

    Attributes:
        name: the name with its template arguments, such as "solve.f32.16.1".
        target: the architecture, such as "sm_90".
        registers: registers per thread.
        local: bytes of local memory per thread: stack and spilled registers.
        shared: bytes of static shared memory per block.
    """

    name: str
    target: str
    registers: int
    local: int
    shared: int


def kernels() -> Iterator[Kernel]:
    """Yield every kernel in the module; none if it was built without CUDA."""
    if (module := cpp.module_file()) is not None and cpp.has_cuda():
        yield from parse(resource_usage(module))


def parse(usage: str) -> Iterator[Kernel]:
    """Parse the output of `cuobjdump -res-usage`."""
    target = name = ""
    for line in usage.splitlines():
        if found := re.match(r"\s*arch = (sm_\d+)", line):
            target = found[1]
        elif found := re.match(r"\s*Function (\w+):", line):
            name = _demangle(found[1])
        elif "REG:" in line and name:
            number = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", line)}
            yield Kernel(name, target, number["REG"], number["STACK"] + number["LOCAL"], number["SHARED"])
            name = ""


def _demangle(mangled: str) -> str:
    found = _KERNEL.match(mangled)
    if found is None:
        return mangled
    arguments = [number or {"f": "f32", "d": "f64"}[letter] for number, letter in _ARGUMENT.findall(found[2] or "")]
    return ".".join([found[1], *arguments])


def resource_usage(module: str) -> str:
    """Return the output of `cuobjdump -res-usage`, which Triton's wheel bundles."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, "-res-usage", module], capture_output=True, text=True, check=True).stdout
