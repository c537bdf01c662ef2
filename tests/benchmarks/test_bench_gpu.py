"""All tests and benchmarks on a GPU: the report of the tests, missing packages, the dry run."""

import importlib
import json
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu

REPORT = """<testsuites><testsuite errors="2" failures="4" skipped="2" tests="12">
<testcase classname="tests.a" name="good"/><testcase classname="tests.a" name="bad"><failure>no</failure></testcase>
<testcase classname="tests.b" name="ugly"><error>no</error></testcase>
<testcase classname="" name="tests.c"><error message="collection failure">
E No module named 'wordllama.x'</error></testcase>
<testcase classname="tests.d" name="alone"><failure message="No module named 'wordllama'">it ended</failure></testcase>
<testcase classname="tests.d" name="present"><failure message="No module named 'av'">it ended</failure></testcase>
<testcase classname="tests.d" name="ours"><failure message="No module named 'art.oops'">it ended</failure></testcase>
</testsuite></testsuites>"""


def test_without_a_gpu_it_runs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "run_tests", lambda *_: pytest.fail("ran the tests"))
    assert gpu.main([]) == 2
    assert "finds no CUDA device, so nothing was run" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["none", "0", "-3"])
def test_invalid_minutes(minutes, capsys):
    with pytest.raises(SystemExit):
        gpu.main([f"--minutes={minutes}"])
    assert f"'{minutes}', expected a number of minutes from 1 to 600" in capsys.readouterr().err


def test_an_environment_that_interprets_the_kernels_is_rejected(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "TRITON_INTERPRET is set to '1': unset it" in capsys.readouterr().err


def test_report_of_the_tests(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_is_installed", lambda name: name != "wordllama")
    (tmp_path / "report.xml").write_text(REPORT)
    assert gpu.read_report(tmp_path / "report.xml") == {
        "run": 8,
        "failed": 4,
        "skipped": 2,
        "failures": ["tests.a::bad", "tests.b::ugly", "tests.d::present", "tests.d::ours"],
        "missing_package": dict.fromkeys(("tests.c", "tests.d::alone"), "requires wordllama, which is not installed"),
    }


def test_optional_packages_are_imported_by_the_model():
    sources = "".join(path.read_text() for path in (gpu.ROOT / "art").rglob("*.py"))
    assert [name for name in gpu.OPTIONAL_PACKAGES if not re.search(rf"\b{name}\b", sources)] == []
    assert gpu._is_installed("torch") and not gpu._is_installed("no_such_package_at_all")


CHILD = """def test_of_a_process():
    print("No module named 'a_package_of_nobody'")
    assert 1 == 0
"""


def write_tests(directory, **files):
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / f"test_{name}.py").write_text(text)
    return [str(directory)]


ENVIRONMENT = """import os, sys, sysconfig
def test_variables(): assert 'TRITON_INTERPRET' not in os.environ
def test_installed_packages_come_first():
    assert sys.path.index(sysconfig.get_path("purelib")) < sys.path.index(os.getcwd())
def test_wrong(): assert False
"""


@pytest.mark.slow
def test_tests_run_without_the_variables_of_the_kernels_and_prefer_installed_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = gpu.run_tests(60.0, write_tests(tmp_path / "a", environment=ENVIRONMENT))
    assert (found["outcome"], found["run"], found["failed"], found["skipped"]) == ("failed", 3, 1, 0)
    assert len(found["failures"]) == 1 and found["failures"][0].endswith("test_wrong")
    assert gpu.run_tests(0.01, [str(tmp_path / "a")])["outcome"] == "out of time"


@pytest.mark.slow
def test_a_missing_package_excuses_only_the_tests_that_require_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "OPTIONAL_PACKAGES", ("a_package_of_nobody",))
    lacking = write_tests(
        tmp_path / "lacking", good="def test_good(): pass\n", needs="import a_package_of_nobody.part\n", child=CHILD
    )
    found = gpu.run_tests(60.0, lacking)
    assert (found["outcome"], found["run"], found["failed"]) == ("passed", 1, 0)
    assert list(found["missing_package"].values()) == ["requires a_package_of_nobody, which is not installed"] * 2
    found = gpu.run_tests(
        60.0, write_tests(tmp_path / "broken", good="def test_good(): pass\n", wrong="import no_such\n")
    )
    assert (found["outcome"], found["failed"], found["missing_package"]) == ("failed", 1, {})
    found = gpu.run_tests(60.0, write_tests(tmp_path / "nothing", needs="import a_package_of_nobody\n"))
    assert found["outcome"] == "failed" and found["run"] == 0


