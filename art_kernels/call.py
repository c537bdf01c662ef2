"""One launch of a Triton kernel, as a value: to be run on a device, or compiled for one that is not there.

Beside it what all launches have in common: how tensors are read, products taken, sums kept.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


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


def matmul_precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: "tf32" only where the user allows it for PyTorch's own; else "ieee"."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def alignment(*tensors: Tensor | None) -> int:
    """The largest power of two, up to 16 bytes in elements, that divides every stride but that of the channels."""
    present = [tensor for tensor in tensors if tensor is not None]
    align = 16 // present[0].element_size()
    while any(stride % align for tensor in present for stride in tensor.stride()[:-1]):
        align //= 2
    return align


def chunk_width(channels: int, widest: int) -> int:
    """Channels a chunk: the most, up to `widest`, that leave at most an eighth of the channels' number unused."""
    for width in (size for size in (128, 64, 32) if size <= widest):
        padded = -(-channels // width) * width
        if padded - channels <= channels // 8:
            return width
    return min(32, widest)


def float32_like(like: Tensor, *shape: int) -> Tensor:
    """An empty buffer on the same device."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def readable(tensor: Any) -> Any:
    """The tensor itself where neighbouring channels are neighbours in memory, which is all that a kernel asks for."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
