"""The CUDA kernels of csrc/ without a GPU: run on the CPU as plain C++, and compiled."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
CHECKS = ROOT / "tests" / "csrc"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
    return result


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: neither g++ nor clang++ is on the PATH")
    program = tmp_path_factory.mktemp("csrc") / "check_cuda_kernels"
    options = ["-std=c++17", "-O1", "-g1", "-Wno-unknown-pragmas", *SANITIZERS]
    run([compiler, *options, f"-I{SOURCES}", CHECKS / "check_cuda_kernels.cpp", "-o", program])
    return program


def test_kernels_on_the_cpu_agree_with_naive_solutions(checks):
    lines = run([checks]).stdout.splitlines()
    assert re.fullmatch(r"composition: \d{2,} agree", lines[0])
    assert {f"linking of {size}" for size in (1, 2, 3, 8, 17, 33, 64)} <= set(lines)
    assert {f"size {size}" for size in (*range(1, 10), 31, 32, 33, 63, 64, 65, 128, 129, 256)} <= set(lines)
    assert re.fullmatch(r"assignment: \d{5,} problems agree", lines[-1])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("diverging", "threads wait in a shuffle, a vote or a barrier for others that never arrive"),
        ("mixed", "threads that should meet are in different calls"),
        ("outside", "heap-buffer-overflow"),
    ],
)
def test_kernel_faults_are_detected(checks, fault, message):
    result = subprocess.run([checks, fault], capture_output=True, text=True)
    assert result.returncode != 0
    assert message in result.stderr


def test_kernels_compile_without_local_memory(tmp_path):
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc on the PATH")
    options = ["-std=c++17", "-O3", "-DART_KERNELS_WITH_CUDA", "-Xptxas", "-v", "-arch=sm_90"]
    result = run([compiler, *options, "-c", SOURCES / "assignment_cuda.cu", "-o", tmp_path / "assignment_cuda.o"])
    report = result.stdout + result.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_90'", report)
    assert len(kernels) == len(set(kernels)) == 30
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(memory) >= len(kernels)
    assert set(memory) == {("0", "0", "0")}, report
    assert "lmem" not in report
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    assert len(registers) == len(kernels)
    assert max(registers) <= 128
