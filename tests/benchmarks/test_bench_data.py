"""The benchmark of decoding: its frames are checked, what is missing is named, waiting is counted."""

import itertools
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from art.data.datasets.clips import ClipSet
from benchmarks import data_fresh, data_leak, data_loader, data_measure, data_providers
from benchmarks.bench_data import main
from benchmarks.data_charts import decoders_figure, waiting_figure
from benchmarks.data_loader import ART_STEP, ASLEEP, LoaderShape
from benchmarks.data_measure import Settings, compared, cpu_rounds, run
from benchmarks.data_providers import DECORD, OPENCV, OURS, OURS_TORCHCODEC, PROVIDERS, TORCHCODEC
from benchmarks.data_truth import check_frames, reference_frames
from benchmarks.data_videos import CASES, VideoCase, scene, write_video
from benchmarks.timing import Effort

TINY = VideoCase("tiny", 64, 128, 12)
SCALED = VideoCase("scaled", 64, 128, 12, 32)


@pytest.fixture
def tiny(monkeypatch):
    """Two small cases in place of the large ones, and a small loader."""
    for name in list(CASES):
        monkeypatch.delitem(CASES, name)
    for case in (TINY, SCALED):
        monkeypatch.setitem(CASES, case.name, case)
    monkeypatch.setattr(data_measure, "LOADER_CASE", "tiny")
    once = Effort(min_rounds=2, min_seconds=0.0, max_seconds=0.0, warmups=1)
    monkeypatch.setattr(data_measure, "effort_for", lambda device, quick: once)


def settings(**changes):
    return Settings(**{"cases": ("tiny", "scaled"), "workers": (0,), "steps": (0.01,), "quick": True, **changes})


def test_every_provider_is_measured_or_named(tiny):
    result = run(settings(leak=40))
    assert result["failures"] == [] and result["benchmark"] == "data"
    assert json.loads(json.dumps(result)) == result
    left_out = {entry.get("provider"): entry["reason"] for entry in result["left_out"]}
    assert all(left_out.values())
    for case in ("tiny", "scaled"):
        own = [r for r in result["records"] if r["measured"] == "decode" and r["case"] == case]
        assert [record["provider"] for record in own] == [name for name in PROVIDERS if name not in left_out]
        rates = {record["provider"]: record["clips_per_second"] for record in own}
        for record in own:
            assert record["clips_per_second"] == pytest.approx(1e3 / record["median_ms"])
            assert record["function"] in PROVIDERS[record["provider"]]
            assert (record["best_other"] is not None) == (record["provider"] == OURS and len(rates) > 1)
    assert OURS in rates
    kinds = [(r["measured"], r["workers"], r.get("step")) for r in result["records"] if r["measured"] != "decode"]
    assert kinds == [("loader", 0, None), ("waiting", 0, ASLEEP), ("waiting", 0, ART_STEP)]
    assert result["leak"]["decodes"] == 40 and result["leak"]["failed"] == 8


def test_wrong_frames_are_no_result(tiny, monkeypatch):
    art = data_providers._art

    def late(decoder):
        read = art(decoder)
        return lambda path, indices, size: read(path, [i - 1 for i in indices], size)

    monkeypatch.setattr(data_providers, "_art", late)
    result = run(settings(workers=(), cases=("tiny",)))
    assert OURS not in {record["provider"] for record in result["records"]}
    (failure,) = (entry for entry in result["failures"] if entry["provider"] == OURS)
    assert failure["error"] == "ArithmeticError: frame 1 is frame 0"


def test_frames_are_compared_with_their_neighbours(tmp_path):
    reference = reference_frames(write_video(tmp_path / "a.mp4", TINY, 12))
    assert len(reference) == 12 and reference[0].shape == (64, 128, 3)
    assert check_frames(np.stack(reference)[[0, 5, 11]], [0, 5, 11], reference) == 0
    small = np.stack([frame.reshape(32, 2, 64, 2, 3).mean((1, 3)) for frame in reference]).round().astype(np.uint8)
    assert check_frames(small[[3]], [3], reference) < 1
    with pytest.raises(ArithmeticError, match="frame 5 is frame 6"):
        check_frames(np.stack(reference)[[0, 6]], [0, 5], reference)
    with pytest.raises(ArithmeticError, match="gave 1 frames for 2"):
        check_frames(np.stack(reference)[[0]], [0, 5], reference)
    with pytest.raises(ArithmeticError, match=r"off by .* of 255"):
        check_frames(np.clip(reference[5].astype(int) + 20, 0, 255).astype(np.uint8)[None], [5], reference)


def test_time_is_that_of_the_cores():
    effort = Effort(min_rounds=3, min_seconds=0.0, max_seconds=0.0, warmups=1)

    def busy():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    seconds = cpu_rounds({"asleep": lambda: time.sleep(0.03), "busy": busy}, effort)
    assert [len(own) for own in seconds.values()] == [3, 3]
    assert max(seconds["asleep"]) < 0.02 <= min(seconds["busy"])


