import json

import numpy as np
import pytest
import torch

from art.eval.metrics import ClassMismatch
from art.model.pretrained import VideoClassifier, load_model
from art.train import loop as training_module
from art.train.checkpoint import load_training_state
from art.train.config import ConfigError, load_config
from art.train.loop import NonFiniteLoss, train
from art.train.run_dir import RunExists, read_history

STEPS = 2  # an epoch: nine clips in batches of four, the last of which is left out


def test_a_run_folder_holds_what_it_should(unbroken, clips):
    folder = unbroken / "art"
    found = {path.name for path in folder.iterdir()}
    assert found == {
        "config.yaml", "classes.txt", "metrics.jsonl", "tensorboard", "checkpoints", "evaluation.json",
        "predictions.npz",
    }  # fmt: skip
    for name in ("last", "best"):
        files = {path.name for path in (folder / "checkpoints" / name).iterdir()}
        assert files == {"config.json", "model.safetensors", "training_state.pt", "training_state"}
    assert (folder / "classes.txt").read_text() == (clips / "classes.txt").read_text()
    assert load_config(folder / "config.yaml").output == str(folder)
    assert any(path.name.startswith("events") for path in (folder / "tensorboard").iterdir())


def test_every_term_of_every_step_is_recorded_by_name(unbroken, recorded):
    steps = recorded(unbroken / "art", "step")
    assert [line["step"] for line in steps] == list(range(1, 3 * STEPS + 1))
    assert [line["epoch"] for line in steps] == [1, 1, 2, 2, 3, 3]
    terms = ("total", "video", "contextual", "spatial", "temporal", "tracklet", "mtc", "sema")
    assert all(f"loss/{term}" in steps[0] for term in terms)
    assert {name for name in steps[0] if name.startswith("lr/")} == {"lr/backbone", "lr/head", "lr/bank"}
    times = read_history(unbroken / "art" / "metrics.jsonl")[0]
    assert times["seconds/step"] > 0
    assert times["seconds/data"] > 0
    assert [line["epoch"] for line in recorded(unbroken / "art", "epoch")] == [1, 2, 3]


def test_the_reported_evaluation_is_of_the_last_checkpoint(unbroken, recorded):
    folder = unbroken / "backbone"
    told = json.loads((folder / "evaluation.json").read_text())
    last = recorded(folder, "epoch")[-1]
    assert told["checkpoint"] == "checkpoints/last"
    assert (told["dataset"], told["split"], told["clips"], told["unreadable_clips"]) == ("csv", "test", 6, 0)
    assert told["top1"] == last["top1/test"] == told["correct_top1"] / 6
    assert told["training"]["steps"] == 3 * STEPS
    assert told["training"]["peak_memory_bytes"] > 2**20
    assert told["training"]["seconds"] > 0
    assert told["training"]["parameters"] == sum(
        p.numel() for p in load_model(folder / "checkpoints" / "last").parameters()
    )
    with np.load(folder / "predictions.npz") as predictions:
        assert predictions["paths"][0] == "test_0_0.mp4"
        assert predictions["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        right = predictions["probabilities"].argmax(1) == predictions["labels"]
        assert int(right.sum()) == told["correct_top1"]
        np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, rtol=1e-5)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    unbroken, configured, recorded, assert_same_run, tmp_path
):
    train(configured(tmp_path / "again"))
    assert_same_run(tmp_path / "again", unbroken / "backbone")
    train(configured(tmp_path / "other", "seed=1"))
    assert recorded(tmp_path / "other", "step") != recorded(unbroken / "backbone", "step")


