"""Run all tests on the GPU of this machine, then every benchmark, within a time limit.

    python -m benchmarks.gpu

Writes `benchmarks/results/<device>.json` with the outcome of the tests and all measurements, from which tables and
charts are made. The tests run the kernels compiled, not interpreted, and also on the CPU; those of the kernels come
first. Such a machine often has no network: tests that require a missing package are skipped and listed in the file.

    python -m benchmarks.gpu --dry-run

runs every step without a GPU: some of the tests, and every benchmark on the CPU with minimal sizes, the kernels in
Triton's interpreter. It verifies that each step works, so that no GPU time is lost.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.common.results import ROOT, device_name, provenance, save, slug

#: Modules by name. Their `run_on_gpu(deadline, *, quick)` starts no new case after `deadline` (of `time.monotonic`) and
#: returns a result; if it has "failures", the command fails.
BENCHMARKS = {
    "region_attention": "benchmarks.bench_region_attention",
    "contrast": "benchmarks.bench_contrast",
    "linking": "benchmarks.bench_linking",
    "model": "benchmarks.bench_model",
}

_KERNEL_TESTS = ["tests/ops", "tests/core"]
_OTHER_TESTS = ["tests", *(f"--ignore={directory}" for directory in _KERNEL_TESTS)]
#: Arguments of pytest, and the fraction of the total time by which it must have ended. The second run names the whole
#: directory, because pytest aborts if a `conftest.py` below a named directory requires a missing package.
TESTS: dict[str, tuple[list[str], float]] = {
    "kernels": (_KERNEL_TESTS, 0.45),
    "the rest": (_OTHER_TESTS, 0.6),
}
#: The tests of a dry run.
DRY_RUN_TESTS: dict[str, tuple[list[str], float]] = {
    "kernels": ([*_KERNEL_TESTS, "-k", "test_checks or test_backends"], 0.3),
    "the rest": ([*_OTHER_TESTS, "-k", "test_package"], 0.5),
}
#: Benchmarks whose kernels are Triton's and can be interpreted.
INTERPRETED = ("region_attention", "contrast")
#: Seconds reserved for the case that is running when the time of the benchmarks is over.
RESERVE_SECONDS = 40.0
#: More processes do not share one GPU well.
MAX_PROCESSES = 8
#: Dependencies in `pyproject.toml`, by import name, that a machine without a network may lack.
OPTIONAL_PACKAGES = (
    "av", "omegaconf", "open_clip", "pybullet", "pybullet_data", "timm", "tokenizers", "tensorboard", "transformers",
    "wordllama",
)  # fmt: skip
#: Variables that would make the tests interpret the kernels or use another backend.
KERNEL_VARIABLES = ("TRITON_INTERPRET", "ART_KERNELS_BACKEND")
#: Unlike `python -m pytest`, finds an installed `art_kernels` before the sources in the current directory.
_RUN_PYTEST = "import os, sys; sys.path[:] = [*sys.path[1:], os.getcwd()]; import pytest; sys.exit(pytest.main())"


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 if all tests passed and every benchmark ran, 1 if not, 2 if there is no GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=_minutes, help="total time (default: 8; 5 for a dry run)")
    parser.add_argument("--dry-run", action="store_true", help="run every step without a GPU; measures nothing")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="instead of benchmarks/results/<device>.json")
    options = parser.parse_args(arguments)
    if options.dry_run:
        return dry_run(60 * (options.minutes or 5.0), options.out)
    if not torch.cuda.is_available():
        print(f"benchmarks.gpu: torch {torch.__version__} finds no CUDA device, so nothing was run.", file=sys.stderr)
        print("On a CPU: python benchmarks/bench_region_attention.py --device cpu", file=sys.stderr)
        print("To check that everything is ready for a GPU: python -m benchmarks.gpu --dry-run", file=sys.stderr)
        return 2
    for name in KERNEL_VARIABLES:
        if os.environ.get(name):
            parser.error(
                f"the environment variable {name} is set to {os.environ[name]!r}: unset it to test the kernels"
            )
    start = time.monotonic()
    seconds = 60 * (options.minutes or 8.0)
    device = torch.device("cuda")
    result: dict[str, Any] = {**provenance(device), "tests": run_all_tests(start, seconds, TESTS)}
    result["benchmarks"] = run_benchmarks(start + seconds - RESERVE_SECONDS)
    result["seconds"] = time.monotonic() - start
    path = options.out or ROOT / "benchmarks" / "results" / f"{slug(device_name(device))}.json"
    save(result, path)
    print_summary(result)
    print(f"wrote {path}")
    return 1 if failed(result) else 0


def dry_run(seconds: float, out: Path | None) -> int:
    """Run every step on the CPU with minimal sizes; the result is written to ``out`` only.

    Returns:
        0 if every step ran, else 1.
    """
    if importlib.util.find_spec("triton") is None:
        print("benchmarks.gpu: a dry run requires Triton, whose interpreter runs the kernels", file=sys.stderr)
        return 1
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    start = time.monotonic()
    tests = run_all_tests(start, seconds, DRY_RUN_TESTS)
    result: dict[str, Any] = {**provenance(torch.device("cpu")), "dry_run": True, "tests": tests}
    result["benchmarks"] = run_benchmarks(start + seconds, quick=True)
    result["seconds"] = time.monotonic() - start
    if out is not None:
        save(result, out)
    print_summary(result)
    ready = not failed(result) and result["seconds"] <= seconds
    print("dry run: every step ran, nothing was measured" if ready else "dry run: NOT ready for a GPU")
    return 0 if ready else 1


def run_all_tests(start: float, seconds: float, tests: dict[str, tuple[list[str], float]]) -> dict[str, Any]:
    """Return the output of `run_tests` for each kind of tests, run in the given order."""
    outcomes = {}
    for name, (arguments, fraction) in tests.items():
        print(f"\n== tests: {name}", flush=True)
        outcomes[name] = run_tests(start + fraction * seconds - time.monotonic(), arguments)
    return outcomes


def run_tests(limit_seconds: float, arguments: Sequence[str]) -> dict[str, Any]:
    """Run pytest in a new process with the output of this one, in parallel if pytest-xdist is installed.

    Returns:
        "outcome" ("passed", "failed" or "out of time"); "seconds"; the number of tests "run", "failed" and "skipped";
        "failures", the names of those that failed; "missing_package", by name of a test or test file, the package that
        it requires and that is not installed. There are no numbers if the time was used up.
    """
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_VARIABLES}
    command = [sys.executable, "-c", _RUN_PYTEST, "--quiet", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors"]
    # The output of a test's subprocess may contain the name of the missing package.
    command += ["-o", "junit_logging=system-out", "-o", "junit_log_passing_tests=false"]
    if importlib.util.find_spec("xdist") is not None:
        command += [f"--numprocesses={min(os.cpu_count() or 1, MAX_PROCESSES)}", "--dist=worksteal"]
        environment["OMP_NUM_THREADS"] = "1"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command += [f"--junitxml={report}", *arguments]
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, timeout=max(limit_seconds, 0.0)).returncode
        except subprocess.TimeoutExpired:
            return {"outcome": "out of time", "seconds": time.monotonic() - start}
        counts = read_report(report) if report.exists() else {}
    # pytest exits with 1 if a test failed, including those with a missing package; with more if it could not run them.
    passed = code in (0, 1) and bool(counts.get("run")) and not counts["failures"]
    return {"outcome": "passed" if passed else "failed", "seconds": time.monotonic() - start, **counts}


def read_report(path: Path) -> dict[str, Any]:
    """Return the counts of a JUnit report, and the tests that failed or require a missing package."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    total = {kind: sum(int(suite.get(kind, 0)) for suite in suites) for kind in ("tests", "skipped")}
    failures, missing_package = [], {}
    for test in (test for suite in suites for test in suite.iter("testcase")):
        if test.find("failure") is None and test.find("error") is None:
            continue
        name = "::".join(filter(None, (test.get("classname"), test.get("name"))))
        package = find_missing_package("".join([*test.itertext(), *(part.get("message", "") for part in test)]))
        if package is None:
            failures.append(name)
        else:
            missing_package[name] = f"requires {package}, which is not installed"
    return {
        "run": total["tests"] - total["skipped"] - len(missing_package),
        "failed": len(failures),
        "skipped": total["skipped"],
        "failures": failures,
        "missing_package": missing_package,
    }


