"""The benchmark of decoding: frames are checked, missing libraries are named, waiting is measured."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from art.data.datasets.base import ClipSet
from benchmarks import bench_data, data_providers
from benchmarks.bench_data import (
    ART_STEP,
    IDLE_STEP,
    LoaderShape,
    Settings,
    decoders_figure,
    main,
    measure_loader,
    measure_waiting,
    run,
    waiting_figure,
)
from benchmarks.common.results import ROOT
from benchmarks.data_providers import (
    CASES,
    DECORD,
    OPENCV,
    OURS,
    PROVIDERS,
    VideoCase,
    check_frames,
    measure_in_new_process,
    reference_frames,
    scene,
    write_video,
)

pytestmark = pytest.mark.slow

TINY = VideoCase("tiny", 64, 128, 12)
SCALED = VideoCase("scaled", 64, 128, 12, 32)


@pytest.fixture
def tiny(monkeypatch):
    """Two small cases instead of the large ones, and a small loader."""
    for name in list(CASES):
        monkeypatch.delitem(CASES, name)
    for case in (TINY, SCALED):
        monkeypatch.setitem(CASES, case.name, case)
    monkeypatch.setattr(bench_data, "LOADER_CASE", "tiny")


def settings(**changes):
    return Settings(**{"cases": ("tiny", "scaled"), "workers": (0,), "steps": (0.01,), "quick": True, **changes})


def test_every_provider_is_measured_or_named(tiny):
    result = run(settings(leak=40))
    assert result["failures"] == [] and result["benchmark"] == "data"
    assert json.loads(json.dumps(result)) == result
    skipped = {entry.get("provider"): entry["reason"] for entry in result["skipped"]}
    assert all(skipped.values())
    for case in ("tiny", "scaled"):
        own = [r for r in result["records"] if r["measured"] == "decode" and r["case"] == case]
        assert [record["provider"] for record in own] == [name for name in PROVIDERS if name not in skipped]
        rates = {record["provider"]: record["clips_per_second"] for record in own}
        for record in own:
            assert record["clips_per_second"] == pytest.approx(1e3 / record["median_ms"])
            assert record["function"] in PROVIDERS[record["provider"]]
            others = [name for name in rates if not name.startswith(OURS)]
            assert (record["best_other"] is not None) == (record["provider"].startswith(OURS) and bool(others))
    assert OURS in rates
    kinds = [(r["measured"], r["workers"], r.get("step")) for r in result["records"] if r["measured"] != "decode"]
    assert kinds == [("loader", 0, None), ("waiting", 0, IDLE_STEP), ("waiting", 0, ART_STEP)]
    assert result["leak"]["decodes"] == 40 and result["leak"]["failed"] == 8


def test_wrong_frames_are_a_failure(tiny, monkeypatch):
    art = data_providers._art

    def off_by_one(decoder):
        read = art(decoder)
        return lambda path, indices, size: read(path, [i - 1 for i in indices], size)

    monkeypatch.setattr(data_providers, "_art", off_by_one)
    result = run(settings(workers=(), cases=("tiny",)))
    assert OURS not in {record["provider"] for record in result["records"]}
    (failure,) = (entry for entry in result["failures"] if entry["provider"] == OURS)
    assert failure["error"] == "ArithmeticError: frame 1 is frame 0"


def test_frames_are_compared_with_their_neighbors(tmp_path):
    reference = reference_frames(write_video(tmp_path / "a.mp4", TINY, 12))
    assert len(reference) == 12 and reference[0].shape == (64, 128, 3)
    assert check_frames(np.stack(reference)[[0, 5, 11]], [0, 5, 11], reference) == 0
    small = np.stack([frame.reshape(32, 2, 64, 2, 3).mean((1, 3)) for frame in reference]).round().astype(np.uint8)
    assert check_frames(small[[3]], [3], reference) < 1
    with pytest.raises(ArithmeticError, match="frame 5 is frame 6"):
        check_frames(np.stack(reference)[[0, 6]], [0, 5], reference)
    with pytest.raises(ArithmeticError, match="returned 1 frames for 2"):
        check_frames(np.stack(reference)[[0]], [0, 5], reference)
    with pytest.raises(ArithmeticError, match=r"differs by .* of 255"):
        check_frames(np.clip(reference[5].astype(int) + 20, 0, 255).astype(np.uint8)[None], [5], reference)


def test_the_scene_moves_and_is_deterministic():
    images = list(scene(32, 64, 5))
    assert all(image.shape == (32, 64, 3) and image.dtype == np.uint8 for image in images)
    assert all(np.array_equal(a, b) for a, b in zip(images, scene(32, 64, 5), strict=True))
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in itertools.pairwise(images))
    assert CASES["720p-250-to-224"].output_size == (224, 398)


def test_waiting_time_is_that_of_the_loader(monkeypatch):
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds

    def batches(*_):
        for _ in range(4):
            sleep(0.05)
            yield {}

    monkeypatch.setattr(bench_data, "time", SimpleNamespace(perf_counter=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(bench_data, "_epoch", batches)
    monkeypatch.setattr(bench_data, "_loader", lambda *_: SimpleNamespace(close=lambda: None))
    shape, empty = LoaderShape(batch=8), ClipSet.__new__(ClipSet)
    expected = {"waiting_seconds": 0.05, "step_seconds": 0.15, "waiting_fraction": 0.25}
    assert measure_waiting(empty, shape, 0, lambda batch: sleep(0.15)) == pytest.approx(expected)
    expected = {"first_batch_seconds": 0.05, "clips_per_second": 8 / 0.05}
    assert measure_loader(empty, shape, 0) == pytest.approx(expected)


def test_a_new_process_reports_its_time_and_memory(tmp_path):
    path = write_video(tmp_path / "a.mp4", TINY, 24)
    found = measure_in_new_process(OURS, "read_chosen", path, [0, 12], None)
    assert 0 < found["first_clip_seconds"] < 60
    assert found["peak_bytes"] is None or 0 < found["peak_bytes"] < 2**30
    with pytest.raises(RuntimeError, match=r"in a new process: .*none\.mp4"):
        measure_in_new_process(OURS, "read_chosen", tmp_path / "none.mp4", [0], None)


def test_a_leak_is_a_failure(tiny, monkeypatch, capsys):
    leaked = []
    measure = data_providers.measure_leak

    def leak(decodes, files):
        return measure(decodes, files, lambda *_, **__: leaked.append(torch.ones(2**19)))

    monkeypatch.setattr(data_providers, "measure_leak", leak)
    assert main(["--cases", "none", "--workers", "none", "--leak", "60", "--quick"]) == 1
    assert "FAILED: leak: MemoryError: memory grew by" in capsys.readouterr().out


def test_a_missing_peer_is_skipped_with_the_reason(tiny, monkeypatch):
    load = data_providers.importlib.import_module

    def without(name):
        if name in ("cv2", "decord"):
            raise OSError(f"{name}: cannot open shared object file")
        return load(name)

    monkeypatch.setattr(data_providers, "importlib", SimpleNamespace(
        import_module=without, metadata=data_providers.importlib.metadata))  # fmt: skip
    result = run(settings(workers=(), cases=("tiny",)))
    reasons = {entry.get("provider"): entry["reason"] for entry in result["skipped"]}
    assert "cannot be imported (OSError: cv2" in reasons[OPENCV] and "pip install decord" in reasons[DECORD]
    assert {OPENCV, DECORD}.isdisjoint(record["provider"] for record in result["records"])


def test_the_command_writes_results_and_charts(tiny, tmp_path, capsys):
    out, plots = tmp_path / "deep" / "r.json", tmp_path / "plots"
    arguments = ["--cases", "tiny", "--workers", "0", "--quick", "--out", str(out), "--plots", str(plots)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "decode, tiny: 128×64, keyframe every 12" in table and "waiting, tiny" in table
    assert {path.name for path in plots.iterdir()} == {"decoders.png", "waiting.png"}


@pytest.mark.parametrize(("name", "chart"), [("data", "decoders"), ("data-loader", "waiting")])
def test_committed_results_can_be_drawn(name, chart, tmp_path):
    path = ROOT / "benchmarks" / "results" / f"{name}-cpu.json"
    assert main(["--draw", str(path), "--plots", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{chart}.png"]


def test_charts_show_what_was_measured():
    decoded = [
        {"case": "a", "described": "a file", "provider": name, "function": "f", "clips_per_second": rate}
        for name, rate in ((DECORD, 2.0), (OURS, 4.0))
    ]
    (axes,) = decoders_figure(decoded, "here").axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, 2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["art (f)", "decord (f)"]
    waiting = [
        {"workers": 1, "step": step, "step_seconds": seconds, "waiting_fraction": fraction}
        for step, seconds, fraction in ((IDLE_STEP, 0.5, 0.2), (IDLE_STEP, 0.1, 0.8), (ART_STEP, 0.3, 0.4))
    ]
    (axes,) = waiting_figure(waiting, "here").axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[0.1, 0.5], [0.3]]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[80, 20], [40]]
