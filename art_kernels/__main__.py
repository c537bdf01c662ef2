"""`python -m art_kernels`: versions, devices, and which backends support each operation on each device, with reasons.

`python -m art_kernels compile --out DIR` compiles every Triton kernel for GPUs that need not be present.
"""

from __future__ import annotations

import importlib.machinery
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from art_kernels._core import backends, launch
from art_kernels.tracklet_linking import cpp


def main(argv: list[str]) -> int:
    """Print the report, or run the named command; returns the exit status."""
    if argv[:1] == ["compile"]:
        from art_kernels import compile as compiler

        return compiler.run(argv[1:])
    if argv:
        print(
            f"python -m art_kernels: unknown arguments {' '.join(argv)!r}, expected none, or: compile --out DIR",
            file=sys.stderr,
        )
        return 2
    _report()
    return 0


def _report() -> None:
    print("art_kernels", _version("art-kernels"))
    facts = {
        "package": str(Path(__file__).resolve().parent),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "triton": _import_status("triton"),
        "numpy": _import_status("numpy"),
        "cuda": _cuda(),
        "native module": cpp.build_summary(),
        "threads": str(torch.get_num_threads()),
        backends.ENVIRONMENT_VARIABLE: _default_backend(),
        launch.AUTOTUNE_VARIABLE: _autotune(),
    }
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"  {name:<{width}}  {fact}")
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    for device in devices:
        print(f"\n{device}: {_device_name(device)}")
        for line in _table(device):
            print(f"  {line}".rstrip())


def _table(device: torch.device) -> list[str]:
    """One line per operation and backend, for float32 tensors on `device`."""
    rows = [("operation", "backend", "status", "reason")]
    tensor = torch.empty(0, device=device)
    for operation in backends.operations():
        default = _choose(operation, tensor)
        for backend in backends.BACKENDS:
            reason = backends.unsupported_reason(operation, backend, tensor)
            if reason is not None:
                rows.append((operation, backend, "no", reason))
            elif backend == default:
                rows.append((operation, backend, "default", "used unless another backend is named"))
            else:
                rows.append((operation, backend, "yes", f"used with backend={backend!r}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _choose(operation: str, tensor: torch.Tensor) -> str | None:
    """The default backend; None if ART_KERNELS_BACKEND names one that does not support the tensor."""
    try:
        return backends.choose(operation, tensor)
    except ValueError:
        return None


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed: imported from a source directory)"


def _import_status(module: str) -> str:
    try:
        return f"{importlib.import_module(module).__version__}, importable"
    except ImportError as error:
        return f"cannot be imported: {error}"


def _cuda() -> str:
    version = torch.version.cuda or torch.version.hip
    if version is None:
        return "this build of torch has no CUDA"
    if not torch.cuda.is_available():
        return f"this build of torch has CUDA {version}, but no device is available"
    return f"{version}, {torch.cuda.device_count()} device(s)"


def _default_backend() -> str:
    value = os.environ.get(backends.ENVIRONMENT_VARIABLE)
    if not value:
        return f"not set: the first supported of {', '.join(backends.BACKENDS)}"
    if value == "native":
        return "native: deprecated, use cpp or torch"
    return value if value in backends.BACKENDS else f"{value}: not a backend, every operation will raise an error"


def _autotune() -> str:
    try:
        if launch.autotune_enabled():
            return "on; results are stored in Triton's cache directory"
        return "off, block sizes come from the tables"
    except ValueError as error:
        return f"error: {error}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _is_shadowing_an_installation() -> bool:
    """Return whether this package is a source tree without its native module, found before a complete installation.

    `python -m` puts the working directory first in `sys.path`, which in a checkout hides the installed package.
    """
    if cpp.module_file() is not None:
        return False
    spec = importlib.machinery.PathFinder.find_spec("art_kernels", sys.path[1:])
    here = Path(__file__).resolve().parent
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent != here


_RUN_INSTALLED = (
    "import runpy, sys; del sys.path[0]; runpy.run_module('art_kernels', run_name='__main__', alter_sys=True)"
)

if __name__ == "__main__":
    if _is_shadowing_an_installation():
        sys.exit(subprocess.call([sys.executable, "-c", _RUN_INSTALLED, *sys.argv[1:]]))
    sys.exit(main(sys.argv[1:]))
