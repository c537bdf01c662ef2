"""Tuning: which candidate is chosen, when nothing may be timed, and the file, which several processes share."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import art_kernels
from art_kernels import tuning

GPU = torch.device("cuda", 0)


class Sizes(NamedTuple):
    block: int
    warps: int
    hold: bool


DEFAULT, SMALL, LARGE = Sizes(32, 4, True), Sizes(16, 4, False), Sizes(64, 8, True)


class Clock:
    """Stands for the timer: each candidate takes the milliseconds given for it, or raises the error given for it."""

    def __init__(self) -> None:
        self.times: dict[Sizes, float | BaseException] = {DEFAULT: 3.0, SMALL: 2.0, LARGE: 4.0}
        self.timed: list[Sizes] = []
        self._launched: Sizes | None = None

    def run(self, sizes: Sizes) -> None:
        self._launched = sizes

    def milliseconds(self, launch, device: torch.device) -> float:
        launch()
        self.timed.append(self._launched)
        result = self.times[self._launched]
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture
def clock(monkeypatch, tmp_path) -> Clock:
    """A GPU that is not there, an empty memory and an empty cache folder; tuning is on."""
    clock = Clock()
    monkeypatch.setattr(tuning, "milliseconds", clock.milliseconds)
    monkeypatch.setattr(tuning, "_device_facts", lambda device: ("Test GPU", "9.0"))
    monkeypatch.setattr(tuning, "_triton_version", lambda: "3.5.0")
    monkeypatch.setattr(tuning, "_memory", {})
    monkeypatch.setattr(tuning, "_warned", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("ART_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ART_KERNELS_AUTOTUNE", "1")
    return clock


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "cache" / "tuning-v1.json"


def best(
    clock: Clock, *, device: torch.device = GPU, fingerprint: str = "f00d", kernel: str = "blur", **shape
) -> Sizes:
    shape = {"rows": 2, "dtype": "bfloat16", "mask": True, **shape}
    return tuning.best(kernel, device, shape, DEFAULT, [SMALL, DEFAULT, LARGE], clock.run, fingerprint=fingerprint)


def forget() -> None:
    """As another process begins."""
    tuning._memory.clear()


def entries(file: Path) -> list[dict]:
    return json.loads(file.read_text())["entries"]


def test_the_fastest_is_taken_and_timed_once(clock):
    assert best(clock) == SMALL
    assert clock.timed == [DEFAULT, SMALL, LARGE]  # the default is among the candidates, and not timed twice
    assert best(clock) == SMALL
    assert len(clock.timed) == 3
    clock.times[LARGE] = 1.0
    assert best(clock, rows=3) == LARGE
    assert len(clock.timed) == 6


@pytest.mark.parametrize("milliseconds, expected", [(2.95, DEFAULT), (2.9, SMALL), (3.0, DEFAULT), (3.5, DEFAULT)])
def test_the_default_stays_where_another_is_hardly_faster(clock, milliseconds, expected):
    clock.times[SMALL] = milliseconds
    assert best(clock) == expected


def test_the_default_alone_is_not_timed(clock, file):
    assert tuning.best("blur", GPU, {}, DEFAULT, [DEFAULT], clock.run, fingerprint="f00d") == DEFAULT
    assert tuning.best("blur", GPU, {}, DEFAULT, [], clock.run, fingerprint="f00d") == DEFAULT
    assert clock.timed == [] and not file.exists()


def failures() -> list[Exception]:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return [
        OutOfResources(300_000, 232_448, "shared memory"),
        PTXASError("too many registers"),
        CompilationError(None, None, "shapes differ"),
        RuntimeError("PassManager::run failed"),
    ]


@pytest.mark.parametrize("error", failures(), ids=lambda error: type(error).__name__)
def test_a_candidate_that_cannot_run_is_left_out(clock, error):
    clock.times[SMALL] = error
    assert best(clock) == DEFAULT
    assert clock.timed == [DEFAULT, SMALL, LARGE]
    clock.times[LARGE] = 1.0
    assert best(clock, rows=3) == LARGE


@pytest.mark.parametrize("error", failures(), ids=lambda error: type(error).__name__)
def test_a_default_that_cannot_run_raises(clock, file, error):
    clock.times[DEFAULT] = error
    with pytest.raises(type(error)):
        best(clock)
    assert not file.exists()
    clock.times[DEFAULT] = 3.0
    assert best(clock) == SMALL


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("a mistake")])
def test_other_errors_of_a_candidate_are_not_hidden(clock, error):
    clock.times[SMALL] = error
    with pytest.raises(type(error), match=str(error)):
        best(clock)


def test_without_memory_for_the_timing_the_default_is_taken_in_this_process(clock, file):
    clock.times[LARGE] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.warns(UserWarning, match="blur: Test GPU has no memory left to time it in"):
        assert best(clock) == DEFAULT
    assert best(clock) == DEFAULT
    assert len(clock.timed) == 3 and not file.exists()
    forget()
    clock.times[LARGE] = 1.0
    assert best(clock) == LARGE


@pytest.mark.parametrize("value", [None, "", "0"])
def test_off_nothing_is_timed_and_no_file_touched(clock, file, monkeypatch, value):
    best(clock)
    written = file.read_text()
    forget()
    clock.timed.clear()
    monkeypatch.setattr(tuning, "cache_file", lambda: pytest.fail("the cache was looked at"))
    monkeypatch.delenv("ART_KERNELS_AUTOTUNE") if value is None else monkeypatch.setenv("ART_KERNELS_AUTOTUNE", value)
    assert best(clock) == DEFAULT  # though the file says SMALL
    assert clock.timed == [] and tuning._memory == {} and file.read_text() == written


def test_off_after_on_the_default_is_taken_again(clock):
    assert best(clock) == SMALL
    with art_kernels.autotune(False):
        assert best(clock) == DEFAULT
    assert best(clock) == SMALL


def test_only_gpus_are_tuned(clock, file):
    assert best(clock, device=torch.device("cpu")) == DEFAULT
    assert best(clock, device=torch.device("meta")) == DEFAULT
    assert clock.timed == [] and not file.exists()


@pytest.mark.parametrize("value", ["yes", "2", "on", " 1"])
def test_the_environment_is_1_or_0_or_refused(clock, monkeypatch, value):
    monkeypatch.setenv("ART_KERNELS_AUTOTUNE", value)
    with pytest.raises(ValueError, match=f"ART_KERNELS_AUTOTUNE={value} is no switch, expected 1 "):
        best(clock)
    assert clock.timed == []


def test_autotune_goes_before_the_environment_and_the_innermost_first(clock, monkeypatch):
    monkeypatch.delenv("ART_KERNELS_AUTOTUNE")
    assert not tuning.enabled()
    with art_kernels.autotune():
        assert tuning.enabled()
        with art_kernels.autotune(False):
            assert not tuning.enabled()
            with art_kernels.autotune(True):
                assert tuning.enabled()
            assert not tuning.enabled()
        assert best(clock) == SMALL
    with pytest.raises(KeyError), art_kernels.autotune():
        raise KeyError
    assert not tuning.enabled()
    with pytest.raises(TypeError, match="enabled is '0', expected True or False"), art_kernels.autotune("0"):
        pass


def test_autotune_reaches_other_threads(clock, monkeypatch):
    """As autograd's, in which the backward kernels are launched."""
    monkeypatch.delenv("ART_KERNELS_AUTOTUNE")
    chosen = []
    with art_kernels.autotune():
        thread = threading.Thread(target=lambda: chosen.append(best(clock)))
        thread.start()
        thread.join()
    assert chosen == [SMALL]


