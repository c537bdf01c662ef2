"""All tests on the GPU of this machine, then every benchmark, in a given time.

    python -m benchmarks.gpu

Writes `benchmarks/results/<device>.json` with the outcome of the tests and all measurements, from which tables and
pictures are drawn. The tests run the kernels compiled, not interpreted, and on the CPU too; those of the kernels come
first. Such a machine often has no network: tests that need a package it lacks are left out, and named in the file.

    python -m benchmarks.gpu --dry-run

rehearses all of it without a GPU: some of the tests, and every benchmark on the CPU, the kernels in Triton's
interpreter, in sizes that mean nothing. It shows that each step runs, so that a GPU loses no minute.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
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

from benchmarks.machine import ROOT, device_name, provenance, slug

#: Modules by name. Their `run_on_gpu`, given the moment (of `time.monotonic`) after which nothing new may begin,
#: returns what goes into the file; where that has "failures", the command fails.
BENCHMARKS = {
    "region_attention": "benchmarks.bench_region_attention",
    "contrast": "benchmarks.bench_contrast",
    "linking": "benchmarks.bench_linking",
    "model": "benchmarks.bench_model",
    "scaling": "benchmarks.bench_scaling",
}

#: What pytest is given, and the share of the whole time at which it must have ended. The whole folder is named in the
#: second, because pytest gives up where a `conftest.py` below a named folder needs a package that is not there.
TESTS: dict[str, tuple[list[str], float]] = {
    "kernels": (["tests/kernels"], 0.45),
    "the rest": (["tests", "--ignore=tests/kernels"], 0.6),
}
#: Of the same, what a rehearsal runs.
REHEARSED_TESTS: dict[str, tuple[list[str], float]] = {
    "kernels": (["tests/kernels", "-k", "kernels_public or kernels_checks"], 0.3),
    "the rest": (["tests", "--ignore=tests/kernels", "-k", "test_package"], 0.5),
}
#: Benchmarks whose kernels are Triton's, and so can be interpreted.
INTERPRETED = ("region_attention", "contrast")
#: Seconds kept for what a benchmark has begun when its time is over.
RESERVE_SECONDS = 40.0
#: More processes than this share one GPU badly.
MOST_PROCESSES = 8
#: Dependencies of `pyproject.toml`, as they are imported, that a machine without a network may lack.
MAY_BE_MISSING = (
    "av", "omegaconf", "open_clip", "pybullet", "pybullet_data", "timm", "tokenizers", "tensorboard", "transformers",
    "wordllama",
)  # fmt: skip
#: What would have the kernels interpreted, or others run in their place.
FOREIGN_VARIABLES = ("TRITON_INTERPRET", "ART_KERNELS_BACKEND")


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0 where all tests passed and every benchmark ran, 1 where not, 2 where there is no GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=_minutes, help="for everything together (default: 8, of a dry run 5)")
    parser.add_argument("--dry-run", action="store_true", help="rehearse every step without a GPU; measures nothing")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="instead of benchmarks/results/<device>.json")
    options = parser.parse_args(arguments)
    if options.dry_run:
        return rehearse(60 * (options.minutes or 5.0), options.out)
    if not torch.cuda.is_available():
        print(
            f"benchmarks.gpu: torch {torch.__version__} sees no CUDA device here, so nothing was run.", file=sys.stderr
        )
        print("On a CPU: python benchmarks/bench_region_attention.py --device cpu", file=sys.stderr)
        print("Whether all is ready for a GPU: python -m benchmarks.gpu --dry-run", file=sys.stderr)
        return 2
    for name in FOREIGN_VARIABLES:
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
    write(result, path)
    print_summary(result)
    print(f"wrote {path}")
    return 1 if failed(result) else 0


def rehearse(seconds: float, out: Path | None) -> int:
    """Every step on the CPU, in sizes that mean nothing; the result goes to ``out`` alone.

    Returns:
        0 where each step ran, else 1.
    """
    if importlib.util.find_spec("triton") is None:
        print("benchmarks.gpu: a dry run needs Triton, whose interpreter runs the kernels", file=sys.stderr)
        return 1
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    start = time.monotonic()
    tests = run_all_tests(start, seconds, REHEARSED_TESTS)
    result: dict[str, Any] = {**provenance(torch.device("cpu")), "rehearsal": True, "tests": tests}
    result["benchmarks"] = run_benchmarks(start + seconds, rehearsal=True)
    result["seconds"] = time.monotonic() - start
    with tempfile.TemporaryDirectory() as scratch:
        write(result, out or Path(scratch) / "rehearsal.json")
    print_summary(result)
    ready = not failed(result) and result["seconds"] <= seconds
    print("a rehearsal: each step ran, nothing was measured" if ready else "a rehearsal: NOT ready for a GPU")
    return 0 if ready else 1


def write(result: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def run_all_tests(start: float, seconds: float, tests: dict[str, tuple[list[str], float]]) -> dict[str, Any]:
    """What :func:`run_tests` says of each kind of tests, in the order in which they are given."""
    found = {}
    for name, (arguments, share) in tests.items():
        print(f"\n== tests: {name}", flush=True)
        found[name] = run_tests(start + share * seconds - time.monotonic(), arguments)
    return found


def run_tests(limit_seconds: float, arguments: Sequence[str]) -> dict[str, Any]:
    """Run pytest in a process of its own, whose output goes where this one's does; in several where xdist is there.

    Returns:
        "outcome" ("passed", "failed" or "out of time"), "seconds", the number of tests "run", "failed" and "skipped",
        "failures", the names of those that failed, and "left_out": by name, the package that a test or a file of tests
        needs and that is not there. Out of time there are no numbers.
    """
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command += [
        "-o",
        "junit_logging=system-out",
        "-o",
        "junit_log_passing_tests=false",
    ]  # what a process of a test said
    if importlib.util.find_spec("xdist") is not None:
        command += [f"--numprocesses={min(os.cpu_count() or 1, MOST_PROCESSES)}", "--dist=worksteal"]
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
    # pytest ends with 1 where a test failed, which one that was left out did too; with more where it did not run them.
    passed = code in (0, 1) and bool(counts.get("run")) and not counts["failures"]
    return {"outcome": "passed" if passed else "failed", "seconds": time.monotonic() - start, **counts}


def read_report(path: Path) -> dict[str, Any]:
    """The numbers, and the names of tests that failed or were left out, in a JUnit report."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    total = {kind: sum(int(suite.get(kind, 0)) for suite in suites) for kind in ("tests", "skipped")}
    failures, left_out = [], {}
    for test in (test for suite in suites for test in suite.iter("testcase")):
        if test.find("failure") is None and test.find("error") is None:
            continue
        name = "::".join(filter(None, (test.get("classname"), test.get("name"))))
        lacking = lacking_package("".join([*test.itertext(), *(part.get("message", "") for part in test)]))
        if lacking is None:
            failures.append(name)
        else:
            left_out[name] = f"needs {lacking}, which is not installed"
    return {
        "run": total["tests"] - total["skipped"] - len(left_out),
        "failed": len(failures),
        "skipped": total["skipped"],
        "failures": failures,
        "left_out": left_out,
    }


