"""Builds the native module in csrc/ with CMake and ninja; everything else is declared in pyproject.toml.

The environment variable ART_KERNELS_CUDA decides about its CUDA part: 1 asks for it, 0 leaves it out; where it is not
set, it is built where there is an nvcc. CMAKE_ARGS is passed on.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODULE = "art_kernels.tracklet_linking._csrc"
SWITCH = "ART_KERNELS_CUDA"


class BuildError(SystemExit):
    """Ends the build with what is missing and how to get it, as the last thing that is printed."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"\nart-kernels could not be built: {what}\n  {remedy}\n")


class CMakeBuild(build_ext):
    """One module, configured, built and put where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Called by setuptools."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        folder = Path(self.build_temp).resolve() / "csrc"
        folder.mkdir(parents=True, exist_ok=True)
        nvcc = find_nvcc()
        print(f"art-kernels: building the CPU part{f' and the CUDA part with {nvcc}' if nvcc else cuda_left_out()}")
        run(configuration(folder, target, nvcc), "the native module cannot be configured", nvcc)
        run(["cmake", "--build", str(folder)], "the native module does not compile", nvcc)
        run(["cmake", "--install", str(folder), "--prefix", str(target)], "it cannot be put in place", nvcc)


def find_nvcc() -> str | None:
    """The CUDA compiler to build with, None for none."""
    wish = os.environ.get(SWITCH, "")
    if wish not in ("", "0", "1"):
        raise BuildError(f"{SWITCH} is {wish!r}", "Set it to 1 (with CUDA), to 0 (without), or not at all.")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if nvcc is None and wish == "1":
        raise BuildError(
            f"{SWITCH}=1, but there is no nvcc",
            "Install the CUDA toolkit (12.0 or newer) and put its bin folder into PATH, or set CUDACXX to its nvcc.",
        )
    return nvcc


def cuda_left_out() -> str:
    """Why there will be no CUDA part."""
    why = f"{SWITCH}=0" if os.environ.get(SWITCH) == "0" else "there is no nvcc in PATH, CUDA_HOME or CUDACXX"
    return f" only, without CUDA: {why}"


def configuration(folder: Path, target: Path, nvcc: str | None) -> list[str]:
    """The command that configures the build."""
    for tool, package in (("cmake", "cmake"), ("ninja", "ninja")):
        if shutil.which(tool) is None:
            raise BuildError(f"there is no {tool}", f"pip install {package}")
    try:
        import pybind11
    except ImportError:
        raise BuildError("there is no pybind11", "pip install pybind11, or build with pip's isolation") from None
    command = ["cmake", "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", "-D", "CMAKE_BUILD_TYPE=Release"]
    command += ["-D", f"Python_EXECUTABLE={sys.executable}", "-D", f"pybind11_DIR={pybind11.get_cmake_dir()}"]
    command += ["-D", f"ART_KERNELS_CUDA={'ON' if nvcc else 'OFF'}"]
    if nvcc:
        command += ["-D", f"CMAKE_CUDA_COMPILER={nvcc}"]
    return command + shlex.split(os.environ.get("CMAKE_ARGS", ""))


def run(command: list[str], failure: str, nvcc: str | None) -> None:
    """Run a step of the build."""
    if subprocess.run(command).returncode != 0:
        remedy = "It needs a C++17 compiler and Python's headers; on Debian: apt install g++ python3-dev."
        if nvcc:
            remedy += f"\n  If it is the CUDA part that fails, {SWITCH}=0 builds without it."
        raise BuildError(f"{failure}; the error is above (pip shows it with -v).", remedy)


setup(ext_modules=[Extension(MODULE, sources=[])], cmdclass={"build_ext": CMakeBuild})
