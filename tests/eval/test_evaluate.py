import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from art.data.dataset import DataError
from art.data.datasets.splits import read_splits
from art.data.decoding.video import read_clip
from art.data.transforms.augment import CenterCrop
from art.data.transforms.sampling import FrameSampling
from art.eval.evaluate import EvaluationStopped, evaluate, evaluate_checkpoint
from art.eval.metrics import ClassMismatch
from art.eval.predictions import Predictions, write_evaluation
from art.eval.report.samples import clip_reader
from art.model import find_checkpoint
from art.model.loading import build_model, load_model
from art.train.batches import EvaluationBatches, open_split
from art.train.config import ConfigError
from art.train.distributed import DistContext
from art.train.loop import train

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def setting(configured, tmp_path):
    """An untrained model, the test split, and its batches."""
    config = configured(tmp_path, "model.test_crop=0.75")
    clip_set = open_split(config.data, "test")
    torch.manual_seed(0)
    model = build_model("backbone", clip_set.class_names, config.model)
    return model, clip_set, EvaluationBatches(clip_set, config.data, config.optim, model, CPU)


def test_clips_are_in_order_and_the_state_is_unchanged(setting):
    model, clip_set, batches = setting
    model.train()
    before = torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    result = evaluate(model, batches, device=CPU)
    assert result.indices.tolist() == list(range(6))
    assert result.labels.tolist() == list(clip_set.labels)
    assert result.class_names == clip_set.class_names
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def assert_equals_predict(result, model, clip_set, **options):
    for row, index in enumerate(result.indices.tolist()):
        predicted = dict(model.predict(clip_set.clips[index].path, **options))
        expected = [predicted[name] for name in clip_set.class_names]
        np.testing.assert_allclose(result.probabilities[row], expected, atol=1e-5)


def test_probabilities_equal_those_of_predict(setting):
    model, clip_set, batches = setting
    assert_equals_predict(evaluate(model, batches, device=CPU), model, clip_set)