def test_ours_is_compared_with_the_fastest_of_the_others():
    rates = {TORCHCODEC: 4.0, DECORD: 2.0, OURS: 6.0, OURS_TORCHCODEC: 5.0}
    assert compared(OURS, rates) == {"best_other": TORCHCODEC, "speedup_over_best_other": 1.5}
    assert compared(DECORD, rates)["best_other"] is None
    assert compared(OURS, {OURS: 1.0})["best_other"] is None


def test_the_scene_moves_and_is_always_the_same():
    pictures = list(scene(32, 64, 5))
    assert all(picture.shape == (32, 64, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, scene(32, 64, 5), strict=True))
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in itertools.pairwise(pictures))
    assert CASES["720p-250-to-224"].result == (224, 398)


def test_a_model_waits_as_long_as_its_loader_takes(monkeypatch):
    def batches(*_):
        for _ in range(4):
            time.sleep(0.05)
            yield {}

    monkeypatch.setattr(data_loader, "_epoch", batches)
    monkeypatch.setattr(data_loader, "_loader", lambda *_: SimpleNamespace(close=lambda: None))
    shape = LoaderShape(batch=8)
    empty = ClipSet.__new__(ClipSet)
    found = data_loader.measure_waiting(empty, shape, 0, data_loader.asleep(0.15))
    assert found["waiting_seconds"] == pytest.approx(0.05, abs=0.02)
    assert found["step_seconds"] == pytest.approx(0.15, abs=0.03)
    assert found["waiting_share"] == pytest.approx(0.25, abs=0.1)
    found = data_loader.measure_loader(empty, shape, 0)
    assert found["first_batch_seconds"] == pytest.approx(0.05, abs=0.02)
    assert found["clips_per_second"] == pytest.approx(8 / 0.05, rel=0.3)


def test_a_new_process_tells_its_time_and_memory(tmp_path):
    path = write_video(tmp_path / "a.mp4", TINY, 24)
    found = data_fresh.measure_fresh(OURS, "read_chosen", path, [0, 12], None)
    assert 0 < found["first_clip_seconds"] < 60
    assert found["peak_bytes"] is None or 0 < found["peak_bytes"] < 2**30
    with pytest.raises(RuntimeError, match=r"in a process of its own: .*none\.mp4: there is no such file"):
        data_fresh.measure_fresh(OURS, "read_chosen", tmp_path / "none.mp4", [0], None)


def test_a_leak_is_a_failure(tiny, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(data_leak, "read_clip", None)
    leaking = data_leak.measure_leak

    def leak(decodes, files):
        return leaking(decodes, files, lambda *_, **__: kept.append(torch.ones(2**19)))

    monkeypatch.setattr(data_measure, "measure_leak", leak)
    assert main(["--cases", "none", "--workers", "none", "--leak", "60", "--quick"]) == 1
    assert "FAILED: leak: MemoryError: memory grew by" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_left_out_with_the_reason(tiny, monkeypatch):
    load = data_providers.importlib.import_module

    def without(name):
        if name in ("cv2", "decord"):
            raise OSError(f"{name}: cannot open shared object file")
        return load(name)

    monkeypatch.setattr(data_providers, "importlib", SimpleNamespace(
        import_module=without, metadata=data_providers.importlib.metadata))  # fmt: skip
    result = run(settings(workers=(), cases=("tiny",)))
    reasons = {entry.get("provider"): entry["reason"] for entry in result["left_out"]}
    assert "cannot be imported (OSError: cv2" in reasons[OPENCV] and "pip install decord" in reasons[DECORD]
    assert {OPENCV, DECORD}.isdisjoint(record["provider"] for record in result["records"])


def test_the_command_writes_results_and_pictures(tiny, tmp_path, capsys):
    out, plots, again = tmp_path / "deep" / "r.json", tmp_path / "plots", tmp_path / "again"
    arguments = ["--cases", "tiny", "--workers", "0", "--quick", "--out", str(out), "--plots", str(plots)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "decode, tiny: 128×64, keyframe every 12" in table and "waiting, tiny" in table
    assert "videos cut to 48 frames" in table
    assert {path.name for path in plots.iterdir()} == {"decoders.png", "waiting.png"}
    assert main(["--draw", str(out), "--plots", str(again)]) == 0
    assert {path.name for path in again.iterdir()} == {"decoders.png", "waiting.png"}
    with pytest.raises(SystemExit):
        main(["--cases", "240p"])
    assert "'240p' is no case, expected some of tiny, scaled" in capsys.readouterr().err


def test_pictures_show_what_was_measured():
    decoded = [
        {"case": "a", "described": "a file", "provider": name, "function": "f", "clips_per_second": rate}
        for name, rate in ((DECORD, 2.0), (OURS, 4.0))
    ]
    (axes,) = decoders_figure(decoded, "here").axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, 2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["art (f)", "decord (f)"]
    waiting = [
        {"workers": 1, "step": step, "step_seconds": seconds, "waiting_share": share}
        for step, seconds, share in ((ASLEEP, 0.5, 0.2), (ASLEEP, 0.1, 0.8), (ART_STEP, 0.3, 0.4))
    ]
    (axes,) = waiting_figure(waiting, "here").axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[0.1, 0.5], [0.3]]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0.8, 0.2], [0.4]]
