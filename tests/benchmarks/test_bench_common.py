"""What all benchmarks share: timing, memory, comparisons, the results file, tables, the command line, imports."""

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks.common import results
from benchmarks.common import timing as timing_module
from benchmarks.common.measure import (
    OURS,
    TO_HOST,
    Limits,
    compare_times,
    peak_extra_bytes,
    peak_of_running_sum,
    require_accurate,
)
from benchmarks.common.results import OUT_OF_TIME, Results, print_table
from benchmarks.common.timing import (
    DEFAULT,
    QUICK,
    CoreStopwatch,
    CpuStopwatch,
    Rounds,
    Timing,
    TimingConfig,
    summarize,
    time_calls,
    time_rounds,
)

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def require_device(device):
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


def test_median_and_percentiles():
    timing = summarize([0.004, 0.001, 0.003, 0.005, 0.002], host_seconds=0.25)
    assert (timing.median_ms, timing.p20_ms, timing.p80_ms) == pytest.approx((3.0, 1.8, 4.2))
    assert (timing.repetitions, timing.host_ms) == (5, 250.0)


def test_ratios_are_computed_round_by_round():
    rounds = Rounds({"a": [1.0, 2.0, 4.0], "b": [0.5, 4.0, 2.0]}, {"a": None, "b": None})
    assert rounds.ratios("b", "a")["ratio"] == 0.5
    assert rounds.ratios("a", "a") == {"ratio": 1.0, "ratio_p20": 1.0, "ratio_p80": 1.0}


def test_calls_are_interleaved_and_every_other_round_is_reversed():
    ran = []
    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    timings = time_calls(calls, CPU, TimingConfig(min_rounds=3, min_seconds=0.0, max_seconds=0.0, warmups=2))
    assert "".join(ran) == "aabbcc" + "abc" + "cba" + "abc"
    assert [timings[name].repetitions for name in "abc"] == [3, 3, 3]
    assert time_calls({}, CPU, QUICK) == {}


def test_rounds_continue_until_each_call_or_all_calls_had_their_time(monkeypatch):
    clock = [0.0]

    class Stopwatch(CpuStopwatch):
        def seconds(self, name, call):
            took = {"slow": 0.01, "fast": 0.001}[name]
            clock[0] += took
            return took

    monkeypatch.setattr(timing_module.time, "perf_counter", lambda: clock[0])
    calls = {"slow": lambda: None, "fast": lambda: None}
    config = TimingConfig(min_rounds=2, min_seconds=0.0035, max_seconds=10.0, warmups=0)
    timings = time_rounds(calls, CPU, config, Stopwatch()).timings()
    assert timings["fast"].repetitions == 4 and timings["slow"].median_ms == pytest.approx(10)
    config = TimingConfig(min_rounds=2, min_seconds=10.0, max_seconds=0.05, warmups=0)
    assert time_rounds(calls, CPU, config, Stopwatch()).timings()["fast"].repetitions == 5


def test_stopwatches_of_wall_clock_and_cpu_time():
    assert CpuStopwatch().seconds("sleep", lambda: time.sleep(0.01)) >= 0.01
    assert CoreStopwatch().seconds("sleep", lambda: time.sleep(0.1)) < 0.1

    def busy():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    assert CoreStopwatch().seconds("busy", busy) >= 0.02


def test_releasing_the_result_is_not_timed():
    released = []

    class Result:
        def __del__(self):
            released.append(clock())

    def clock():
        return next(ticks)

    ticks = iter(range(10))
    stopwatch = CpuStopwatch()
    stopwatch.clock = clock
    assert stopwatch.seconds("call", Result) == 1 and released == [2]


def test_quick_repeats_less_often():
    for config in DEFAULT.values():
        assert QUICK.min_rounds < config.min_rounds and QUICK.max_seconds < config.max_seconds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_time_on_the_device():
    matrix = torch.randn(4096, 4096, device="cuda")
    calls = {"one": lambda: matrix @ matrix, "two": lambda: matrix @ matrix @ matrix}
    timings = time_calls(calls, torch.device("cuda"), DEFAULT["cuda"])
    assert timings["two"].median_ms == pytest.approx(2 * timings["one"].median_ms, rel=0.2)
    assert 0 < timings["one"].host_ms < timings["one"].median_ms


def test_peak_of_running_sum():
    assert peak_of_running_sum([]) == 0
    assert peak_of_running_sum([4, 8, -8, 6, -10]) == 12
    assert peak_of_running_sum([-4, 3]) == 0  # releases an earlier allocation


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_peak_of_a_known_pattern(device):
    require_device(device)

    def mebibytes(count):
        return torch.empty(count << 20, dtype=torch.uint8, device=device)

    def call():
        kept = mebibytes(4)
        dropped = mebibytes(16)
        del dropped
        return kept, mebibytes(8)

    assert peak_extra_bytes(call, device) == 20 << 20


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_peak_includes_allocations_inside_an_operator(device):
    require_device(device)
    values = torch.randn(64, 1 << 14, device=device)
    assert values.logsumexp(-1).nbytes == 256
    assert peak_extra_bytes(lambda: values.logsumexp(-1), device) >= values.nbytes  # the exponentials


