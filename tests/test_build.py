"""`setup.py`: what it says where something is missing, before anything is built."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("setuptools", minversion="77", reason="older ones do not read this pyproject.toml")


def build(tmp_path: Path, **environment: str) -> str:
    """What a build that fails prints, with nothing in PATH but what `environment` says."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    variables = {"PATH": str(tools), "HOME": str(tmp_path), "CUDA_HOME": str(tmp_path), **environment}
    kept = {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "TMPDIR")}
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"],
        cwd=ROOT, env=kept | variables, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode != 0
    assert not list((tmp_path / "lib").glob("**/*.so"))
    return run.stdout + run.stderr


def tool(folder: Path, name: str, text: str = "exit 0") -> None:
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_missing_tool_is_named_with_the_way_to_get_it(tmp_path):
    assert build(tmp_path).endswith("art-kernels could not be built: there is no cmake\n  pip install cmake\n\n")
    tool(tmp_path, "cmake")
    assert build(tmp_path).endswith("art-kernels could not be built: there is no ninja\n  pip install ninja\n\n")


def test_cuda_that_is_asked_for_and_not_there_is_an_error(tmp_path):
    last = build(tmp_path, ART_KERNELS_CUDA="1").strip().splitlines()
    assert last[-2] == "art-kernels could not be built: ART_KERNELS_CUDA=1, but there is no nvcc"
    assert "CUDA toolkit" in last[-1] and "CUDACXX" in last[-1]


def test_an_unknown_wish_is_an_error(tmp_path):
    last = build(tmp_path, ART_KERNELS_CUDA="yes").strip().splitlines()
    assert last[-2:] == [
        "art-kernels could not be built: ART_KERNELS_CUDA is 'yes'",
        "  Set it to 1 (with CUDA), to 0 (without), or not at all.",
    ]


@pytest.mark.parametrize(
    "environment, told",
    [
        ({}, "building the CPU part only, without CUDA: there is no nvcc in PATH, CUDA_HOME or CUDACXX"),
        (
            {"ART_KERNELS_CUDA": "0", "CUDACXX": "/opt/nvcc"},
            "building the CPU part only, without CUDA: ART_KERNELS_CUDA=0",
        ),
        ({"CUDACXX": "/opt/nvcc"}, "building the CPU part and the CUDA part with /opt/nvcc"),
    ],
)
def test_it_says_whether_cuda_is_built_and_how_a_failed_build_can_be_mended(tmp_path, environment, told):
    pytest.importorskip("pybind11")
    tool(tmp_path, "cmake", "echo no compiler here; exit 1")
    tool(tmp_path, "ninja")
    text = build(tmp_path, **environment)
    assert f"art-kernels: {told}\n" in text and "no compiler here" in text
    assert (
        "the native module cannot be configured; the error is above" in text and "apt install g++ python3-dev" in text
    )
    assert ("ART_KERNELS_CUDA=0 builds without it" in text) == (told.endswith("/opt/nvcc"))
