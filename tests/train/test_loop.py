"""Training runs: outputs, determinism, errors, precision, and evaluation."""

import json

import numpy as np
import pytest
import torch

from art.eval.metrics import ClassMismatch
from art.model.loading import load_model
from art.model.pretrained import VideoClassifier
from art.train import batches, loop
from art.train.checkpoint import RunExists, load_training_state, read_history
from art.train.config import ConfigError, load_config
from art.train.loop import NonFiniteLoss, train

pytestmark = pytest.mark.slow

STEPS = 2  # per epoch: nine clips in batches of four, the incomplete batch dropped


def test_contents_of_the_run_directory(unbroken, clips):
    run = unbroken / "art"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "classes.txt", "data.json", "metrics.jsonl", "tensorboard", "checkpoints", "evaluation.json",
        "predictions.npz",
    }  # fmt: skip
    for name in ("last", "best"):
        files = {path.name for path in (run / "checkpoints" / name).iterdir()}
        assert files == {"config.json", "model.safetensors", "training_state.pt", "training_state", "SHA256SUMS"}
    assert (run / "classes.txt").read_text() == (clips / "classes.txt").read_text()
    assert load_config(run / "config.yaml").output == str(run)
    assert any(path.name.startswith("events") for path in (run / "tensorboard").iterdir())


def test_logged_metrics(unbroken, recorded):
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


def test_reported_evaluation_is_that_of_the_last_checkpoint(unbroken, recorded):
    run = unbroken / "backbone"
    report = json.loads((run / "evaluation.json").read_text())
    last = recorded(run, "epoch")[-1]
    assert report["checkpoint"] == "checkpoints/last"
    assert (report["dataset"], report["split"], report["clips"], report["unreadable_clips"]) == ("csv", "test", 6, 0)
    assert report["top1"] == last["top1/test"] == report["correct_top1"] / 6
    assert report["training"]["steps"] == 3 * STEPS
    assert report["training"]["peak_memory_bytes"] > 2**20
    assert report["training"]["seconds"] > 0
    parameters = load_model(run / "checkpoints" / "last").parameters()
    assert report["training"]["parameters"] == sum(p.numel() for p in parameters)
    with np.load(run / "predictions.npz") as predictions:
        assert predictions["paths"][0] == "test_0_0.mp4"
        assert predictions["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        correct = predictions["probabilities"].argmax(1) == predictions["labels"]
        assert int(correct.sum()) == report["correct_top1"]
        np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, rtol=1e-5)


def test_runs_are_determined_by_the_seed(unbroken, configured, recorded, assert_same_run, tmp_path):
    train(configured(tmp_path / "same"))
    assert_same_run(tmp_path / "same", unbroken / "backbone")
    train(configured(tmp_path / "other", "seed=1"))
    assert recorded(tmp_path / "other", "step") != recorded(unbroken / "backbone", "step")