def test_peak_includes_the_backward_pass():
    weight = torch.randn(256, 256, requires_grad=True)
    product = (weight @ weight).sum()
    assert peak_extra_bytes(lambda: torch.autograd.grad(product, weight), CPU) >= weight.nbytes


def test_a_time_is_compared_with_the_slower_of_copying_and_computing():
    limits = Limits(copy_gbs=10.0, matrix_tflops={"float32": 2.0})
    timing = Timing(1.0, 1.0, 1.0, 2, None)
    copying = limits.compare(timing, 5_000_000, 100_000_000, "float32")
    assert (copying["achieved_gbs"], copying["achieved_tflops"]) == pytest.approx((5.0, 0.1))
    assert (copying["copy_fraction"], copying["limit_fraction"]) == pytest.approx((0.5, 0.5))
    computing = limits.compare(timing, 1_000_000, 1_600_000_000, "float32")
    assert (computing["copy_fraction"], computing["limit_fraction"]) == pytest.approx((0.1, 0.8))


def test_only_our_providers_are_compared_with_the_best_alternative():
    peer, replayed = "peer", f"{OURS}, CUDA graph"
    times = {"scipy": 90.0, peer: 10.0, OURS: 2.0, peer + TO_HOST: 12.0, OURS + TO_HOST: 3.0}
    expected = {"speedup_over_baseline": 45.0, "best_other": peer, "speedup_over_best_other": 5.0}
    assert compare_times(OURS, times) == expected
    assert compare_times(OURS + TO_HOST, times)["best_other"] == peer + TO_HOST
    assert compare_times(OURS + TO_HOST, times)["speedup_over_best_other"] == 4.0
    expected = {"speedup_over_baseline": 9.0, "best_other": None, "speedup_over_best_other": None}
    assert compare_times(peer, times) == expected
    assert compare_times(replayed, {"loop": 8.0, OURS: 2.0, replayed: 1.0})["best_other"] == "loop"
    assert compare_times(OURS, {OURS: 1.0})["best_other"] is None
    assert compare_times("art", {"decord": 4.0, "art, other": 1.0, "art": 2.0}, ours="art")["best_other"] == "decord"


def test_inaccurate_and_nan_errors_are_rejected():
    require_accurate({"loss": 20e-7}, {"loss": 1e-7})
    require_accurate({"loss": 1e-5}, {"loss": 0.0}, floor=1e-6)
    with pytest.raises(ArithmeticError, match=r"the error of loss is 2\.1e-06 .* expected at most 20 times"):
        require_accurate({"loss": 21e-7}, {"loss": 1e-7})
    with pytest.raises(ArithmeticError, match="the error of grad_0 is nan"):
        require_accurate({"grad_0": float("nan")}, {"grad_0": 1.0})


def test_a_failed_case_does_not_end_the_run():
    reported = []
    found = Results("mine", CPU, TimingConfig(2, 0, 0, 0), QUICK, report=reported.append)
    with found.case(shape="good"):
        found.records.append({"ms": 1})
    with found.case(shape="bad"):
        raise ValueError("first line\nsecond line")
    assert reported == [[{"ms": 1}]]
    assert found.failures == [{"shape": "bad", "error": "ValueError: first line"}]
    late = Results("mine", CPU, None, QUICK, deadline=time.monotonic() - 1)
    assert late.out_of_time(shape="a") and late.skipped == [{"shape": "a", "reason": OUT_OF_TIME}]


def test_tables_align_numbers_to_the_right(capsys):
    columns = {"name": lambda record: record["name"], "ms": lambda record: record["ms"]}
    print_table(columns, [{"name": "a", "ms": "1.5"}, {"name": "long", "ms": "100"}])
    assert capsys.readouterr().out == "  name   ms\n  a     1.5\n  long  100\n"


def test_facts_about_the_machine():
    assert results.slug("NVIDIA GeForce RTX 4090 (24 GB)") == "nvidia-geforce-rtx-4090-24-gb"
    facts = results.describe_machine(CPU)
    assert facts["kind"] == "cpu" and facts["device"] and facts["threads"] == torch.get_num_threads()


