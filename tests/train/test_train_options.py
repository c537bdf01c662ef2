"""Options of a run that must not change its result, or change it in a known way."""

import functools
import gzip
import json
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from art.backbones.tiny import Tiny
from art.eval.evaluate import evaluate_checkpoint
from art.model.loading import load_model
from art.train.checkpoint import load_training_state, read_history
from art.train.config import ConfigError
from art.train.loop import NonFiniteLoss, train
from art.train.runtime import Interrupted

pytestmark = pytest.mark.slow

STEPS = 6  # of three epochs
# A backbone without batch norm, and no dropout, so that microbatches are equivalent to the batch.
PER_CLIP = [
    "kind=art",
    "model.backbone=uniformerv2_b16",
    "model.backbone_options={}",  # removes the options of the default backbone
    "model.backbone_options={width: 24, layers: 2, heads: 2, patch_size: 8, input_size: 24, global_dropout: 0}",
    "model.dropout=0",
]


def load_weights(run):
    return load_model(run / "checkpoints" / "last").state_dict()


def assert_close_runs(one, other, recorded, tolerance):
    """Compares every number of every step and epoch, and every weight."""
    for event in ("step", "epoch"):
        for a, b in zip(recorded(one, event), recorded(other, event), strict=True):
            assert a.pop("event") == b.pop("event")
            assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    assert_close(load_weights(one), load_weights(other), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.clip_grad_norm=1", "optim.warmup_epochs=1.5", "optim.schedule=cosine", "optim.ema=0.9"],
        ["data.mixup=0.8", "data.cutmix=1"],
        ["optim.batch_size=12"],  # nine clips: microbatches of six and three
    ],
    ids=["clipped", "mixed", "incomplete"],
)
def test_microbatches_are_equivalent_to_the_batch(configured, recorded, tmp_path, overrides):
    train(configured(tmp_path / "batch", *PER_CLIP, *overrides))
    train(configured(tmp_path / "microbatches", *PER_CLIP, *overrides, "optim.accumulate=2"))
    assert recorded(tmp_path / "microbatches", "step")[-1]["gradient_norm/total"] > 0
    assert_close_runs(tmp_path / "microbatches", tmp_path / "batch", recorded, 1e-5)


def test_gradients_are_unscaled_once_per_step(configured, recorded, tmp_path, monkeypatch):
    # A scale with which no step is skipped.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=8.0))
    for name, accumulate in (("batch", 1), ("microbatches", 4)):
        overrides = ["precision=fp16", f"optim.accumulate={accumulate}", "optim.epochs=1"]
        train(configured(tmp_path / name, *PER_CLIP, *overrides))
    names = ("batch", "microbatches")
    scalers = [load_training_state(tmp_path / name / "checkpoints" / "last")["scaler"] for name in names]
    assert scalers[0] == scalers[1]
    assert scalers[1]["_growth_tracker"] == STEPS / 3
    one, other = (recorded(tmp_path / name, "step")[-1] for name in names)
    assert other["gradient_norm/total"] == pytest.approx(one["gradient_norm/total"], rel=0.05)


