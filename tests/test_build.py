"""`setup.py`: messages about missing tools, CUDA options, and a second build in the same checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("setuptools", minversion="77", reason="older versions cannot read this pyproject.toml")


def build_ext(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build into `tmp_path`, keeping only the environment variables that a build needs."""
    kept = {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "TMPDIR")}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"],
        cwd=ROOT, env=kept | {"HOME": str(tmp_path), **environment}, capture_output=True, text=True,
    )  # fmt: skip


def failed_build(tmp_path: Path, **environment: str) -> str:
    """Return the output of a build that fails because `tmp_path/bin` is the only directory in PATH."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    run = build_ext(tmp_path, **{"PATH": str(tmp_path / "bin"), "CUDA_HOME": str(tmp_path), **environment})
    assert run.returncode != 0
    assert not list((tmp_path / "lib").glob("**/*.so"))
    return run.stdout + run.stderr


def write_tool(directory: Path, name: str, text: str = "exit 0") -> None:
    (directory / "bin").mkdir(exist_ok=True)
    path = directory / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_missing_tool(tmp_path):
    assert failed_build(tmp_path).endswith("could not be built: cmake was not found\n  pip install cmake\n\n")
    write_tool(tmp_path, "cmake")
    assert failed_build(tmp_path).endswith("could not be built: ninja was not found\n  pip install ninja\n\n")


def test_missing_nvcc(tmp_path):
    lines = failed_build(tmp_path, ART_KERNELS_CUDA="1").strip().splitlines()
    assert lines[-2] == "art-kernels could not be built: ART_KERNELS_CUDA=1, but nvcc was not found"
    assert "CUDA toolkit" in lines[-1] and "CUDACXX" in lines[-1]


@pytest.mark.parametrize(
    "variable, value, problem, remedy",
    [
        ("ART_KERNELS_CUDA", "yes", "is 'yes'", "Set it to 1 (with CUDA) or 0 (without), or unset it."),
        ("ART_KERNELS_CUDA_ARCHS", "80,hopper", "'hopper' is not a compute capability", "such as 90 or 80,90"),
    ],
)
def test_invalid_variable(tmp_path, variable, value, problem, remedy):
    lines = failed_build(tmp_path, **{variable: value}).strip().splitlines()
    assert variable in lines[-2] and problem in lines[-2] and remedy in lines[-1]


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, "the CPU part only, without CUDA: nvcc is not in PATH, CUDA_HOME or CUDACXX"),
        ({"ART_KERNELS_CUDA": "0", "CUDACXX": "/opt/nvcc"}, "the CPU part only, without CUDA: ART_KERNELS_CUDA=0"),
        ({"CUDACXX": "/opt/nvcc"}, "the CPU part and the CUDA part with /opt/nvcc"),
        (
            {"CUDACXX": "/opt/nvcc", "ART_KERNELS_CUDA_ARCHS": "90"},
            "the CPU part and the CUDA part with /opt/nvcc for sm_90",
        ),
    ],
)
def test_cuda_options_are_reported_and_passed_on(tmp_path, environment, expected):
    pytest.importorskip("pybind11")
    write_tool(tmp_path, "cmake", 'echo "arguments: $*"; exit 1')
    write_tool(tmp_path, "ninja")
    output = failed_build(tmp_path, **environment)
    assert f"art-kernels: building {expected}\n" in output
    assert "CMake cannot configure the native module" in output and "apt install g++ python3-dev" in output
    assert ("ART_KERNELS_CUDA=0 builds without it" in output) == ("with /opt/nvcc" in expected)
    assert f"-DART_KERNELS_CUDA_ARCHS={environment.get('ART_KERNELS_CUDA_ARCHS', '')}" in output.split()


@pytest.mark.slow
def test_second_build_ignores_the_cache_of_the_first(tmp_path):
    """pip builds in the checkout with tools from a temporary environment; its cache names a ninja that is gone."""
    pytest.importorskip("pybind11")
    cmake, ninja = pytest.importorskip("cmake"), pytest.importorskip("ninja")
    cache = tmp_path / "temp" / "csrc" / "CMakeCache.txt"
    cache.parent.mkdir(parents=True)
    cache.write_text(
        f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\nCMAKE_CACHEFILE_DIR:INTERNAL={cache.parent}\n"
        f"CMAKE_GENERATOR:INTERNAL=Ninja\nCMAKE_MAKE_PROGRAM:FILEPATH={tmp_path / 'gone' / 'ninja'}\n"
    )
    path = os.pathsep.join([cmake.CMAKE_BIN_DIR, ninja.BIN_DIR, os.environ["PATH"]])
    run = build_ext(tmp_path, PATH=path, ART_KERNELS_CUDA="0")
    assert run.returncode == 0, run.stdout + run.stderr
    (module,) = (tmp_path / "lib").glob("**/_csrc*.so")
    code = f"import sys; sys.path.insert(0, {str(module.parent)!r}); import _csrc; print(_csrc.CUDA)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() in ("", "None")