def test_commit_marks_modified_files_and_may_be_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.git_commit() is None

    def git(*arguments):
        settings = ("user.name=A", "user.email=a@example.org", "commit.gpgsign=false", "core.hooksPath=")
        command = ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert results.git_commit() == head
    (tmp_path / "file").write_text("two")
    assert results.git_commit() == head + "+"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "a,nope"], "'nope' is not a shape, expected one or more of a, b"),
        (["--shapes", "a,none"], "'none' is not a shape"),
        (["--threads", "0"], "'0', expected an integer of at least 1"),
        (["--threads", "two"], "'two', expected an integer of at least 1"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cuda"], "torch finds no CUDA device; use --device cpu"),
        (["--draw", "result.json"], "--draw: requires --plots DIR"),
        (["--draw", "absent.json", "--plots", "x"], "absent.json is not a file, expected the --out of an earlier run"),
    ],
)
def test_invalid_arguments_state_what_was_expected(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = results.new_parser("A benchmark.")
    results.add_names(parser, "--shapes", "shape", ("a", "b"), default=("a",), allow_none=True)
    with pytest.raises(SystemExit) as stopped:
        results.run_command(parser, parser.parse_args(arguments), lambda: pytest.fail("measured"), lambda *_: [])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_names_are_unique_and_may_be_none():
    parse = results.names("shape", ("a", "b"), allow_none=True)
    assert parse("b,a,b") == ("b", "a") and parse("none") == ()
    with pytest.raises(argparse.ArgumentTypeError):
        results.names("shape", ("a", "b"))("none")


@pytest.mark.parametrize("failures, status", [([], 0), ([{"error": "x"}], 1)])
def test_the_exit_status_reports_failures(failures, status, tmp_path):
    parser = results.new_parser("A benchmark.")
    options = parser.parse_args(["--out", str(tmp_path / "new" / "r.json")])
    assert results.run_command(parser, options, lambda: {"failures": failures}, lambda *_: []) == status
    assert (tmp_path / "new" / "r.json").is_file()


# Which art_kernels is imported: a checkout without a compiled module next to an installed package with one.


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real benchmarks package, a small script and the sources of an art_kernels."""
    package = tmp_path / "checkout" / "benchmarks"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text((Path(benchmarks.__file__)).read_text())
    real = (Path(benchmarks.__file__).parent / "bench_contrast.py").read_text()
    start = real.index("if not __package__")
    bootstrap = real[start : real.index("\n\n", start)]
    (package / "script.py").write_text(
        f"import sys\nfrom pathlib import Path\n{bootstrap}\nimport art_kernels\n"
        "from benchmarks import require_compiled_module\n"
        "print(art_kernels.__file__)\nrequire_compiled_module()\n"
    )
    sources = package.parent / "art_kernels"
    sources.mkdir()
    (sources / "__init__.py").touch()
    return package.parent


def run_script(checkout, arguments, site=None):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-S", *arguments]  # -S: without this environment's installed packages
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["benchmarks/script.py"], ["-m", "benchmarks.script"]], ids=["file", "module"])
def test_the_installed_package_is_measured_and_not_the_sources(checkout, tmp_path, arguments):
    installed = tmp_path / "site" / "art_kernels" / "tracklet_linking"
    installed.mkdir(parents=True)
    (installed.parent / "__init__.py").touch()
    (installed / f"_csrc{benchmarks.EXTENSION_SUFFIXES[0]}").touch()
    done = run_script(checkout, arguments, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == installed.parent / "__init__.py"


@pytest.mark.parametrize("arguments", [["benchmarks/script.py"], ["-m", "benchmarks.script"]], ids=["file", "module"])
def test_without_a_compiled_module_the_error_states_what_to_run(checkout, arguments):
    done = run_script(checkout, arguments)
    assert done.returncode == 1 and "has no compiled module" in done.stderr
    assert f"run `pip install .` in {checkout}" in done.stderr
    (checkout / "art_kernels" / f"_csrc{benchmarks.EXTENSION_SUFFIXES[0]}").touch()  # an editable installation
    assert run_script(checkout, arguments).returncode == 0


def test_a_command_without_a_compiled_module_measures_nothing(monkeypatch, capsys):
    def missing():
        raise RuntimeError("no compiled module: run `pip install .`")

    monkeypatch.setattr(results, "require_compiled_module", missing)
    parser = results.new_parser("A benchmark.")
    with pytest.raises(SystemExit) as stopped:
        results.run_command(parser, parser.parse_args([]), lambda: pytest.fail("measured"), lambda *_: [])
    assert stopped.value.code == 2 and "error: no compiled module: run `pip install .`" in capsys.readouterr().err


@pytest.mark.parametrize("script", sorted(Path(benchmarks.__file__).parent.glob("bench_*.py")), ids=lambda p: p.stem)
def test_every_script_has_the_same_bootstrap_and_options(script):
    before, bootstrap, _ = re.split(r"^(if not __package__:.*?)\n\n", script.read_text(), flags=re.M | re.S)
    assert bootstrap.splitlines()[-1].startswith("    import benchmarks")
    assert not re.search(r"^(from|import) (art|benchmarks)", before, re.M)
    parser = importlib.import_module(f"benchmarks.{script.stem}").make_parser()
    options = parser.parse_args(["--quick", "--out", "r.json", "--plots", "plots"])
    assert options.quick and options.out == Path("r.json") and options.plots == Path("plots")