def test_non_finite_loss_names_its_clips_and_keeps_the_checkpoint(configured, in_step, tmp_path):
    def poison(trainer):
        trainer.state.model.video_head.weight.data.fill_(float("nan"))

    in_step(STEPS + 1, poison)
    with pytest.raises(NonFiniteLoss) as error:
        train(configured(tmp_path / "run"))
    message = str(error.value)
    assert "loss/total is nan" in message
    assert f"at step {STEPS + 1} (epoch 2)" in message
    assert message.count(".mp4") == 4
    assert load_training_state(tmp_path / "run" / "checkpoints" / "last")["position"]["step"] == STEPS
    weights = load_model(tmp_path / "run" / "checkpoints" / "last").state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_existing_run_is_replaced_only_with_overwrite(configured, recorded, tmp_path):
    config = configured(tmp_path / "run", "optim.epochs=1")
    train(config)
    before = (tmp_path / "run" / "evaluation.json").read_text()
    with pytest.raises(RunExists, match=r"--resume.*--overwrite"):
        train(config)
    assert (tmp_path / "run" / "evaluation.json").read_text() == before
    (tmp_path / "run" / "notes.txt").write_text("a file of the user")
    train(config, overwrite=True)
    assert (tmp_path / "run" / "notes.txt").exists()
    assert len(recorded(tmp_path / "run", "step")) == STEPS


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["model.backbone_options={widht: 3}"], ConfigError, "model: "),
        (["kind=art", "model.num_tracklets=9"], ConfigError, "num_tracklets"),
        (["device=cuda:99"], ValueError, "device: got 'cuda:99'"),
        (["data.validation_split=nowhere"], (FileNotFoundError, ValueError), "nowhere"),
    ],
)
def test_invalid_configuration_writes_nothing(configured, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        train(configured(tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_splits_must_have_the_same_classes(configured, tmp_path, monkeypatch):
    original = batches.open_split

    def open_split(data, split, run=None):
        clip_set = original(data, split, run)
        if split == "test":
            object.__setattr__(clip_set, "class_names", ("move right", "move up", "stand"))
        return clip_set

    monkeypatch.setattr(batches, "open_split", open_split)
    with pytest.raises(ClassMismatch, match="move up"):
        train(configured(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["backbone", "art"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_augmentations_together(configured, recorded, tmp_path, kind, precision):
    overrides = [
        "data.mixup=0.8", "data.cutmix=1", "data.rand_augment=2", "data.crop_aspect=[0.75, 1.33]", "data.hue=20",
        "data.sampling=dense", "data.stride=1", "data.test_views=2", "data.test_crops=3", "optim.epochs=2",
    ]  # fmt: skip
    result = train(configured(tmp_path / "run", f"kind={kind}", f"precision={precision}", *overrides))
    losses = [line["loss/total"] for line in recorded(tmp_path / "run", "step")]
    assert len(losses) == 2 * STEPS and all(np.isfinite(losses))
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["views"] == {"sampling": "dense, stride 1", "views": 2, "crops": 3}
    assert load_model(tmp_path / "run" / "checkpoints" / "last").sampling.kind == "dense"
    assert result.evaluation.total == 6


def test_only_the_reported_evaluation_uses_several_views(configured, tmp_path, unbroken, monkeypatch):
    views = []
    original = loop.evaluate

    def evaluate(model, batches, **options):
        views.append(batches.views)
        return original(model, batches, **options)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    result = train(configured(tmp_path / "run", "data.test_views=3"))
    assert views == [1, 1, 1, 3]
    with np.load(unbroken / "backbone" / "predictions.npz") as single_view:
        assert not np.array_equal(single_view["probabilities"], result.evaluation.probabilities)
    views.clear()
    train(configured(tmp_path / "plain"))
    assert views == [1, 1, 1]  # the last is the reported one


@pytest.mark.parametrize("kind", ["backbone", "art"])
def test_loss_of_mixed_clips_uses_soft_labels(configured, tmp_path, monkeypatch, kind):
    seen = []
    original = VideoClassifier.kinds[kind].loss

    def loss(self, output, labels):
        seen.append(labels)
        return original(self, output, labels)

    monkeypatch.setattr(VideoClassifier.kinds[kind], "loss", loss)
    train(configured(tmp_path / "run", f"kind={kind}", "data.mixup=1", "optim.epochs=1"))
    assert [labels.shape for labels in seen] == [(4, 3)] * STEPS
    assert any(((labels > 0) & (labels < 1)).any() for labels in seen)


def test_validation_split_is_evaluated_in_training(configured, recorded, tmp_path):
    train(configured(tmp_path / "run", "data.validation_split=train", "optim.epochs=2"))
    lines = recorded(tmp_path / "run", "epoch")
    assert all("top1/train" in line and "top1/test" not in line for line in lines)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["split"] == "test"


def test_eval_every(configured, recorded, tmp_path):
    train(configured(tmp_path / "run", "eval_every=2"))
    evaluated = [line["epoch"] for line in recorded(tmp_path / "run", "epoch") if "top1/test" in line]
    assert evaluated == [2, 3]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_and_resumes(configured, tmp_path, precision):
    overrides = [f"precision={precision}", "optim.clip_grad_norm=1"]
    train(configured(tmp_path / "run", *overrides, "optim.epochs=1"))
    result = train(configured(tmp_path / "run", *overrides, "optim.epochs=2"), resume=True)
    assert result.measured["steps"] == 2 * STEPS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["backbone", "art"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_trains_and_resumes(configured, recorded, tmp_path, kind, precision):
    overrides = [f"kind={kind}", "device=cuda", f"precision={precision}", "data.workers=1"]
    train(configured(tmp_path / "run", *overrides, "optim.epochs=1"))
    result = train(configured(tmp_path / "run", *overrides, "optim.epochs=2"), resume=True)
    assert len(recorded(tmp_path / "run", "step")) == result.measured["steps"] == 2 * STEPS
    assert result.measured["peak_device_memory_bytes"] > 0


def test_gradients_are_clipped(configured, tmp_path, monkeypatch):
    norms = []
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train(configured(tmp_path / "run", "optim.clip_grad_norm=0.001", "optim.epochs=1"))
    assert norms
    assert max(norms) == pytest.approx(0.001, rel=1e-3)
