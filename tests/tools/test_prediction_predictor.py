"""Answers for many clips, in batches, and as a batch of Ray Data."""

from pathlib import Path

import numpy as np
import pytest

from art.data.motion.render import write_video
from art.model.loading import load_model
from art.tools.predict import ClipPredictor, Item, PredictionSettings
from art.tools.predict.ray_data import RayPredictor, predict_dataset


@pytest.fixture(scope="module")
def checkpoint(unbroken):
    return unbroken / "art"


@pytest.fixture(scope="module")
def mixed(clips, tmp_path_factory):
    """Four clips of two sizes, one that is broken and one that is missing, among them."""
    place = tmp_path_factory.mktemp("mixed")
    pictures = np.random.default_rng(0).integers(0, 255, (7, 40, 64, 3), dtype=np.uint8)
    write_video(place / "wide.mp4", pictures, fps=12)
    (place / "broken.mp4").write_bytes(b"no video")
    paths = [clips / "test_0_0.mp4", place / "broken.mp4", place / "wide.mp4", clips / "test_1_1.mp4",
             place / "gone.mp4", clips / "test_2_0.mp4"]  # fmt: skip
    return [Item(str(path), path) for path in paths]


@pytest.mark.parametrize(("views", "crops", "batch_size", "workers"), [(1, 1, 4, 0), (2, 3, 4, 0), (1, 3, 100, 1)])
def test_a_clip_has_the_answer_that_it_has_alone(checkpoint, mixed, views, crops, batch_size, workers):
    settings = PredictionSettings(checkpoint, views=views, crops=crops, batch_size=batch_size, workers=workers)
    predictor = ClipPredictor(settings, "cpu")
    answers = list(predictor(mixed))
    assert [answer.item for answer in answers] == mixed
    model = load_model(checkpoint / "checkpoints" / "last")
    for answer in answers:
        if answer.error is not None:
            assert answer.best(predictor.class_names, 2) == []
            continue
        alone = model.predict(answer.item.name, 2, views=views, crops=crops)
        best = answer.best(predictor.class_names, 2)
        assert [name for name, _ in best] == [name for name, _ in alone]
        assert [share for _, share in best] == pytest.approx([share for _, share in alone], abs=1e-6)
    told = {Path(answer.item.name).name: answer.error for answer in answers if answer.error is not None}
    assert told.keys() == {"broken.mp4", "gone.mp4"}
    assert told["gone.mp4"] == "there is no such file"


def test_a_part_of_a_file_is_predicted_by_itself(checkpoint, clips):
    path = clips / "test_0_0.mp4"
    whole, part, none = ClipPredictor(PredictionSettings(checkpoint), "cpu")(
        [Item("a", path), Item("b", path, 0.2, 0.4), Item("c", path, 50.0, 60.0)]
    )
    assert not np.array_equal(whole.probabilities, part.probabilities)
    assert none.error is not None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"top_k": 0}, "top_k: got 0"), ({"crops": 2}, "crops: got 2"), ({"workers": -1}, "workers: got -1"),
     ({"precision": "int8"}, "precision: got 'int8'"), ({"batch_size": 0}, "batch_size: got 0")],
)  # fmt: skip
def test_settings_out_of_range(wrong, told):
    with pytest.raises(ValueError, match=told):
        PredictionSettings(Path("nowhere"), **wrong)


def test_a_batch_of_ray_data_has_columns_added(checkpoint, mixed):
    settings = PredictionSettings(checkpoint, top_k=2)
    batch = {
        "path": np.array([item.name for item in mixed]),
        "id": np.arange(6),
        "time_start": np.array([np.nan, np.nan, 0.2, np.nan, np.nan, np.nan]),
    }
    told = RayPredictor(settings, device="cpu")(batch)
    assert told["id"] is batch["id"]
    timed = [Item(i.name, i.place, 0.2) if "wide" in i.name else i for i in mixed]
    predictor = ClipPredictor(settings, "cpu")
    answers = list(predictor(timed))
    assert [*told["error"]] == [answer.error for answer in answers]
    assert [*told["top_classes"]] == [
        [name for name, _ in answer.best(predictor.class_names, 2)] or None for answer in answers
    ]
    assert told["class"][0] == told["top_classes"][0][0]
    with pytest.raises(ValueError, match="batch has no column 'path'; it has id"):
        RayPredictor(settings, device="cpu")({"id": np.arange(2)})
    with pytest.raises(ValueError, match="concurrency: got 0"):
        predict_dataset(None, settings, concurrency=0)


def test_a_ray_dataset_is_predicted_and_written(checkpoint, mixed, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'art-kernels[ray]'")
    data = pytest.importorskip(
        "ray.data", reason="it needs pandas: pip install 'art-kernels[ray]'", exc_type=ImportError
    )
    from pyarrow import parquet

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        dataset = data.from_items([{"path": item.name, "id": number} for number, item in enumerate(mixed)])
        told = predict_dataset(dataset, PredictionSettings(checkpoint, top_k=2), clips_at_once=4)
        told.write_parquet(str(tmp_path / "told"))
    finally:
        ray.shutdown()
    rows = sorted(parquet.read_table(tmp_path / "told").to_pylist(), key=lambda row: row["id"])
    predictor = ClipPredictor(PredictionSettings(checkpoint), "cpu")
    for row, answer in zip(rows, predictor(mixed), strict=True):
        best = answer.best(predictor.class_names, 2)
        assert row["error"] == answer.error
        assert row["top_classes"] == ([name for name, _ in best] or None)
        assert row["top_probabilities"] == (pytest.approx([share for _, share in best], abs=1e-6) if best else None)
