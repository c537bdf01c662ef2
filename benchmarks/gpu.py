"""The tests of the kernels on the GPU of this machine, then every benchmark, in a given time.

    python -m benchmarks.gpu

Writes `benchmarks/results/<device>.json` with the outcome of the tests and all measurements, from which tables and
pictures are drawn. The tests run the kernels compiled, not interpreted, and on the CPU too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks import bench_contrast, bench_linking, bench_model, bench_region_attention
from benchmarks.machine import ROOT, device_name, provenance, slug

#: By name: given the moment (of `time.monotonic`) after which nothing new may begin, a benchmark returns what goes into
#: the file; where that has "failures", the command fails.
BENCHMARKS: dict[str, Callable[[float], dict[str, Any]]] = {
    "region_attention": bench_region_attention.run_on_gpu,
    "contrast": bench_contrast.run_on_gpu,
    "linking": bench_linking.run_on_gpu,
    "model": bench_model.run_on_gpu,
}

#: Share of the time that the tests may take, and seconds kept for what a benchmark has begun when its time is over.
TEST_SHARE, RESERVE_SECONDS = 0.55, 40.0
#: What would have the kernels interpreted, or others run in their place.
FOREIGN_VARIABLES = ("TRITON_INTERPRET", "ART_KERNELS_BACKEND")


def main(arguments: list[str] | None = None) -> int:
    """The command.

    Returns:
        0 where all tests passed and every benchmark ran, 1 where not, 2 where there is no GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="for everything together (default: 8)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="instead of benchmarks/results/<device>.json")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"benchmarks.gpu: torch {torch.__version__} sees no CUDA device here, so nothing was run.", file=sys.stderr
        )
        print("On a CPU: python benchmarks/bench_region_attention.py --device cpu", file=sys.stderr)
        return 2
    for name in FOREIGN_VARIABLES:
        if os.environ.get(name):
            parser.error(
                f"the environment variable {name} is set to {os.environ[name]!r}: unset it to test the kernels"
            )
    start = time.monotonic()
    seconds = 60 * options.minutes
    device = torch.device("cuda")
    result: dict[str, Any] = {**provenance(device), "tests": run_tests(TEST_SHARE * seconds)}
    result["benchmarks"] = run_benchmarks(start + seconds - RESERVE_SECONDS)
    result["seconds"] = time.monotonic() - start
    path = options.out or ROOT / "benchmarks" / "results" / f"{slug(device_name(device))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print_summary(result, path)
    return 1 if failed(result) else 0


def run_tests(limit_seconds: float, folder: str = "tests/kernels") -> dict[str, Any]:
    """Run the tests of a folder in a process of their own, whose output goes where this one's does.

    Returns:
        "outcome" ("passed", "failed" or "out of time"), "seconds", the number of tests "run", "failed" and "skipped",
        and "failures", their names. Out of time there are no numbers.
    """
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", f"--junitxml={report}", folder]
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit_seconds).returncode
        except subprocess.TimeoutExpired:
            return {"outcome": "out of time", "seconds": time.monotonic() - start}
        counts = read_report(report) if report.exists() else {}
    return {"outcome": "passed" if code == 0 else "failed", "seconds": time.monotonic() - start, **counts}


def read_report(path: Path) -> dict[str, Any]:
    """The numbers, and the names of failed tests, in a JUnit report."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))

    def total(*kinds: str) -> int:
        return sum(int(suite.get(kind, 0)) for suite in suites for kind in kinds)

    failures = [
        f"{test.get('classname')}::{test.get('name')}"
        for suite in suites
        for test in suite.iter("testcase")
        if test.find("failure") is not None or test.find("error") is not None
    ]
    return {
        "run": total("tests") - total("skipped"),
        "failed": total("failures", "errors"),
        "skipped": total("skipped"),
        "failures": failures,
    }


def run_benchmarks(deadline: float) -> dict[str, Any]:
    """What each benchmark returns, by name; of one that broke, what broke it."""
    results: dict[str, Any] = {}
    for name, benchmark in BENCHMARKS.items():
        print(f"\n== {name}", flush=True)
        try:
            results[name] = benchmark(deadline)
        except Exception as error:
            traceback.print_exc()
            results[name] = {"failures": [{"error": f"{type(error).__name__}: {error}"}]}
    return results


def failed(result: dict[str, Any]) -> bool:
    """Whether anything is not as it should be."""
    broken = any(benchmark["failures"] for benchmark in result["benchmarks"].values())
    return broken or result["tests"]["outcome"] != "passed"


def print_summary(result: dict[str, Any], path: Path) -> None:
    """A few lines at the end."""
    tests = result["tests"]
    counts = ", ".join(f"{tests[name]} {name}" for name in ("run", "failed", "skipped") if name in tests)
    print(f"\n== {result['machine']['device']}, {result['seconds']:.0f} s")
    print(f"tests: {tests['outcome']} in {tests['seconds']:.0f} s{': ' if counts else ''}{counts}")
    for name in tests.get("failures", []):
        print(f"  {name}")
    for name, benchmark in result["benchmarks"].items():
        numbers = {kind: len(benchmark.get(kind, [])) for kind in ("records", "left_out", "failures")}
        print(
            f"{name}: {numbers['records']} measurements, {numbers['left_out']} left out, {numbers['failures']} failed"
        )
    print(f"wrote {path}")


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
