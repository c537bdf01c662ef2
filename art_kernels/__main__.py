"""`python -m art_kernels`: versions, devices, and which backend serves which operation on which device, and why not.

`python -m art_kernels compile --out DIR` compiles every Triton kernel for devices that need not be there.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib import metadata

import torch

from art_kernels import backends, tuning
from art_kernels.tracklet_linking import extension


def main(argv: list[str]) -> int:
    """Print the report, or run the command that is named; gives the exit status."""
    if argv[:1] == ["compile"]:
        from art_kernels import compile as compiler

        return compiler.run(argv[1:])
    if argv:
        print(
            f"python -m art_kernels: {' '.join(argv)!r} came, expected nothing, or: compile --out DIR", file=sys.stderr
        )
        return 2
    _report()
    return 0


def _report() -> None:
    print("art_kernels", _version("art-kernels"))
    facts = {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "triton": _triton(),
        "cuda": _cuda(),
        "native module": extension.built_with(),
        "threads": str(torch.get_num_threads()),
        backends.ENVIRONMENT_VARIABLE: _environment(),
        tuning.ENVIRONMENT_VARIABLE: tuning.summary(),
    }
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"  {name:<{width}}  {fact}")
    for device in _devices():
        print(f"\n{device}: {_device_name(device)}")
        for line in _table(device):
            print(f"  {line}".rstrip())


def _table(device: torch.device) -> list[str]:
    """One line for each operation and backend, for float32 tensors on `device`."""
    rows = [("operation", "backend", "serves", "why")]
    tensor = torch.empty(0, device=device)
    for operation in backends.operations():
        for backend in backends.PREFERENCE:
            reason = backends.refusal(operation, backend, tensor)
            if reason is not None:
                rows.append((operation, backend, "no", reason))
            elif backend == _default(operation, tensor):
                rows.append((operation, backend, "default", "taken unless another is asked for"))
            else:
                rows.append((operation, backend, "yes", f"when asked for by backend={backend!r}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _default(operation: str, tensor: torch.Tensor) -> str | None:
    """The backend taken with backend=None; None where the environment names one that refuses."""
    try:
        return backends.choose(operation, tensor)
    except ValueError:
        return None


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed: imported from its source folder)"


def _triton() -> str:
    try:
        module = importlib.import_module("triton")
    except ImportError as error:
        return f"cannot be imported: {error}"
    return f"{module.__version__}, importable"


def _cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this build of torch has no CUDA"
    if not torch.cuda.is_available():
        return f"this build of torch has CUDA {torch.version.cuda or torch.version.hip}, but no device is there"
    return f"{torch.version.cuda or torch.version.hip}, {torch.cuda.device_count()} device(s)"


def _environment() -> str:
    value = os.environ.get(backends.ENVIRONMENT_VARIABLE)
    if not value:
        return f"not set: the first that serves of {', '.join(backends.PREFERENCE)}"
    return value if value in backends.PREFERENCE else f"{value}: not a backend, every operation will refuse it"


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
