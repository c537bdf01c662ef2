"""What the sizes of a kernel depend on: the means of a device, whether it is here or only compiled for."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Device(NamedTuple):
    """A kind of GPU.

    Attributes:
        vendor: "nvidia", "amd", or "interpreter" for Triton's.
        shared_memory: most bytes of it that a program may have.
    """

    vendor: str
    shared_memory: int


@functools.cache
def device_of(device: torch.device) -> Device:
    """The kind of a device that is here; the CPU can only interpret kernels."""
    if device.type != "cuda":
        return Device("interpreter", 99 * 1024)
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
    return Device("nvidia" if torch.version.hip is None else "amd", shared)


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; of the interpreter, few, so that its tests split too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def splits_for(count: int, programs: int, block_n: int, device: torch.device) -> tuple[int, int]:
    """Into how many splits a walk over `count` items goes, and how many items each takes.

    One split, unless the programs would leave most of the device idle: then enough for about two on every processor,
    and none of less than two tiles.
    """
    tiles = -(-count // block_n)
    wanted = max(1, min(2 * processors(device) // max(programs, 1), tiles // 2))
    tiles_a_split = -(-tiles // wanted)
    return -(-tiles // tiles_a_split), tiles_a_split * block_n


def device_refusal(tensor: Tensor, interpreted: bool) -> str | None:
    """Why no Triton kernel can serve `tensor` where it is, or None; `interpreted`: under TRITON_INTERPRET=1."""
    if tensor.dtype == torch.float64:
        return "the kernels compute in float32"
    if tensor.device.type == "cuda":
        return None
    if not interpreted:
        return "the kernels run on GPUs (and on the CPU under TRITON_INTERPRET=1, set before the import, to test them)"
    return "Triton's interpreter multiplies bfloat16 as integers" if tensor.dtype == torch.bfloat16 else None