def test_autotune_blocks_of_two_threads_may_overlap():
    first, second = art_kernels.autotune(), art_kernels.autotune()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert tuning.enabled()
    second.__exit__(None, None, None)
    assert not tuning.enabled()


def test_threads_that_ask_at_once_time_once(clock, monkeypatch):
    together = threading.Barrier(4)

    def slowly(launch, device: torch.device) -> float:
        time.sleep(0.01)
        return clock.milliseconds(launch, device)

    monkeypatch.setattr(tuning, "milliseconds", slowly)

    def ask() -> None:
        together.wait()
        best(clock)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.timed == [DEFAULT, SMALL, LARGE]


def captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def compiled(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("begin", [captured, compiled])
def test_nothing_is_timed_while_captured_or_traced(clock, monkeypatch, begin):
    with monkeypatch.context() as inside:
        begin(inside)
        assert best(clock) == DEFAULT
    assert clock.timed == []
    assert best(clock) == SMALL  # the default was not remembered
    begin(monkeypatch)
    assert best(clock) == SMALL  # from memory
    forget()
    assert best(clock) == SMALL  # from the file
    assert len(clock.timed) == 3


def test_nothing_is_timed_under_fake_tensors(clock):
    with FakeTensorMode():
        assert best(clock) == DEFAULT
    assert clock.timed == []
    best(clock)
    forget()
    with FakeTensorMode():
        assert best(clock) == SMALL
    assert len(clock.timed) == 3


def test_the_file_says_what_was_timed(clock, file):
    best(clock)
    (entry,) = entries(file)
    assert entry.pop("date")[:2] == "20"
    assert entry == {
        "kernel": "blur",
        "fingerprint": "f00d",
        "device": "Test GPU",
        "capability": "9.0",
        "triton": "3.5.0",
        "shape": {"rows": 2, "dtype": "bfloat16", "mask": True},
        "choice": {"block": 16, "warps": 4, "hold": False},
        "milliseconds": 2.0,
        "default": {"block": 32, "warps": 4, "hold": True},
        "default_milliseconds": 3.0,
    }
    assert sorted(path.name for path in file.parent.iterdir()) == ["tuning-v1.json", "tuning-v1.json.lock"]


def test_the_file_is_read_before_anything_is_timed(clock):
    best(clock)
    best(clock, rows=3)
    forget()
    clock.times = {}
    assert best(clock) == SMALL
    assert best(clock, rows=3) == SMALL


def test_another_process_takes_the_choice_of_the_first(clock):
    best(clock)
    code = """
import torch
from tests.kernels import test_tuning
from art_kernels import tuning
tuning._device_facts = lambda device: ("Test GPU", "9.0")
tuning._triton_version = lambda: "3.5.0"
clock = test_tuning.Clock()
clock.times = {}
print(test_tuning.best(clock))
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(SMALL)


@pytest.mark.parametrize("change", ["fingerprint", "kernel", "device", "capability", "triton", "shape", "option"])
def test_a_result_holds_for_what_was_timed_alone(clock, file, monkeypatch, change):
    best(clock)
    clock.times[LARGE] = 1.0
    asked = {}
    if change == "triton":
        monkeypatch.setattr(tuning, "_triton_version", lambda: "3.6.0")
    elif change in ("device", "capability"):
        facts = ("Other GPU", "9.0") if change == "device" else ("Test GPU", "10.0")
        monkeypatch.setattr(tuning, "_device_facts", lambda device: facts)
    else:
        asked = {"shape": {"rows": 3}, "option": {"mask": False}}.get(change, {change: "other"})
    for _ in range(2):
        assert best(clock, **asked) == LARGE
        assert len(clock.timed) == 6
        forget()
    assert [entry["choice"]["block"] for entry in entries(file)] == [16, 64]


@pytest.mark.parametrize(
    "choice",
    [
        {"block": 17, "warps": 4, "hold": False},
        {"block": 16, "warps": 4, "hold": 0},
        {"block": 16.0, "warps": 4, "hold": False},
        {"block": 16, "warps": 4},
        {"block": 16, "warps": 4, "hold": False, "more": 1},
        [16, 4, False],
        None,
    ],
)
def test_an_entry_that_names_no_candidate_is_ignored(clock, file, choice):
    best(clock)
    content = json.loads(file.read_text())
    content["entries"][0]["choice"] = choice
    file.write_text(json.dumps(content))
    forget()
    clock.times[LARGE] = 1.0
    with pytest.warns(UserWarning, match="the entry of blur for .*'rows': 2.* names none of its candidates"):
        assert best(clock) == LARGE
    assert len(clock.timed) == 6
    assert [entry["choice"]["block"] for entry in entries(file)] == [64]


def test_what_others_wrote_stays_in_the_file(clock, file):
    best(clock, rows=1)
    others = [*entries(file), {"from": "a later release"}, 5]
    file.write_text(json.dumps({"entries": others}))
    best(clock)
    assert entries(file)[:3] == others and len(entries(file)) == 4


@pytest.mark.parametrize("text", ["", '{"entries": [{"kernel"', "[]", '{"entries": {}}', "\udcff", "[" * 100_000])
def test_a_file_that_cannot_be_parsed_is_moved_aside(clock, file, text):
    file.parent.mkdir()
    for name in ("tuning-v1.json.broken", "tuning-v1.json.broken2"):
        file.write_text(text, errors="surrogateescape")
        with pytest.warns(UserWarning, match=rf"tuning-v1.json cannot be parsed .* moved to {name},"):
            assert best(clock) == SMALL
        assert (file.parent / name).read_text(errors="surrogateescape") == text
        assert len(entries(file)) == 1
        forget()


def test_a_broken_file_is_left_alone_while_nothing_is_timed(clock, file, monkeypatch):
    file.parent.mkdir()
    file.write_text("{")
    captured(monkeypatch)
    assert best(clock) == DEFAULT
    assert [path.name for path in file.parent.iterdir()] == ["tuning-v1.json"]


def no_folder(monkeypatch, tmp_path):
    """A file stands where the folder should: refused to root, too, unlike a folder without permission to write."""
    (tmp_path / "cache").write_text("")


def no_space(monkeypatch, tmp_path):
    def write_text(self: Path, *arguments, **options) -> None:
        self.touch()
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", write_text)


def no_home(monkeypatch, tmp_path):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ART_KERNELS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.mark.parametrize("break_it", [no_folder, no_space, no_home])
def test_without_a_file_memory_serves_and_one_warning_is_given(clock, file, monkeypatch, tmp_path, break_it):
    break_it(monkeypatch, tmp_path)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for rows in (1, 2, 1, 2):
            assert best(clock, rows=rows) == SMALL
    assert len(clock.timed) == 6
    (warning,) = given
    assert "tuning results are kept in memory only" in str(warning.message)
    assert "results" in tuning.summary()
    if file.parent.is_dir():
        assert [path.name for path in file.parent.iterdir()] == ["tuning-v1.json.lock"]


def test_a_file_that_cannot_be_read_is_not_written_over(clock, file):
    file.mkdir(parents=True)
    with pytest.warns(UserWarning, match="kept in memory only"):
        assert best(clock) == SMALL
    assert file.is_dir() and list(file.parent.glob("*.broken*")) == []


def test_where_another_process_was_first_its_choice_stands(clock, file, monkeypatch):
    def slow(launch, device: torch.device) -> float:
        """While this process times, another one finishes."""
        if not file.exists():
            file.parent.mkdir()
            file.write_text(json.dumps({"entries": [theirs]}))
        return clock.milliseconds(launch, device)

    best(clock)
    theirs = {**entries(file)[0], "choice": LARGE._asdict()}
    for path in file.parent.iterdir():
        path.unlink()
    file.parent.rmdir()
    forget()
    monkeypatch.setattr(tuning, "milliseconds", slow)
    assert best(clock) == LARGE
    assert best(clock) == LARGE
    assert entries(file) == [theirs]


def _tune_many(clock: Clock, kernel: str, together) -> None:
    together.wait()
    for rows in range(40):
        best(clock, kernel=kernel, rows=rows)


def test_processes_that_write_at_once_lose_nothing(clock, file):
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    kernels = ["blur", "sharpen", "warp"]
    processes = [context.Process(target=_tune_many, args=(clock, kernel, together)) for kernel in kernels]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    written = sorted((entry["kernel"], entry["shape"]["rows"]) for entry in entries(file))
    assert written == [(kernel, rows) for kernel in kernels for rows in range(40)]


def test_where_the_file_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("ART_KERNELS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert tuning.cache_file() == Path("/home/someone/.cache/art_kernels/tuning-v1.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert tuning.cache_file() == Path("/var/cache/art_kernels/tuning-v1.json")
    monkeypatch.setenv("ART_KERNELS_CACHE", "~/tuned")
    assert tuning.cache_file() == Path("/home/someone/tuned/tuning-v1.json")


def test_a_shape_that_the_file_cannot_hold_is_refused(clock):
    with pytest.raises(TypeError, match=r"blur: shape\['rows'\] is \(2, 3\), expected an int, a str or a bool"):
        best(clock, rows=(2, 3))
    assert clock.timed == []


def test_fingerprint_follows_the_source():
    class Kernel(NamedTuple):
        cache_key: str

    one, other = Kernel("1"), Kernel("2")
    assert tuning.fingerprint(one) == tuning.fingerprint(Kernel("1"))
    assert len({tuning.fingerprint(*kernels) for kernels in [(one,), (other,), (one, other), (other, one)]}) == 4
    assert len(tuning.fingerprint(len)) == 16  # a kernel of Triton's interpreter has no key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(monkeypatch, file):
    monkeypatch.setenv("ART_KERNELS_CACHE", str(file.parent))
    monkeypatch.setattr(tuning, "_memory", {})
    launched = []

    def run(sizes: Sizes) -> None:
        launched.append(sizes)
        torch.cuda._sleep(100_000 * sizes.block)

    def choose() -> Sizes:
        return tuning.best("sleep", torch.device("cuda"), {}, DEFAULT, [SMALL, LARGE], run, fingerprint="f00d")

    with art_kernels.autotune():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            assert choose() == DEFAULT
            torch.cuda._sleep(1)
        assert launched == []
        assert choose() == SMALL
        assert {DEFAULT, SMALL, LARGE} == set(launched)
    assert entries(file)[0]["device"] == torch.cuda.get_device_name()
    assert entries(file)[0]["milliseconds"] < entries(file)[0]["default_milliseconds"]