@pytest.mark.parametrize(("views", "crops"), [(2, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("sampling", [FrameSampling(), FrameSampling("dense", 1)])
def test_several_views(configured, tmp_path, views, crops, sampling):
    overrides = [f"data.test_views={views}", f"data.test_crops={crops}", "kind=art"]
    config = configured(tmp_path, *overrides, f"data.sampling={sampling.kind}")
    clip_set = open_split(config.data, "test")
    torch.manual_seed(0)
    model = build_model("art", clip_set.class_names, config.model)
    model.sampling = sampling
    batches = EvaluationBatches(clip_set, config.data, config.optim, model, CPU)
    assert all(len(batch.video) <= config.optim.batch_size for batch in batches)
    result = evaluate(model, batches, device=CPU)
    assert result.indices.tolist() == list(range(6))
    assert result.order.shape == (6 * views * crops, 3, 2)
    assert_equals_predict(result, model, clip_set, views=views, crops=crops)
    batches = EvaluationBatches(clip_set, config.data, config.optim, model, CPU, single_view=True)
    single = evaluate(model, batches, device=CPU)
    assert single.order.shape == (6, 3, 2)
    assert views == 1 or not np.array_equal(single.probabilities, result.probabilities)


def test_views_of_a_clip_are_consecutive(configured, tmp_path):
    config = configured(tmp_path, "data.test_views=2", "optim.batch_size=3")
    clip_set = open_split(config.data, "test")
    model = build_model("backbone", clip_set.class_names, config.model)
    (first, *_) = EvaluationBatches(clip_set, config.data, config.optim, model, CPU)
    assert first.indices.tolist() == first.labels.tolist() == [0, 0], "one clip: two would be four views"
    frames = read_clip(clip_set.clips[0].path, 3, views=2)
    assert torch.equal(first.video.flatten(0, 1), model.center_crop(frames[None])[0])


def test_ranks_evaluate_every_clip_once(configured, tmp_path):
    config = configured(tmp_path, "data.test_views=2")
    clip_set = open_split(config.data, "test")
    torch.manual_seed(0)
    model = build_model("backbone", clip_set.class_names, config.model)
    expected = evaluate(model, EvaluationBatches(clip_set, config.data, config.optim, model, CPU), device=CPU)
    found = {}
    for rank in range(4):
        batches = EvaluationBatches(clip_set, config.data, config.optim, model, CPU, dist_ctx=DistContext(CPU, rank, 4))
        part = evaluate(model, batches, device=CPU)
        assert not found.keys() & set(part.indices.tolist())
        found |= dict(zip(part.indices.tolist(), part.probabilities, strict=True))
    np.testing.assert_allclose([found[index] for index in range(6)], expected.probabilities, atol=1e-6)


def test_center_crop_is_that_of_the_model(setting):
    model, clip_set, batches = setting
    frames = read_clip(clip_set.clips[0].path, model.num_frames)
    video = next(iter(batches)).video[0]
    assert torch.equal(video, CenterCrop(model.input_size, fraction=0.75)(frames[None])[0])
    assert torch.equal(video, clip_reader(model)(clip_set.clips[0])), "the report shows the same frames"


def test_stop_between_batches(setting):
    model, _, batches = setting
    taken = []

    def counted():
        for batch in batches:
            taken.append(batch)
            yield batch

    with pytest.raises(EvaluationStopped) as stopped:
        evaluate(model, counted(), device=CPU, should_stop=lambda: 15 if taken else 0)
    assert len(taken) == 1
    assert stopped.value.signal_number == 15


def test_no_batches(setting):
    with pytest.raises(ValueError, match="got no clip that could be read"):
        evaluate(setting[0], [], device=CPU)


def test_class_mismatch_is_raised_before_the_first_batch(setting, configured, tmp_path):
    config = configured(tmp_path)
    model = build_model("backbone", ["move left", "move right", "stand"], config.model)
    with pytest.raises(ClassMismatch, match="another order"):
        EvaluationBatches(setting[1], config.data, config.optim, model, CPU)


def test_unreadable_clips_are_skipped_and_counted(clips, configured, tmp_path):
    root = tmp_path / "clips"
    shutil.copytree(clips, root)
    (root / "test_1_0.mp4").write_bytes(b"no video")
    config = configured(tmp_path / "run", f"data.root={root}", "data.max_failed_fraction=0.2")
    clip_set = open_split(config.data, "test")
    model = build_model("backbone", clip_set.class_names, config.model)
    result = evaluate(model, EvaluationBatches(clip_set, config.data, config.optim, model, CPU), device=CPU)
    assert result.indices.tolist() == [0, 1, 3, 4, 5]
    write_evaluation(tmp_path / "out", Predictions.of(result, clip_set), {"checkpoint": "x"})
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["unreadable_clips"] == 1
    strict = configured(tmp_path / "run", f"data.root={root}")
    with pytest.raises(DataError, match=r"test_1_0\.mp4"):
        evaluate(model, EvaluationBatches(clip_set, strict.data, strict.optim, model, CPU), device=CPU)


def test_links_to_another_query_are_counted(configured, tmp_path, monkeypatch):
    config = configured(tmp_path, "model.num_tracklets=2", "kind=art")
    clip_set = open_split(config.data, "test")
    model = build_model("art", clip_set.class_names, config.model)
    batches = EvaluationBatches(clip_set, config.data, config.optim, model, CPU)
    assert evaluate(model, batches, device=CPU).relinked == 0

    def swapped_in_the_last_frame(responses, **_):
        order = torch.arange(2).repeat(*responses.shape[:2], 1)
        order[:, -1] = order[:, -1].flip(1)
        return SimpleNamespace(order=order)

    monkeypatch.setattr("art.model.art_model.link_tracklets", swapped_in_the_last_frame)
    result = evaluate(model, batches, device=CPU)
    assert result.order.shape == (6, 3, 2)
    assert result.relinked == 1 / 2


@pytest.mark.parametrize("kind", ["backbone", "art"])
def test_checkpoint_reproduces_the_results_of_its_run(unbroken, tmp_path, kind):
    run = unbroken / kind
    result = evaluate_checkpoint(run / "checkpoints" / "last", report=tmp_path / "out")
    with np.load(run / "predictions.npz") as predictions:
        np.testing.assert_array_equal(result.probabilities, predictions["probabilities"])
    expected, again = (json.loads((path / "evaluation.json").read_text()) for path in (run, tmp_path / "out"))
    assert [again[key] for key in ("top1", "clips", "confusion")] == [
        expected[key] for key in ("top1", "clips", "confusion")
    ]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"evaluation.json", "predictions.npz", "report.html"}


def test_run_directory_resolves_to_its_last_checkpoint(unbroken):
    assert find_checkpoint(unbroken / "art") == unbroken / "art" / "checkpoints" / "last"
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        find_checkpoint(unbroken)


def test_checkpoint_without_a_run(unbroken, clips, tmp_path):
    """Only the data must be specified: the checkpoint contains its sampling."""
    model = load_model(unbroken / "backbone" / "checkpoints" / "last")
    model.sampling = FrameSampling("dense")
    model.save_pretrained(tmp_path / "dense")
    assert load_model(tmp_path / "dense").sampling == model.sampling
    overrides = ["data.name=csv", f"data.root={clips}", "data.workers=0", "device=cpu"]
    assert evaluate_checkpoint(tmp_path / "dense", split="train", overrides=overrides).total == 9
    result = evaluate_checkpoint(tmp_path / "dense", overrides=overrides, report=tmp_path / "out")
    views = json.loads((tmp_path / "out" / "evaluation.json").read_text())["views"]
    assert views == {"sampling": "dense, stride 1", "views": 1, "crops": 1}
    first = dict(model.predict(clips / "test_0_0.mp4"))
    np.testing.assert_allclose(result.probabilities[0], [first[name] for name in model.class_names], atol=1e-5)
    sparse = evaluate_checkpoint(tmp_path / "dense", overrides=[*overrides, "data.sampling=sparse"])
    assert not np.array_equal(sparse.probabilities, result.probabilities)


def test_split_of_class_directories_is_that_of_the_run(clips, configured, tmp_path, caplog):
    root = tmp_path / "own"
    for i, source in enumerate(sorted(clips.glob("train_[01]*.mp4"))):
        target = root / ("run", "walk")[i % 2] / f"{i}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    own = ["data.name=folder", f"data.root={root}", "data.split_seed=1"]
    result = train(configured(tmp_path / "run", *own, "optim.epochs=1", "optim.batch_size=2"))
    assert "data: no split directories: " in caplog.text
    tested = [path for path, split in read_splits(tmp_path / "run/splits.csv").items() if split == "test"]
    assert len(tested) == result.evaluation.total == 2
    root.rename(tmp_path / "moved")
    (tmp_path / "moved/run/new.mp4").write_bytes(source.read_bytes())
    moved = [f"data.root={tmp_path / 'moved'}"]
    again = evaluate_checkpoint(tmp_path / "run", overrides=moved, report=tmp_path / "report")
    assert again.total == 2 and (again.confusion == result.evaluation.confusion).all()


def test_keys_of_the_checkpoint_cannot_be_overridden(unbroken):
    with pytest.raises(ConfigError, match=r"model\.num_frames: belongs to the checkpoint"):
        evaluate_checkpoint(unbroken / "backbone", overrides=["model.num_frames=5"])