def test_each_benchmark_can_be_run_on_a_gpu():
    assert [
        name for name, module in gpu.BENCHMARKS.items() if not callable(importlib.import_module(module).run_on_gpu)
    ] == []


def test_every_test_runs_and_those_of_the_kernels_first():
    kernels, rest = (arguments for arguments, _ in gpu.TESTS.values())
    assert kernels == ["tests/ops", "tests/core"] and rest == ["tests", "--ignore=tests/ops", "--ignore=tests/core"]
    assert all((gpu.ROOT / directory).is_dir() for directory in kernels)


def test_everything_is_written_to_one_file(tmp_path, monkeypatch, capsys):
    def broken(deadline, *, quick):
        assert not quick
        raise RuntimeError("out of memory")

    measured = {"records": [1, 2], "skipped": [], "failures": []}
    benchmarks = {"good": "good_benchmark", "broken": "broken_benchmark", "lacking": "wordllama_of_nobody"}
    for name, run in (("good", lambda deadline, *, quick: measured), ("broken", broken)):
        monkeypatch.setitem(sys.modules, benchmarks[name], SimpleNamespace(run_on_gpu=run))
    monkeypatch.setattr(gpu, "OPTIONAL_PACKAGES", ("wordllama_of_nobody",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in gpu.KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(gpu, "device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(gpu, "provenance", lambda device: {"machine": {"device": "NVIDIA H200"}})
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    outcomes = {
        "tests/ops": {"outcome": "passed", "seconds": 1.0, "run": 3, "failed": 0},
        "tests": {
            "outcome": "passed",
            "seconds": 2.0,
            "run": 5,
            "failed": 0,
            "missing_package": {"tests.a": "requires av"},
        },
    }
    monkeypatch.setattr(gpu, "run_tests", lambda limit, arguments: outcomes[arguments[0]])
    assert gpu.main([]) == 1
    result = json.loads((tmp_path / "benchmarks" / "results" / "nvidia-h200.json").read_text())
    assert result["benchmarks"]["good"]["records"] == [1, 2]
    assert result["benchmarks"]["broken"]["failures"] == [{"error": "RuntimeError: out of memory"}]
    summary = capsys.readouterr().out
    assert "tests, kernels: passed in 1 s: 3 run, 0 failed" in summary
    assert "tests, the rest: passed in 2 s: 5 run, 0 failed, 1 with a missing package (requires av)" in summary
    assert "good: 2 measurements, 0 skipped, 0 failed" in summary
    assert "lacking: 0 measurements, 1 skipped, 0 failed" in summary
    assert "  skipped: requires wordllama_of_nobody, which is not installed" in summary
    del benchmarks["broken"]
    assert gpu.main([]) == 0
    outcomes["tests"]["outcome"] = "out of time"
    assert gpu.main([]) == 1


def test_a_dry_run_runs_every_step_without_a_gpu(tmp_path, monkeypatch, capsys):
    called = []

    def step(deadline, *, quick):
        called.append((quick, os.environ["TRITON_INTERPRET"], os.environ["ART_KERNELS_BACKEND"]))
        return {"records": [1], "skipped": [], "failures": failures}

    failures = []
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("ART_KERNELS_BACKEND", "torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "BENCHMARKS", {"contrast": "a_step", "linking": "a_step"})
    monkeypatch.setitem(sys.modules, "a_step", SimpleNamespace(run_on_gpu=step))
    tests = {"outcome": "passed", "seconds": 1.0, "run": 3, "failed": 0}
    monkeypatch.setattr(gpu, "run_tests", lambda limit, arguments: tests)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.main(["--dry-run"]) == 0
    assert called == [(True, "1", "triton"), (True, "1", "")]
    assert "dry run: every step ran, nothing was measured" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # in particular no results file
    assert gpu.main(["--dry-run", "--out", str(tmp_path / "dry_run.json")]) == 0
    assert json.loads((tmp_path / "dry_run.json").read_text())["dry_run"] is True
    failures.append({"error": "a kernel"})
    assert gpu.main(["--dry-run"]) == 1
    assert "NOT ready" in capsys.readouterr().out


def test_the_tests_of_a_dry_run_exist():
    for arguments, _ in gpu.DRY_RUN_TESTS.values():
        directories = [argument for argument in arguments[: arguments.index("-k")] if not argument.startswith("-")]
        for name in arguments[arguments.index("-k") + 1].split(" or "):
            assert any(list(gpu.ROOT.glob(f"{directory}/**/*{name}*.py")) for directory in directories), name
