"""The C++ solver alone, with address and undefined-behaviour sanitizers."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Instruction sets, as csrc/CMakeLists.txt has them.
TARGETS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    TARGETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    TARGETS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]


def test_the_solver_is_exact_and_clean_under_sanitizers(tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    common = [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    common += ["-Wall", "-Wextra", "-Wno-psabi", "-I", str(ROOT / "csrc")]
    if len(TARGETS) > 1:
        common.append("-DART_KERNELS_X86_TARGETS")
    jobs = {name: ["csrc/assignment_target.cpp", f"-DART_TARGET={name}", *flags] for name, flags in TARGETS.items()}
    jobs |= {"cpu": ["csrc/assignment_cpu.cpp"], "check": ["tests/csrc/check_assignment.cpp"]}
    objects = []
    for name, arguments in jobs.items():
        objects.append(str(tmp_path / f"{name}.o"))
        subprocess.run([*common, "-c", *arguments, "-o", objects[-1]], cwd=ROOT, check=True)
    program = tmp_path / "check"
    subprocess.run([*common, *objects, "-pthread", "-o", str(program)], check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split(maxsplit=1)[1].startswith("batches matched as they should be")
