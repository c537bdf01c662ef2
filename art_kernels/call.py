"""One launch of a Triton kernel, as a value: to be run on a device, or compiled for one that is not there."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch


class Call(NamedTuple):
    """A kernel with everything that it is launched with.

    Attributes:
        kernel: a `triton.jit` function.
        grid: programs along each axis.
        arguments: tensors (or None), ints and floats by name.
        constants: compile-time values by name.
        num_warps: of a program.
        num_stages: tiles in flight.
        registers: of a thread at most; None leaves it to the assembler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    registers: int | None = None

    def options(self) -> dict[str, int]:
        """What the compiler is told beside the constants."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.registers is None else options | {"maxnreg": self.registers}

    def run(self) -> None:
        """Launch it on the current stream of the device that holds its tensors."""
        device = next(value.device for value in self.arguments.values() if isinstance(value, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options())
