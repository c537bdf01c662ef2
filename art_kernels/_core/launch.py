"""Triton kernel launches as values, which can be run on a GPU or compiled for one that is not present.

Also the parts that all launches share: device properties, tables of block sizes, tensor layout and autotuning.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_kernels._core.checks import describe

AUTOTUNE_VARIABLE = "ART_KERNELS_AUTOTUNE"


class DeviceSpec(NamedTuple):
    """The properties of a device that block sizes depend on.

    Attributes:
        vendor: "nvidia", "amd", or "interpreter" for Triton's interpreter on the CPU.
        shared_memory: maximum bytes of shared memory per program.
    """

    vendor: str
    shared_memory: int


@functools.cache
def device_spec(device: torch.device) -> DeviceSpec:
    """Return the properties of a local device; on the CPU, kernels run in the interpreter."""
    if device.type != "cuda":
        return DeviceSpec("interpreter", 99 * 1024)
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block
    return DeviceSpec("nvidia" if torch.version.hip is None else "amd", shared)


@functools.cache
def num_sms(device: torch.device) -> int:
    """Number of streaming multiprocessors; 4 for the interpreter, so that its tests cover split launches."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@functools.lru_cache(maxsize=4096)
def choose_splits(count: int, programs: int, block_n: int, device: torch.device) -> tuple[int, int]:
    """Split a loop over `count` items across programs; returns (number of splits, items per split).

    One split, unless `programs` programs would leave most of the device idle: then about two programs per
    multiprocessor, with at least two tiles of `block_n` items per split.
    """
    tiles = -(-count // block_n)
    wanted = max(1, min(2 * num_sms(device) // max(programs, 1), tiles // 2))
    tiles_per_split = -(-tiles // wanted)
    return -(-tiles // tiles_per_split), tiles_per_split * block_n


def device_unsupported_reason(tensor: Tensor, interpreted: bool) -> str | None:
    """Return why no Triton kernel supports `tensor`, or None; `interpreted`: defined under TRITON_INTERPRET=1."""
    if tensor.dtype == torch.float64:
        return "the kernels compute in float32"
    if tensor.device.type == "cuda":
        return None
    if not interpreted:
        return "the kernels run on GPUs (and on the CPU under TRITON_INTERPRET=1, set before the import, to test them)"
    return "Triton's interpreter multiplies bfloat16 as integers" if tensor.dtype == torch.bfloat16 else None


class LaunchConfig(NamedTuple):
    """Block sizes and compiler options of one launch.

    Attributes:
        block_m: rows per program; at least 16, the minimum of a tensor core.
        block_n: items per tile.
        block_c: channels per chunk; a power of two.
        num_warps: warps per program.
        num_stages: tiles in flight.
        keep_in_regs: keep the channels of a tile in registers instead of rereading them from cache.
        channel_splits: programs across which the channels of a result are divided when registers are scarce.
        maxnreg: maximum registers per thread; None lets the assembler choose, which may spill a few registers to fit
            one more program per multiprocessor.
    """

    block_m: int
    block_n: int
    block_c: int
    num_warps: int
    num_stages: int = 1
    keep_in_regs: bool = False
    channel_splits: int = 1
    maxnreg: int | None = None

    def chunks(self, channels: int) -> int:
        """Number of chunks; a multiple of `channel_splits`."""
        return -(-channels // (self.block_c * self.channel_splits)) * self.channel_splits

    def options(self) -> tuple[int, int, int | None]:
        """The last fields of a :class:`KernelLaunch`: warps, stages and registers."""
        return self.num_warps, self.num_stages, self.maxnreg


class ConfigRow(NamedTuple):
    """A row of a table of launch configurations; see :func:`find_row`.

    Attributes:
        max_channels: the row applies up to this number of channels; None for any number.
        block_n: items per tile.
        max_block_c: maximum channels per chunk.
        num_warps: warps per program.
        num_stages: tiles in flight.
        keep_in_regs: see :class:`LaunchConfig`.
        channel_splits: see :class:`LaunchConfig`.
        maxnreg: see :class:`LaunchConfig`.
        block_m: rows per program.
        min_block_c: minimum channels per chunk.
        min_shared_kib: the row applies to devices with at least this much shared memory per program.
        channels_per_program: maximum channels of a result that one program accumulates; None for all.
    """

    max_channels: int | None
    block_n: int
    max_block_c: int
    num_warps: int
    num_stages: int = 1
    keep_in_regs: bool = False
    channel_splits: int = 1
    maxnreg: int | None = None
    block_m: int = 16
    min_block_c: int = 32
    min_shared_kib: int = 0
    channels_per_program: int | None = None


def find_row(rows: Sequence[ConfigRow], channels: int, device: DeviceSpec) -> ConfigRow:
    """Return the first row that applies to this number of channels and this device."""
    for row in rows:
        fits = row.max_channels is None or channels <= row.max_channels
        if fits and row.min_shared_kib * 1024 <= device.shared_memory:
            return row
    raise AssertionError(f"no configuration for {channels} channels on {device}")


class KernelLaunch(NamedTuple):
    """A kernel and everything it is launched with.

    Attributes:
        kernel: a `triton.jit` function.
        grid: programs along each axis.
        arguments: tensors (or None), ints and floats by parameter name.
        constants: compile-time values by parameter name.
        num_warps: warps per program.
        num_stages: tiles in flight.
        maxnreg: maximum registers per thread; None lets the assembler choose.
        candidates: other configurations that :func:`autotune` may select.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    maxnreg: int | None = None
    candidates: tuple[LaunchConfig, ...] = ()

    def options(self) -> dict[str, int]:
        """Compiler options other than the constants."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.maxnreg is None else options | {"maxnreg": self.maxnreg}

    def run(self) -> None:
        """Launch the kernel on the current stream of the device of its tensors."""
        for value in self.arguments.values():
            if isinstance(value, torch.Tensor):
                break
        device = value.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if (
                device.type == "cuda"
                and self.candidates
                and autotune_enabled()
                and not torch.cuda.is_current_stream_capturing()
            ):
                kernel, fixed = _autotuned(self)
                kernel[self.grid](**self.arguments, **fixed)
            else:
                self.kernel[self.grid](**self.arguments, **self.constants, **self.options())


#: The switches of the open `autotune` blocks; the innermost is last.
_autotune_blocks: dict[object, bool] = {}


@contextmanager
def autotune(enabled: bool = True) -> Iterator[None]:
    """Enable or disable autotuning of region attention on GPUs inside a `with` block; overrides ART_KERNELS_AUTOTUNE.

    When enabled, the first 16-bit launch with a new number of regions, rows or channels times several block sizes with
    `triton.autotune` and stores the fastest in Triton's cache directory. When disabled, which is the default, block
    sizes come from a fixed table, and results are bitwise identical between runs. While a CUDA graph is captured, the
    table is used. The switch applies to the whole process, because autograd runs backward passes in its own threads.

    Args:
        enabled: False uses the table inside the block.

    Examples:
        >>> from art_kernels import autotune
        >>> with autotune(False):  # fixed block sizes, regardless of the environment
        ...     pass
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"autotune: enabled is {describe(enabled)}, expected True or False")
    block = object()
    _autotune_blocks[block] = enabled
    try:
        yield
    finally:
        del _autotune_blocks[block]


def autotune_enabled() -> bool:
    """Return whether autotuning is enabled.

    Raises:
        ValueError: if ART_KERNELS_AUTOTUNE is neither 0 nor 1, and no `autotune` block is open.
    """
    blocks = list(_autotune_blocks.values())
    return blocks[-1] if blocks else _autotune_default()


@functools.cache
def _autotune_default() -> bool:
    value = os.environ.get(AUTOTUNE_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{AUTOTUNE_VARIABLE}={value} is invalid, expected 1 (autotune), or 0 or unset (do not)")
    return value == "1"


def _autotuned(launch: KernelLaunch) -> tuple[Any, dict[str, Any]]:
    """Return the autotuned kernel, and the constants that are not tuned."""
    tuned = [name for name in ("BLOCK_N", "KEEP_IN_REGS") if name in launch.constants]
    fixed = {name: value for name, value in launch.constants.items() if name not in tuned}
    options = (launch.constants["BLOCK_N"], launch.constants.get("KEEP_IN_REGS"), *launch[4:7])
    configs = [options, *((c.block_n, c.keep_in_regs, *c.options()) for c in launch.candidates)]
    return _autotuner(launch.kernel, tuple(tuned), tuple(configs)), fixed


@functools.cache
def _autotuner(kernel: Any, tuned: tuple[str, ...], configs: tuple[tuple[Any, ...], ...]) -> Any:
    import triton

    constants = [kernel.arg_names[index] for index in kernel.constexprs]
    key = [name for name in ("M", "N", *constants) if name not in tuned]
    candidates = [
        triton.Config(
            dict(zip(tuned, (block_n, keep_in_regs), strict=False)),
            num_warps=num_warps, num_stages=num_stages, maxnreg=maxnreg,
        )
        for block_n, keep_in_regs, num_warps, num_stages, maxnreg in configs
    ]  # fmt: skip
    return triton.autotune(candidates, key, cache_results=True)(kernel)


def dot_precision(dtype: torch.dtype) -> str:
    """Precision of float32 products: "tf32" only if the user enabled it for PyTorch's products, otherwise "ieee"."""
    # `allow_tf32` raises if the user set `fp32_precision`, which reflects both settings.
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def alignment(*tensors: Tensor | None) -> int:
    """Largest power of two, up to 16 bytes in elements, that divides every stride except that of the channels."""
    align = 0
    for tensor in tensors:
        if tensor is None:
            continue
        align = align or 16 // tensor.element_size()
        for stride in tensor.stride()[:-1]:
            while stride % align:
                align //= 2
    return align


def chunk_width(channels: int, widest: int) -> int:
    """Channels per chunk: the largest, up to `widest`, with padding of at most an eighth of the channels."""
    for width in (size for size in (128, 64, 32) if size <= widest):
        padded = -(-channels // width) * width
        if padded - channels <= channels // 8:
            return width
    return min(32, widest)


def float32_like(like: Tensor, *shape: int) -> Tensor:
    """An uninitialized float32 tensor on the same device."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


#: Dtypes of the variants that are compiled ahead of time.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def meta_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return a tensor without data, for launches that are compiled but not run."""
    return torch.empty(shape, dtype=dtype, device="meta")


def contiguous_last_dim(tensor: Any) -> Any:
    """The tensor itself if its last dimension is contiguous, which is all that kernels require; otherwise a copy."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
