"""`python -m art_kernels compile`: compile every kernel variant to machine code, for GPUs that need not be present.

Prints the resources of each variant, and those of the CUDA kernels in the native module. A variant fails if it uses
local memory (spilled registers cause the very memory traffic that the kernel avoids), exceeds the shared memory of the
device, or multiplies 16-bit numbers without tensor cores.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from art_kernels._core.launch import DeviceSpec, KernelLaunch
from art_kernels.tracklet_linking import cpp

#: Shared memory: NVIDIA's CUDA C++ Programming Guide, AMD's CDNA 3 ISA.
TARGETS = {
    "sm_80": DeviceSpec("nvidia", 163 * 1024),
    "sm_86": DeviceSpec("nvidia", 99 * 1024),
    "sm_89": DeviceSpec("nvidia", 99 * 1024),
    "sm_90": DeviceSpec("nvidia", 227 * 1024),
    "sm_100": DeviceSpec("nvidia", 227 * 1024),
    "sm_120": DeviceSpec("nvidia", 99 * 1024),
    "gfx942": DeviceSpec("amd", 64 * 1024),
}

#: The packages with Triton kernels.
OPERATIONS = ("region_attention", "tracklet_contrast", "tracklet_nce", "tracklet_pooling")

_TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_s?mfma_)")
#: A product of 16-bit numbers in Triton's intermediate representation, before instruction selection.
_DOT_OF_16_BITS = re.compile(r"\btt\.dot\b.*:\s*tensor<[\dx]+xb?f16>\s*\*")
_LOAD = re.compile(r"\b(?:ld\.global|cp\.async\.c[ag]|(?:global|buffer|flat)_load_)")
_WIDE_LOAD = re.compile(
    r"\b(?:ld\.global[.\w:]*\.v4\.[bfu]32|ld\.global[.\w:]*\.v2\.[bfu]64|cp\.async\.c[ag]\S* [^;]*\b0x10\b"
    r"|(?:global|buffer|flat)_load_(?:dwordx4|b128))"
)
_KERNEL = re.compile(r"_ZN3art\d+([a-z_]+?)(?:I(\w+?)EEv|E)\w*$")
_ARGUMENT = re.compile(r"Li(\d+)E|([fd])")
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Report:
    """Resources of a compiled variant.

    Attributes:
        name: kernel and variant.
        target: the architecture, such as "sm_90".
        registers: registers per thread.
        local: bytes of local memory per thread, such as spilled registers.
        shared: bytes of shared memory per program.
        loads: number of instructions that load from device memory.
        wide_loads: number of these that load 16 bytes.
        tensor_core: number of tensor-core instructions.
        error: reason of a failure, or "".
    """

    name: str
    target: str
    registers: int = 0
    local: int = 0
    shared: int = 0
    loads: int = 0
    wide_loads: int = 0
    tensor_core: int = 0
    error: str = ""

    def line(self, width: int) -> str:
        """Format a line of the table, with names padded to `width`."""
        numbers = f"{self.registers:9}  {self.local:5}  {self.shared:6}  "
        numbers += f"{self.loads:5}  {self.wide_loads:11}  {self.tensor_core:6}"
        return f"{self.name:<{width}}  {self.target:<7}  {numbers}  {self.error}".rstrip()


def native_reports(targets: Sequence[str]) -> list[Report]:
    """Resources of the CUDA kernels that the native module was built with: "tracklet_linking.kernel"."""
    reports = []
    for kernel in native_kernels():
        if kernel.target in targets:
            error = _fault(kernel.target, kernel.local, kernel.shared, products=False, tensor_core=0)
            name = f"tracklet_linking.{kernel.name}"
            reports.append(Report(name, kernel.target, kernel.registers, kernel.local, kernel.shared, error=error))
    return reports


def all_variants(target: str) -> Iterator[tuple[str, KernelLaunch]]:
    """Yield "operation.kernel.variant" and the launch for every variant of every operation, as built for `target`."""
    for operation in OPERATIONS:
        triton_backend = importlib.import_module(f"art_kernels.{operation}.triton")
        for name, launch in triton_backend.variants(TARGETS[target]):
            yield f"{operation}.{name}", launch


@functools.cache
def _launches(target: str) -> dict[str, KernelLaunch]:
    """Return the launches of a target by name, built once per process."""
    return dict(all_variants(target))


def compile_variant(name: str, target: str, out: Path) -> Report:
    """Compile one variant, write `<name>.<target>.cubin` (or `.hsaco`) to `out`, and report its resources."""
    import triton

    launch = _launches(target)[name]
    if not isinstance(launch.kernel, triton.runtime.JITFunction):
        return Report(name, target, error="TRITON_INTERPRET is set; unset it to compile")
    try:
        compiled = triton.compile(_source(launch), target=_target(target), options=launch.options())
    except Exception as error:
        return Report(
            name, target, error=f"does not compile: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    kind = "hsaco" if target.startswith("gfx") else "cubin"
    binary = compiled.asm[kind]
    (out / f"{name}.{target}.{kind}").write_bytes(binary)
    registers, local = _amd_resources(compiled.asm["amdgcn"]) if kind == "hsaco" else _nvidia_resources(binary)
    text = compiled.asm["amdgcn" if kind == "hsaco" else "ptx"]
    tensor_core = len(_TENSOR_CORE.findall(text))
    shared = compiled.metadata.shared
    fault = _fault(target, local, shared, bool(_DOT_OF_16_BITS.search(compiled.asm["ttir"])), tensor_core)
    loads, wide_loads = len(_LOAD.findall(text)), len(_WIDE_LOAD.findall(text))
    return Report(name, target, registers, local, shared, loads, wide_loads, tensor_core, fault)


def _fault(target: str, local: int, shared: int, products: bool, tensor_core: int) -> str:
    """Return why a variant fails, or ""; `products`: whether it multiplies 16-bit numbers."""
    if local:
        return f"{local} bytes of local memory"
    available = TARGETS[target].shared_memory
    if shared > available:
        return f"{shared} bytes of shared memory, {target} has {available}"
    if products and not tensor_core:
        return "products of 16-bit numbers without tensor cores"
    return ""


def _source(launch: KernelLaunch) -> Any:
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    constants = dict(launch.constants) | {name: None for name, value in launch.arguments.items() if value is None}
    signature = {name: "constexpr" if name in constants else _type(launch.arguments[name]) for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if signature[name].startswith("*")
    }
    return ASTSource(
        launch.kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class NativeKernel(NamedTuple):
    """A CUDA kernel of the native module, compiled for one architecture.

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


