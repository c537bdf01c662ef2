"""Build the native module in csrc/ with CMake and Ninja. All metadata is in pyproject.toml.

Environment variables:
    ART_KERNELS_CUDA: 1 requires the CUDA part, 0 disables it; unset builds it if nvcc is found.
    ART_KERNELS_CUDA_ARCHS: compute capabilities to compile for, such as "90" or "80,90"; unset compiles for all
        supported ones and embeds PTX for newer devices.
    CMAKE_ARGS: extra arguments for CMake.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODULE = "art_kernels.tracklet_linking._csrc"
CUDA = "ART_KERNELS_CUDA"
CUDA_ARCHS = "ART_KERNELS_CUDA_ARCHS"


class BuildError(SystemExit):
    """Ends the build; the problem and its remedy are the last lines printed."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"\nart-kernels could not be built: {problem}\n  {remedy}\n")


class CMakeBuild(build_ext):
    """Configures, builds and installs the native module."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; called by setuptools."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = Path(self.build_temp).resolve() / "csrc"
        build_dir.mkdir(parents=True, exist_ok=True)
        nvcc, archs = find_nvcc(), cuda_archs()
        print(f"art-kernels: building the CPU part {describe_cuda(nvcc, archs)}")
        run(configure_command(build_dir, nvcc, archs), "CMake cannot configure the native module", nvcc)
        run(["cmake", "--build", str(build_dir)], "the native module does not compile", nvcc)
        run(["cmake", "--install", str(build_dir), "--prefix", str(target)], "the module cannot be installed", nvcc)


def find_nvcc() -> str | None:
    """Return the CUDA compiler to use, or None to build without CUDA."""
    requested = os.environ.get(CUDA, "")
    if requested not in ("", "0", "1"):
        raise BuildError(f"{CUDA} is {requested!r}", "Set it to 1 (with CUDA) or 0 (without), or unset it.")
    if requested == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if nvcc is None and requested == "1":
        raise BuildError(
            f"{CUDA}=1, but nvcc was not found",
            "Install the CUDA toolkit (12.0 or newer) and add its bin directory to PATH, or set CUDACXX to its nvcc.",
        )
    return nvcc


def cuda_archs() -> list[str]:
    """Return the compute capabilities to compile for, such as ["90"]; an empty list means all supported ones."""
    requested = os.environ.get(CUDA_ARCHS, "")
    archs = re.split(r"[,;\s]+", requested.strip()) if requested.strip() else []
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}a?", arch):
            raise BuildError(
                f"{CUDA_ARCHS} is {requested!r}; {arch!r} is not a compute capability",
                "Use two or three digits, separated by commas, such as 90 or 80,90.",
            )
    return archs


def describe_cuda(nvcc: str | None, archs: list[str]) -> str:
    """Return what is built in addition to the CPU part, or why nothing is."""
    if nvcc:
        return f"and the CUDA part with {nvcc}" + (f" for sm_{', sm_'.join(archs)}" if archs else "")
    reason = f"{CUDA}=0" if os.environ.get(CUDA) == "0" else "nvcc is not in PATH, CUDA_HOME or CUDACXX"
    return f"only, without CUDA: {reason}"


def configure_command(build_dir: Path, nvcc: str | None, archs: list[str]) -> list[str]:
    """Return the command that configures the build."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} was not found", f"pip install {tool}")
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 was not found", "pip install pybind11, or build with pip's isolation") from None
    # --fresh: the cache of an earlier build names the tools of that build's isolated environment, which is gone.
    command = ["cmake", "--fresh", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"]
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        CUDA: "ON" if nvcc else "OFF",
        CUDA_ARCHS: ";".join(archs),
    }
    if nvcc:
        options["CMAKE_CUDA_COMPILER"] = nvcc
    command += [f"-D{name}={value}" for name, value in options.items()]
    return command + shlex.split(os.environ.get("CMAKE_ARGS", ""))


def run(command: list[str], problem: str, nvcc: str | None) -> None:
    """Run one build step; raise BuildError if it fails."""
    if subprocess.run(command).returncode != 0:
        remedy = "A C++17 compiler and the Python headers are required; on Debian: apt install g++ python3-dev."
        if nvcc:
            remedy += f"\n  If only the CUDA part fails, {CUDA}=0 builds without it."
        raise BuildError(f"{problem}; see the error above (pip shows it with -v).", remedy)


setup(ext_modules=[Extension(MODULE, sources=[])], cmdclass={"build_ext": CMakeBuild})