def find_missing_package(text: str) -> str | None:
    """Return the optional package whose absence made a test fail with this text; None if it failed otherwise."""
    for name in re.findall(r"No module named '(\w+)", text):
        if name in OPTIONAL_PACKAGES and not _is_installed(name):
            return name
    return None


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def run_benchmarks(deadline: float, *, quick: bool = False) -> dict[str, Any]:
    """Return the result of each benchmark by name; of one that raised, its error."""
    results: dict[str, Any] = {}
    for name, module in BENCHMARKS.items():
        print(f"\n== {name}", flush=True)
        if quick:
            os.environ["ART_KERNELS_BACKEND"] = "triton" if name in INTERPRETED else ""  # empty means unset
        try:
            results[name] = importlib.import_module(module).run_on_gpu(deadline, quick=quick)
        except Exception as error:
            traceback.print_exc()
            results[name] = _result_of_error(error)
    return results


def _result_of_error(error: Exception) -> dict[str, Any]:
    package = find_missing_package(str(error)) if isinstance(error, ModuleNotFoundError) else None
    if package is not None:
        return {"records": [], "skipped": [{"reason": f"requires {package}, which is not installed"}], "failures": []}
    return {"failures": [{"error": f"{type(error).__name__}: {error}"}]}


def failed(result: dict[str, Any]) -> bool:
    """Return whether a test did not pass or a benchmark failed."""
    broken = any(benchmark["failures"] for benchmark in result["benchmarks"].values())
    return broken or any(tests["outcome"] != "passed" for tests in result["tests"].values())


def print_summary(result: dict[str, Any]) -> None:
    """Print a few lines about all tests and benchmarks."""
    print(f"\n== {result['machine']['device']}, {result['seconds']:.0f} s")
    for kind, tests in result["tests"].items():
        counts = [f"{tests[name]} {name}" for name in ("run", "failed", "skipped") if name in tests]
        missing = tests.get("missing_package", {})
        if missing:
            counts.append(f"{len(missing)} with a missing package ({'; '.join(sorted(set(missing.values())))})")
        print(f"tests, {kind}: {tests['outcome']} in {tests['seconds']:.0f} s: {', '.join(counts) or 'no numbers'}")
        for name in tests.get("failures", []):
            print(f"  {name}")
    for name, benchmark in result["benchmarks"].items():
        numbers = {kind: len(benchmark.get(kind, [])) for kind in ("records", "skipped", "failures")}
        print(f"{name}: {numbers['records']} measurements, {numbers['skipped']} skipped, {numbers['failures']} failed")
        for reason in sorted({entry["reason"] for entry in benchmark.get("skipped", []) if "reason" in entry}):
            print(f"  skipped: {reason}")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.0 <= value <= 600.0:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of minutes from 1 to 600")
    return value


if __name__ == "__main__":
    sys.exit(main())
