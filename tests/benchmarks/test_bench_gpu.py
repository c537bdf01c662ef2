import json

import pytest
import torch

from benchmarks import gpu

REPORT = """<testsuites><testsuite errors="1" failures="1" skipped="2" tests="9">
<testcase classname="tests.a" name="good"/><testcase classname="tests.a" name="bad"><failure>no</failure></testcase>
<testcase classname="tests.b" name="ugly"><error>no</error></testcase></testsuite></testsuites>"""


def test_without_a_gpu_it_says_so_and_runs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "run_tests", lambda limit: pytest.fail("ran the tests"))
    assert gpu.main([]) == 2
    assert "sees no CUDA device here, so nothing was run" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["none", "0", "-3"])
def test_bad_minutes(minutes, capsys):
    with pytest.raises(SystemExit):
        gpu.main([f"--minutes={minutes}"])
    assert f"'{minutes}', expected a number of minutes from 1 to 600" in capsys.readouterr().err


def test_refuses_an_environment_in_which_the_kernels_are_not_compiled(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "TRITON_INTERPRET is set to '1': unset it" in capsys.readouterr().err


def test_report_of_the_tests(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    found = gpu.read_report(tmp_path / "report.xml")
    assert found == {"run": 7, "failed": 2, "skipped": 2, "failures": ["tests.a::bad", "tests.b::ugly"]}


def test_tests_run_without_foreign_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "test_environment.py").write_text(
        "import os, time\n"
        "def test_clean(): assert 'TRITON_INTERPRET' not in os.environ\n"
        "def test_wrong(): assert False\n"
    )
    found = gpu.run_tests(60.0, str(tmp_path))
    assert (found["outcome"], found["run"], found["failed"], found["skipped"]) == ("failed", 2, 1, 0)
    assert len(found["failures"]) == 1 and found["failures"][0].endswith("test_wrong")
    assert gpu.run_tests(0.01, str(tmp_path))["outcome"] == "out of time"


def test_everything_goes_into_one_file(tmp_path, monkeypatch, capsys):
    def broken(deadline):
        raise RuntimeError("out of memory")

    benchmarks = {"good": lambda deadline: {"records": [1, 2], "left_out": [], "failures": []}, "broken": broken}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in gpu.FOREIGN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(gpu, "device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(gpu, "provenance", lambda device: {"machine": {"device": "NVIDIA H200"}})
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "run_tests", lambda limit: {"outcome": "passed", "seconds": 1.0, "run": 3, "failed": 0})
    assert gpu.main([]) == 1
    result = json.loads((tmp_path / "benchmarks" / "results" / "nvidia-h200.json").read_text())
    assert result["benchmarks"]["good"]["records"] == [1, 2]
    assert result["benchmarks"]["broken"]["failures"] == [{"error": "RuntimeError: out of memory"}]
    summary = capsys.readouterr().out
    assert "tests: passed in 1 s: 3 run, 0 failed" in summary
    assert "good: 2 measurements, 0 left out, 0 failed" in summary
    del benchmarks["broken"]
    assert gpu.main([]) == 0