def test_non_finite_microbatch_names_its_clips_and_keeps_the_checkpoint(configured, in_step, tmp_path):
    saved = {}

    def poison(trainer):
        checkpoints = tmp_path / "run" / "checkpoints"
        saved.update({path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()})
        original, calls = trainer.state.model.loss, []

        def loss(*args):
            calls.append(args)
            terms = original(*args)
            terms.total.mul_(float("nan") if len(calls) == 2 else 1.0)
            return terms

        trainer.state.model.loss = loss

    in_step(STEPS // 3 + 1, poison)
    with pytest.raises(NonFiniteLoss) as error:
        train(configured(tmp_path / "run", "optim.accumulate=4"))
    message = str(error.value)
    assert "loss/total is nan" in message
    assert "at step 3 (epoch 2)" in message
    assert message.count(".mp4") == 1
    assert f"{tmp_path / 'run' / 'checkpoints' / 'last'} has the last valid state" in message
    assert saved
    assert all(path.read_bytes() == content for path, content in saved.items())


def test_ema_is_evaluated_and_saved_and_resumes(configured, in_step, recorded, assert_same_run, tmp_path):
    averages = {}

    def record(trainer):
        """Averages the weights after each step independently, in float64."""
        original, decay = trainer.state.after_optimizer_step, 0.6

        def after_optimizer_step():
            original()
            steps = trainer.state.position.step
            for name, value in trainer.state.model.state_dict().items():
                now, weight = value.double(), min(decay, (1 + steps) / (10 + steps))
                averages[name] = weight * averages[name] + (1 - weight) * now if value.is_floating_point() else now

        averages.update({name: v.double() for name, v in trainer.state.model.state_dict().items()})
        trainer.state.after_optimizer_step = after_optimizer_step

    overrides = ["optim.ema=0.6", "eval_every=3"]
    in_step(1, record)
    result = train(configured(tmp_path / "run", *overrides))
    weights = load_weights(tmp_path / "run")
    expected = {name: value.to(weights[name].dtype) for name, value in averages.items()}
    assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    train(configured(tmp_path / "plain", "eval_every=3"))
    plain = load_weights(tmp_path / "plain")
    assert not torch.allclose(weights["video_head.weight"], plain["video_head.weight"], rtol=1e-3)
    # Training steps do not depend on the average.
    assert recorded(tmp_path / "run", "step") == recorded(tmp_path / "plain", "step")
    evaluation = evaluate_checkpoint(tmp_path / "run")
    assert_close(torch.tensor(evaluation.probabilities), torch.tensor(result.evaluation.probabilities))

    in_step(4, lambda trainer: trainer.signals._handle(15, None))
    with pytest.raises(Interrupted):
        train(configured(tmp_path / "stopped", *overrides))
    train(configured(tmp_path / "stopped", *overrides), resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "run")


def test_layer_decay_requires_ordered_layers(configured, tmp_path, monkeypatch):
    result = train(configured(tmp_path / "run", "optim.layer_decay=0.5", "optim.epochs=1"))
    assert result.measured["steps"] == STEPS / 3
    monkeypatch.setattr(Tiny, "parameters_by_depth", lambda self: None)
    with pytest.raises(ConfigError, match=r"optim\.layer_decay"):
        train(configured(tmp_path / "other", "optim.layer_decay=0.5"))
    assert not (tmp_path / "other").exists()


def test_compiled_model_trains_and_saves_plain_weights(configured, recorded, unbroken, tmp_path, monkeypatch):
    compiled = []
    original = nn.Module.compile
    # The eager backend captures the graphs without generating code, which takes half a minute.
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self) or original(self, backend="eager"))
    train(configured(tmp_path / "run", "compile=true", "optim.epochs=1", "model.dropout=0"))
    assert len(compiled) == 1
    train(configured(tmp_path / "plain", "optim.epochs=1", "model.dropout=0"))
    assert_close_runs(tmp_path / "run", tmp_path / "plain", recorded, 1e-3)
    assert load_weights(tmp_path / "run").keys() == load_weights(unbroken / "backbone").keys()


@pytest.fixture
def restore_tf32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("restore_tf32")
def test_tf32(configured, tmp_path):
    for allowed in (True, False):
        train(configured(tmp_path / str(allowed), f"tf32={allowed}", "optim.epochs=1"))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


def test_optional_metrics(configured, recorded, tmp_path):
    overrides = ["kind=art", "log.histograms_every=3", "log_every=2", "log.profile=[2, 3]", "optim.epochs=2"]
    train(configured(tmp_path / "run", *overrides))
    lines = {line["step"]: line for line in read_history(tmp_path / "run" / "metrics.jsonl") if line["event"] == "step"}
    assert list(lines) == [2, 3, 4]  # every second step, and the third for its histograms
    for line in lines.values():
        norms = [line[f"gradient_norm/{name}"] ** 2 for name in ("backbone", "head", "bank")]
        assert line["gradient_norm/total"] == pytest.approx(sum(norms) ** 0.5, rel=1e-5)
        assert line["memory_gib/process"] > 0.01
        seconds = line["seconds/step"] + line["seconds/data"]
        assert line["clips_per_second"] == pytest.approx(4 / seconds)
    for name in ("between_classes", "own_class", "other_classes"):
        low, middle, high = (lines[3][f"similarity_{name}/{quantile}"] for quantile in ("p05", "p50", "p95"))
        assert -1 <= low <= middle <= high <= 1
        assert f"similarity_{name}/p50" not in lines[2]
    with gzip.open(tmp_path / "run" / "trace" / "steps-2-3.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"aten::linear", "autograd::engine::evaluate_function: AddmmBackward0"} <= names

    train(configured(tmp_path / "off", "kind=art", "log.gradient_norms=false", "log.tensorboard=false"))
    assert not any("gradient" in name or "similarity" in name for name in recorded(tmp_path / "off", "step")[0])
    assert not (tmp_path / "off" / "tensorboard").exists()
    assert not (tmp_path / "off" / "trace").exists()


def test_missing_library_of_a_logger_writes_nothing(configured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"log\.wandb needs wandb"):
        train(configured(tmp_path / "run", "log.wandb=fencing"))
    assert not (tmp_path / "run").exists()