def test_a_loss_that_is_not_finite_stops_with_its_name_and_leaves_the_checkpoint(configured, in_step, tmp_path):
    def poison(training):
        training.state.model.video_head.weight.data.fill_(float("nan"))

    in_step(STEPS + 1, poison)
    with pytest.raises(NonFiniteLoss) as error:
        train(configured(tmp_path / "run"))
    message = str(error.value)
    assert "loss/total is nan" in message
    assert f"at step {STEPS + 1} (epoch 2)" in message
    assert message.count(".mp4") == 4
    state = load_training_state(tmp_path / "run" / "checkpoints" / "last")
    assert state["position"]["step"] == STEPS
    weights = load_model(tmp_path / "run" / "checkpoints" / "last").state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_folder_with_a_run_is_not_touched_unless_told_so(configured, recorded, tmp_path):
    config = configured(tmp_path / "run", "optim.epochs=1")
    train(config)
    before = (tmp_path / "run" / "evaluation.json").read_text()
    with pytest.raises(RunExists, match=r"--resume.*--overwrite"):
        train(config)
    assert (tmp_path / "run" / "evaluation.json").read_text() == before
    (tmp_path / "run" / "notes.txt").write_text("the user's own")
    train(config, overwrite=True)
    assert (tmp_path / "run" / "notes.txt").exists()
    assert len(recorded(tmp_path / "run", "step")) == STEPS


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (["model.backbone_options={widht: 3}"], ConfigError, "model: "),
        (["kind=art", "model.num_tracklets=9"], ConfigError, "num_tracklets"),
        (["device=cuda:99"], ValueError, "device: got 'cuda:99'"),
        (["data.validation_split=nowhere"], (FileNotFoundError, ValueError), "nowhere"),
    ],
)
def test_a_mistake_leaves_no_folder(configured, tmp_path, overrides, error, told):
    with pytest.raises(error, match=told):
        train(configured(tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_splits_with_other_classes_are_refused(clips, configured, tmp_path, monkeypatch):
    from art.train import batches

    original = batches.open_split

    def other_classes(config, split):
        found = original(config, split)
        if split == "test":
            object.__setattr__(found, "class_names", ("move right", "move up", "stand"))
        return found

    monkeypatch.setattr(batches, "open_split", other_classes)
    with pytest.raises(ClassMismatch, match="move up"):
        train(configured(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["backbone", "art"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_augmentation_at_once_trains(configured, recorded, tmp_path, kind, precision):
    overrides = [
        "data.mixup=0.8", "data.cutmix=1", "data.rand_augment=2", "data.crop_aspect=[0.75, 1.33]", "data.hue=20",
        "data.sampling=dense", "data.stride=1", "data.test_views=2", "data.test_crops=3", "optim.epochs=2",
    ]  # fmt: skip
    result = train(configured(tmp_path / "run", f"kind={kind}", f"precision={precision}", *overrides))
    losses = [line["loss/total"] for line in recorded(tmp_path / "run", "step")]
    assert len(losses) == 2 * STEPS and all(np.isfinite(losses))
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert told["views"] == {"sampling": "dense, stride 1", "views": 2, "crops": 3}
    assert load_model(tmp_path / "run" / "checkpoints" / "last").sampling.kind == "dense"
    assert result.evaluation.total == 6


def test_evaluation_during_training_looks_once_and_the_reported_one_as_often_as_asked(
    configured, tmp_path, unbroken, monkeypatch
):
    views = []
    original = training_module.evaluate

    def evaluate(model, batches, **options):
        views.append(batches.views)
        return original(model, batches, **options)

    monkeypatch.setattr(training_module, "evaluate", evaluate)
    result = train(configured(tmp_path / "run", "data.test_views=3"))
    assert views == [1, 1, 1, 3]
    with np.load(unbroken / "backbone" / "predictions.npz") as once:
        assert not np.array_equal(once["probabilities"], result.evaluation.probabilities)
    views.clear()
    train(configured(tmp_path / "plain"))
    assert views == [1, 1, 1], "the last is the reported one"


@pytest.mark.parametrize("kind", ["backbone", "art"])
def test_the_loss_is_taken_of_the_shares_of_mixed_clips(configured, tmp_path, monkeypatch, kind):
    seen = []
    original = VideoClassifier.kinds[kind].loss

    def loss(self, output, labels):
        seen.append(labels)
        return original(self, output, labels)

    monkeypatch.setattr(VideoClassifier.kinds[kind], "loss", loss)
    train(configured(tmp_path / "run", f"kind={kind}", "data.mixup=1", "optim.epochs=1"))
    assert [labels.shape for labels in seen] == [(4, 3)] * STEPS
    assert any(((labels > 0) & (labels < 1)).any() for labels in seen)


def test_the_validation_split_chooses_the_best_and_the_test_split_is_reported(configured, recorded, tmp_path):
    config = configured(tmp_path / "run", "data.validation_split=train", "optim.epochs=2")
    train(config)
    lines = recorded(tmp_path / "run", "epoch")
    assert all("top1/train" in line and "top1/test" not in line for line in lines)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["split"] == "test"


def test_evaluation_each_so_many_epochs_and_always_after_the_last(configured, recorded, tmp_path):
    train(configured(tmp_path / "run", "eval_every=2"))
    evaluated = [line["epoch"] for line in recorded(tmp_path / "run", "epoch") if "top1/test" in line]
    assert evaluated == [2, 3]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_and_resumes(configured, tmp_path, precision):
    train(configured(tmp_path / "run", f"precision={precision}", "optim.epochs=1", "optim.clip_grad_norm=1"))
    longer = configured(tmp_path / "run", f"precision={precision}", "optim.epochs=2", "optim.clip_grad_norm=1")
    result = train(longer, resume=True)
    assert result.measured["steps"] == 2 * STEPS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["backbone", "art"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda_it_trains_resumes_and_tells_its_memory(configured, recorded, tmp_path, kind, precision):
    overrides = [f"kind={kind}", "device=cuda", f"precision={precision}", "data.workers=1"]
    train(configured(tmp_path / "run", *overrides, "optim.epochs=1"))
    result = train(configured(tmp_path / "run", *overrides, "optim.epochs=2"), resume=True)
    assert len(recorded(tmp_path / "run", "step")) == result.measured["steps"] == 2 * STEPS
    assert result.measured["peak_device_memory_bytes"] > 0


def test_gradients_are_clipped_to_the_norm(configured, tmp_path, monkeypatch):
    norms = []
    original = torch.optim.SGD.step

    def stepping(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", stepping)
    train(configured(tmp_path / "run", "optim.clip_grad_norm=0.001", "optim.epochs=1"))
    assert norms
    assert max(norms) == pytest.approx(0.001, rel=1e-3)
