"""Predictions as Parquet files: what is in them, and what a second call does."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from art.cli import main
from art.tools.predict import ClipPredictor, Item, PredictionSettings, open_inputs
from art.tools.predict import parquet as writing
from art.tools.predict.parquet import predict_to_parquet

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'art-kernels[parquet]'")


@pytest.fixture(scope="module")
def settings(unbroken):
    return PredictionSettings(unbroken / "art", top_k=2)


@pytest.fixture(scope="module")
def answers(settings, clips):
    """Of each clip of the data set by itself, by name."""
    predictor = ClipPredictor(settings, "cpu")
    items = [item for source in open_inputs([clips], 100) for item in source.items]
    assert len(items) == 15
    return {answer.item.name: answer for answer in predictor(items)}


def rows(folder):
    return {row["clip"]: row for row in pq.read_table(folder).to_pylist()}


def test_a_row_for_each_clip(settings, answers, clips, tmp_path):
    (tmp_path / "gone.txt").write_text("gone.mp4\n")
    out = tmp_path / "out"
    written = predict_to_parquet(
        [clips, tmp_path / "gone.txt"], settings, out, devices=["cpu"], all_probabilities=True, part_clips=6
    )
    assert (written.clips, written.errors, written.parts, written.kept) == (16, 1, 3, 0)
    assert sorted(path.name for path in out.iterdir()) == [
        "_predictions.json", *(f"part-{number:06d}.parquet" for number in range(3)),
    ]  # fmt: skip
    told = rows(out)
    gone = told.pop(str(tmp_path / "gone.mp4"))
    assert gone.pop("error") == "there is no such file"
    assert {value for name, value in gone.items() if name != "clip"} == {None}
    classes = json.loads(pq.read_schema(out / "part-000000.parquet").metadata[b"art.class_names"])
    assert classes == ["move right", "move left", "stand"]
    assert told.keys() == answers.keys()
    for name, row in told.items():
        own = answers[name].probabilities
        assert np.allclose(row["probabilities"], own, atol=1e-6)
        assert (row["error"], row["start"], row["end"]) == (None, None, None)
        assert row["class"] == row["top_classes"][0] == classes[own.argmax()]
        assert row["probability"] == row["top_probabilities"][0] == max(row["probabilities"])
        assert len(row["top_classes"]) == 2


def test_only_what_is_missing_is_made_again(settings, clips, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict_to_parquet([clips], settings, out, devices=["cpu"], part_clips=4)
    first = rows(out)
    (out / "part-000002.parquet").unlink()
    (out / "_part-000002.parquet").write_bytes(b"half a file")
    made = []
    original = writing.write_part
    monkeypatch.setattr(writing, "write_part", lambda path, *rest: (made.append(path.name), original(path, *rest)))
    written = predict_to_parquet([clips], settings, out, devices=["cpu"], part_clips=4)
    assert (written.parts, written.kept, made) == (4, 3, ["part-000002.parquet"])
    assert rows(out) == first

    for other, told in (
        ({"settings": PredictionSettings(settings.checkpoint, top_k=1)}, r"top_k \(was 2, is 1\)"),
        ({"settings": PredictionSettings(settings.checkpoint.parent / "backbone", top_k=2)}, "checkpoint "),
        ({"all_probabilities": True}, "all_probabilities"),
        ({"inputs": [clips / "test_0_0.mp4"]}, "clips .*, parts"),
    ):
        given = {"inputs": [clips], "settings": settings, **other}
        with pytest.raises(ValueError, match=rf"contains predictions with another {told}"):
            predict_to_parquet(given.pop("inputs"), given.pop("settings"), out, devices=["cpu"], part_clips=4, **given)
    assert rows(out) == first


def test_a_folder_of_something_else_is_left_alone(settings, clips, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and has no _predictions\.json"):
        predict_to_parquet([clips], settings, tmp_path, devices=["cpu"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_command_that_is_killed_goes_on(settings, answers, clips, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(clips), "--checkpoint", str(settings.checkpoint), "--top-k", "2", "--out", str(out)]
    command += ["--part-clips", "1", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "art", *command, "--jobs", "2"], start_new_session=True)
    while not list(out.glob("part-*.parquet")):
        assert process.poll() is None, "it ended before it wrote anything"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its processes end with it
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 0 < len(there) <= 15
    assert main(command) == 0
    assert f"15 clips in 15 files ({len(there)} were there), 0 not readable" in capsys.readouterr().out
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there
    told = rows(out)
    assert told.keys() == answers.keys()
    for name, row in told.items():
        assert row["probability"] == pytest.approx(answers[name].probabilities.max(), abs=1e-6)


def test_shards_are_a_part_each(settings, answers, clips, tmp_path):
    pytest.importorskip("webdataset", reason="shards are read by webdataset, which is not installed")
    from art.data.datasets.base import open_dataset
    from art.data.loading.shards import write_shards

    split = write_shards(open_dataset("csv", clips, "test"), tmp_path / "shards", shard_bytes=5000)
    written = predict_to_parquet([tmp_path / "shards" / "test.json"], settings, tmp_path / "out", devices=["cpu"])
    assert (written.clips, written.errors, written.parts) == (6, 0, len(split.shards))
    shares = sorted(row["probability"] for row in rows(tmp_path / "out").values())
    own = sorted(float(answer.probabilities.max()) for name, answer in answers.items() if "test_" in name)
    assert shares == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--devices", "cpu"], "--devices, --jobs and --all-probabilities need --out"),
        (["--all-probabilities"], "--devices, --jobs and --all-probabilities need --out"),
        (["--out", "OUT", "--json"], "--json: prints answers"),
        (["--out", "OUT", "--part-clips", "0"], "--part-clips: got 0"),
        (["--out", "OUT", "--devices", "cpu,tpu"], "device: got 'tpu'"),
        (["--precision", "int8"], "precision: got 'int8'"),
    ],
)
def test_options_that_do_not_fit(settings, clips, tmp_path, capsys, arguments, told):
    arguments = [str(tmp_path / "out") if argument == "OUT" else argument for argument in arguments]
    assert main(["predict", str(clips), "--checkpoint", str(settings.checkpoint), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_it_is_told_how_to_get_it(settings, clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'art-kernels\[parquet\]'"):
        predict_to_parquet([clips], settings, tmp_path / "out", devices=["cpu"])
    assert not (tmp_path / "out").exists()


def test_an_answer_names_the_best_first():
    answer = writing.Prediction(Item("a", None), np.array([0.2, 0.5, 0.3], dtype=np.float32))
    assert [name for name, _ in answer.best(["x", "y", "z"], 2)] == ["y", "z"]
    assert len(answer.best(["x", "y", "z"], 9)) == 3