def native_kernels() -> Iterator[NativeKernel]:
    """Yield every kernel in the native module; none if it was built without CUDA."""
    if (module := cpp.module_file()) is not None and cpp.has_cuda():
        yield from parse_usage(resource_usage(module))


def parse_usage(usage: str) -> Iterator[NativeKernel]:
    """Parse the output of `cuobjdump -res-usage`."""
    target = name = ""
    for line in usage.splitlines():
        if found := re.match(r"\s*arch = (sm_\d+)", line):
            target = found[1]
        elif found := re.match(r"\s*Function (\w+):", line):
            name = _demangle(found[1])
        elif "REG:" in line and name:
            number = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", line)}
            yield NativeKernel(name, target, number["REG"], number["STACK"] + number["LOCAL"], number["SHARED"])
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


def _target(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)


def _nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = resource_usage(file.name)
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory per thread, from the metadata of the kernel."""
    found = {
        key: int(value) for key, value in re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly)
    }
    return found["vgpr_count"], found["private_segment_fixed_size"]


def run(argv: list[str]) -> int:
    """Run the command; the exit status is 1 if a variant failed."""
    parser = argparse.ArgumentParser(prog="python -m art_kernels compile", description=__doc__)
    parser.add_argument(
        "--targets", type=_targets, default=list(TARGETS), help=f"comma-separated list of {', '.join(TARGETS)}"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="output directory for the machine code, created if missing"
    )
    parser.add_argument(
        "--only",
        type=_pattern,
        default=re.compile(""),
        help="regular expression that names must match",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    known = [name for name, _ in all_variants(arguments.targets[0])]
    names = [name for name in known if arguments.only.search(name)]
    native = [report for report in native_reports(arguments.targets) if arguments.only.search(report.name)]
    if not names and not native:
        parser.error(f"--only {arguments.only.pattern!r} matches no variant; a name is {known[0]}")
    if not cpp.has_cuda():
        print("The native module was built without CUDA; its kernels are not in this table", file=sys.stderr)
    jobs = [(name, target) for name in names for target in arguments.targets]
    if jobs:
        arguments.out.mkdir(parents=True, exist_ok=True)
    width = max(map(len, [*names, *(report.name for report in native)]))
    print(f"{'variant':<{width}}  target   registers  local  shared  loads  of 16 bytes  tensor-core instructions")
    failed = 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        compiled = pool.map(compile_variant, *zip(*jobs, strict=True), [arguments.out] * len(jobs)) if jobs else ()
        for report in itertools.chain(compiled, native):
            failed += report.error != ""
            print(report.line(width), flush=True)
    count = len(jobs) + len(native)
    places = [f"{len(jobs)} to {arguments.out}"] * bool(jobs) + [f"{len(native)} in the native module"] * bool(native)
    print(f"{count - failed} of {count} variants compiled without fault: {', '.join(places)}")
    return 1 if failed else 0


def _targets(text: str) -> list[str]:
    targets = text.split(",")
    for target in targets:
        if target not in TARGETS:
            raise argparse.ArgumentTypeError(f"{target!r} is not a target, expected some of {','.join(TARGETS)}")
    return targets


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
