"""`art.tools.predict`: predictions in batches vs. single clips, as Parquet files, and in Ray Data."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from art.cli import main
from art.data.motion.render import write_video
from art.model.loading import load_model
from art.tools.predict import ClipPredictor, Item, Prediction, PredictionSettings, open_inputs, parquet
from art.tools.predict.parquet import RayPredictor, predict_dataset, predict_to_parquet

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra [parquet] is not installed")


@pytest.fixture(scope="module")
def checkpoint(unbroken):
    return unbroken / "art"


@pytest.fixture(scope="module")
def settings(checkpoint):
    return PredictionSettings(checkpoint, top_k=2)


@pytest.fixture(scope="module")
def mixed_items(clips, tmp_path_factory):
    """Four clips of two sizes, a broken one and a missing one."""
    directory = tmp_path_factory.mktemp("mixed")
    frames = np.random.default_rng(0).integers(0, 255, (7, 40, 64, 3), dtype=np.uint8)
    write_video(directory / "wide.mp4", frames, fps=12)
    (directory / "broken.mp4").write_bytes(b"no video")
    paths = [clips / "test_0_0.mp4", directory / "broken.mp4", directory / "wide.mp4", clips / "test_1_1.mp4",
             directory / "gone.mp4", clips / "test_2_0.mp4"]  # fmt: skip
    return [Item(str(path), path) for path in paths]


@pytest.fixture(scope="module")
def expected(settings, clips):
    """Predictions for the 15 clips of the dataset, by name."""
    items = [item for source in open_inputs([clips], 100) for item in source.items]
    assert len(items) == 15
    return {prediction.item.name: prediction for prediction in ClipPredictor(settings, "cpu")(items)}


def read_rows(directory):
    from pyarrow.parquet import read_table

    return {row["clip"]: row for row in read_table(directory).to_pylist()}


@pytest.mark.parametrize(("views", "crops", "batch_size", "workers"), [(1, 1, 4, 0), (2, 3, 4, 0), (1, 3, 100, 1)])
def test_batched_predictions_match_single_ones(checkpoint, mixed_items, views, crops, batch_size, workers):
    settings = PredictionSettings(checkpoint, views=views, crops=crops, batch_size=batch_size, workers=workers)
    predictor = ClipPredictor(settings, "cpu")
    predictions = list(predictor(mixed_items))
    assert [prediction.item for prediction in predictions] == mixed_items
    model = load_model(checkpoint / "checkpoints" / "last")
    for prediction in predictions:
        best = prediction.best(predictor.class_names, 2)
        if prediction.error is not None:
            assert best == []
            continue
        single = model.predict(prediction.item.name, 2, views=views, crops=crops)
        assert [name for name, _ in best] == [name for name, _ in single]
        assert [value for _, value in best] == pytest.approx([value for _, value in single], abs=1e-6)
    errors = {Path(p.item.name).name: p.error for p in predictions if p.error is not None}
    assert errors.keys() == {"broken.mp4", "gone.mp4"}
    assert errors["gone.mp4"] == "there is no such file"


def test_time_span_of_a_file(checkpoint, clips):
    path = clips / "test_0_0.mp4"
    full, span, outside = ClipPredictor(PredictionSettings(checkpoint), "cpu")(
        [Item("a", path), Item("b", path, 0.2, 0.4), Item("c", path, 50.0, 60.0)]
    )
    assert not np.array_equal(full.probabilities, span.probabilities)
    assert outside.error is not None


def test_best_classes_are_sorted():
    prediction = Prediction(Item("a", None), np.array([0.2, 0.5, 0.3], dtype=np.float32))
    assert [name for name, _ in prediction.best(["x", "y", "z"], 2)] == ["y", "z"]
    assert len(prediction.best(["x", "y", "z"], 9)) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [({"top_k": 0}, "top_k: got 0"), ({"crops": 2}, "crops: got 2"), ({"workers": -1}, "workers: got -1"),
     ({"precision": "int8"}, "precision: got 'int8'"), ({"batch_size": 0}, "batch_size: got 0")],
)  # fmt: skip
def test_settings_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        PredictionSettings(Path("nowhere"), **values)


@needs_pyarrow
def test_parquet_has_a_row_per_clip(settings, expected, clips, tmp_path):
    from pyarrow.parquet import read_schema

    (tmp_path / "gone.txt").write_text("gone.mp4\n")
    out = tmp_path / "out"
    inputs = [clips, tmp_path / "gone.txt"]
    written = predict_to_parquet(inputs, settings, out, devices=["cpu"], all_probabilities=True, part_clips=6)
    assert (written.clips, written.errors, written.parts, written.kept) == (16, 1, 3, 0)
    assert sorted(path.name for path in out.iterdir()) == [
        "_predictions.json", *(f"part-{number:06d}.parquet" for number in range(3)),
    ]  # fmt: skip
    rows = read_rows(out)
    missing = rows.pop(str(tmp_path / "gone.mp4"))
    assert missing.pop("error") == "there is no such file"
    assert {value for name, value in missing.items() if name != "clip"} == {None}
    classes = json.loads(read_schema(out / "part-000000.parquet").metadata[b"art.class_names"])
    assert classes == ["move right", "move left", "stand"]
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        probabilities = expected[name].probabilities
        assert np.allclose(row["probabilities"], probabilities, atol=1e-6)
        assert (row["error"], row["start"], row["end"]) == (None, None, None)
        assert row["class"] == row["top_classes"][0] == classes[probabilities.argmax()]
        assert row["probability"] == row["top_probabilities"][0] == max(row["probabilities"])
        assert len(row["top_classes"]) == 2


@needs_pyarrow
def test_second_call_computes_only_missing_parts(settings, clips, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict_to_parquet([clips], settings, out, devices=["cpu"], part_clips=4)
    first = read_rows(out)
    (out / "part-000002.parquet").unlink()
    (out / "_part-000002.parquet").write_bytes(b"half a file")
    parts = []
    original = parquet.write_part
    monkeypatch.setattr(parquet, "write_part", lambda path, *rest: (parts.append(path.name), original(path, *rest)))
    written = predict_to_parquet([clips], settings, out, devices=["cpu"], part_clips=4)
    assert (written.parts, written.kept, parts) == (4, 3, ["part-000002.parquet"])
    assert read_rows(out) == first

    for change, message in (
        ({"settings": PredictionSettings(settings.checkpoint, top_k=1)}, r"top_k \(was 2, is 1\)"),
        ({"settings": PredictionSettings(settings.checkpoint.parent / "backbone", top_k=2)}, "checkpoint "),
        ({"all_probabilities": True}, "all_probabilities"),
        (
            {"inputs": [clips / "test_0_0.mp4"]},
            r"clips \(was [0-9a-f]{8}, is [0-9a-f]{8}\), other parts \(was 4, is 1\)",
        ),
    ):
        arguments = {"inputs": [clips], "settings": settings, **change}
        with pytest.raises(ValueError, match=rf"contains predictions with (an)?other {message}"):
            predict_to_parquet(**arguments, out=out, devices=["cpu"], part_clips=4)
    assert read_rows(out) == first


@needs_pyarrow
def test_other_directories_are_not_modified(settings, clips, tmp_path):
    (tmp_path / "other.txt").write_text("other")
    with pytest.raises(ValueError, match=r"is not empty and has no _predictions\.json"):
        predict_to_parquet([clips], settings, tmp_path, devices=["cpu"])
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


@needs_pyarrow
@pytest.mark.slow
def test_killed_command_resumes(settings, expected, clips, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(clips), "--checkpoint", str(settings.checkpoint), "--top-k", "2", "--out", str(out)]
    command += ["--part-clips", "1", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "art", *command, "--jobs", "2"], start_new_session=True)
    while not list(out.glob("part-*.parquet")):
        assert process.poll() is None, "the command ended before it wrote a file"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ProcessLookupError):  # raised once its worker processes have ended, too
        for _ in range(300):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    existing = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 0 < len(existing) <= 15
    assert main(command) == 0
    assert f"15 clips in 15 files ({len(existing)} " in capsys.readouterr().out
    assert {name: (out / name).stat().st_mtime_ns for name in existing} == existing
    rows = read_rows(out)
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert row["probability"] == pytest.approx(expected[name].probabilities.max(), abs=1e-6)


@needs_pyarrow
def test_each_shard_is_a_part(settings, expected, clips, tmp_path):
    from art.data.datasets.base import open_dataset
    from art.data.shards import write_shards

    split = write_shards(open_dataset("csv", clips, "test"), tmp_path / "shards", shard_bytes=5000)
    written = predict_to_parquet([tmp_path / "shards" / "test.json"], settings, tmp_path / "out", devices=["cpu"])
    assert (written.clips, written.errors, written.parts) == (6, 0, len(split.shards))
    probabilities = sorted(row["probability"] for row in read_rows(tmp_path / "out").values())
    direct = sorted(float(p.probabilities.max()) for name, p in expected.items() if "test_" in name)
    assert probabilities == pytest.approx(direct, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "cpu"], "--devices, --jobs and --all-probabilities need --out"),
        (["--all-probabilities"], "--devices, --jobs and --all-probabilities need --out"),
        (["--out", "OUT", "--json"], "--json: "),
        (["--out", "OUT", "--part-clips", "0"], "--part-clips: got 0"),
        (["--out", "OUT", "--devices", "cpu,tpu"], "device: got 'tpu'"),
        (["--precision", "int8"], "precision: got 'int8'"),
    ],
)
def test_invalid_command_options(settings, clips, tmp_path, capsys, arguments, message):
    arguments = [str(tmp_path / "out") if argument == "OUT" else argument for argument in arguments]
    assert main(["predict", str(clips), "--checkpoint", str(settings.checkpoint), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_pyarrow(settings, clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'art-kernels\[parquet\]'"):
        predict_to_parquet([clips], settings, tmp_path / "out", devices=["cpu"])
    assert not (tmp_path / "out").exists()


def test_ray_batch_with_predictions(settings, mixed_items):
    batch = {
        "path": np.array([item.name for item in mixed_items]),
        "id": np.arange(6),
        "time_start": np.array([np.nan, np.nan, 0.2, np.nan, np.nan, np.nan]),
    }
    result = RayPredictor(settings, device="cpu")(batch)
    assert result["id"] is batch["id"]
    predictor = ClipPredictor(settings, "cpu")
    predictions = list(predictor(Item(i.name, i.place, 0.2) if "wide" in i.name else i for i in mixed_items))
    assert [*result["error"]] == [prediction.error for prediction in predictions]
    assert [*result["top_classes"]] == [
        [name for name, _ in prediction.best(predictor.class_names, 2)] or None for prediction in predictions
    ]
    assert result["class"][0] == result["top_classes"][0][0]
    with pytest.raises(ValueError, match="batch has no column 'path'; it has id"):
        RayPredictor(settings, device="cpu")({"id": np.arange(2)})
    with pytest.raises(ValueError, match="concurrency: got 0"):
        predict_dataset(None, settings, concurrency=0)


@pytest.mark.slow
def test_ray_dataset(settings, mixed_items, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
    data = pytest.importorskip("ray.data", reason="pandas, of the extra [ray], is not installed", exc_type=ImportError)
    from pyarrow.parquet import read_table

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        dataset = data.from_items([{"path": item.name, "id": number} for number, item in enumerate(mixed_items)])
        predict_dataset(dataset, settings, clips_at_once=4).write_parquet(str(tmp_path / "out"))
    finally:
        ray.shutdown()
    rows = sorted(read_table(tmp_path / "out").to_pylist(), key=lambda row: row["id"])
    predictor = ClipPredictor(settings, "cpu")
    for row, prediction in zip(rows, predictor(mixed_items), strict=True):
        best = prediction.best(predictor.class_names, 2)
        assert row["error"] == prediction.error
        assert row["top_classes"] == ([name for name, _ in best] or None)
        assert row["top_probabilities"] == (pytest.approx([value for _, value in best], abs=1e-6) if best else None)
