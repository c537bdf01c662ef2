"""The C++ code for the CPU, built without torch and run with address and undefined-behavior sanitizers."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
#: The instruction sets of csrc/CMakeLists.txt.
TARGETS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    TARGETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    TARGETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]


@pytest.mark.slow
def test_agrees_with_naive_solutions_under_sanitizers(tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: neither g++ nor clang++ is on the PATH")
    common = [compiler, "-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Wno-psabi", *SANITIZERS, "-I", "csrc"]
    if len(TARGETS) > 1:
        common.append("-DART_KERNELS_X86_TARGETS")
    sources = ["csrc/assignment_cpu.cpp", "csrc/linking_cpu.cpp", "tests/csrc/check_cpu.cpp"]
    jobs = {Path(source).stem: [source] for source in sources}
    jobs |= {name: ["csrc/target.cpp", f"-DART_TARGET={name}", *flags] for name, flags in TARGETS.items()}
    for name, arguments in jobs.items():
        subprocess.run([*common, "-c", *arguments, "-o", tmp_path / f"{name}.o"], cwd=ROOT, check=True)
    program = tmp_path / "check_cpu"
    subprocess.run([*common, *(tmp_path / f"{name}.o" for name in jobs), "-pthread", "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    lines = run.stdout.splitlines()
    assert lines[0] == "portable" and lines[-1] == "threads agree"
    tested = sum(line in TARGETS for line in lines)
    assert sum(re.fullmatch(r"assignment: \d{5,} problems agree", line) is not None for line in lines) == tested
    assert sum(re.fullmatch(r"linking: \d{3,} films agree", line) is not None for line in lines) == tested