def lacking_package(text: str) -> str | None:
    """The package for want of which a test ended with this text; None where it ended for another reason."""
    for name in re.findall(r"No module named '(\w+)", text):
        if name in MAY_BE_MISSING and not _is_installed(name):
            return name
    return None


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def run_benchmarks(deadline: float, *, rehearsal: bool = False) -> dict[str, Any]:
    """What each benchmark returns, by name; of one that broke, what broke it."""
    results: dict[str, Any] = {}
    for name, module in BENCHMARKS.items():
        print(f"\n== {name}", flush=True)
        if rehearsal:
            os.environ["ART_KERNELS_BACKEND"] = "triton" if name in INTERPRETED else ""  # empty: none is asked for
        try:
            results[name] = importlib.import_module(module).run_on_gpu(deadline, rehearsal=rehearsal)
        except Exception as error:
            traceback.print_exc()
            results[name] = _broken(error)
    return results


def _broken(error: Exception) -> dict[str, Any]:
    lacking = lacking_package(str(error)) if isinstance(error, ModuleNotFoundError) else None
    if lacking is not None:
        return {"records": [], "left_out": [{"reason": f"needs {lacking}, which is not installed"}], "failures": []}
    return {"failures": [{"error": f"{type(error).__name__}: {error}"}]}


def failed(result: dict[str, Any]) -> bool:
    """Whether anything is not as it should be."""
    broken = any(benchmark["failures"] for benchmark in result["benchmarks"].values())
    return broken or any(tests["outcome"] != "passed" for tests in result["tests"].values())


def print_summary(result: dict[str, Any]) -> None:
    """A few lines at the end."""
    print(f"\n== {result['machine']['device']}, {result['seconds']:.0f} s")
    for kind, tests in result["tests"].items():
        counts = [f"{tests[name]} {name}" for name in ("run", "failed", "skipped") if name in tests]
        left_out = tests.get("left_out", {})
        if left_out:
            counts.append(f"{len(left_out)} left out ({'; '.join(sorted(set(left_out.values())))})")
        print(f"tests, {kind}: {tests['outcome']} in {tests['seconds']:.0f} s: {', '.join(counts) or 'no numbers'}")
        for name in tests.get("failures", []):
            print(f"  {name}")
    for name, benchmark in result["benchmarks"].items():
        numbers = {kind: len(benchmark.get(kind, [])) for kind in ("records", "left_out", "failures")}
        print(
            f"{name}: {numbers['records']} measurements, {numbers['left_out']} left out, {numbers['failures']} failed"
        )
        for reason in sorted({entry["reason"] for entry in benchmark.get("left_out", []) if "reason" in entry}):
            print(f"  left out: {reason}")


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
