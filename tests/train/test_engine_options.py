"""Options of a training that must leave its result as it is, or change it in one known way."""

import functools
import gzip
import json
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from art.backbones.tiny import Tiny
from art.model.pretrained import load_model
from art.train.checkpoint import load_training_state
from art.train.config import ConfigError
from art.train.interruption import Interrupted
from art.train.loop import NonFiniteLoss, train
from art.train.run_dir import read_history

STEPS = 6  # of three epochs
# A backbone that normalises each clip alone, and no dropout: then parts of a batch are as good as the batch.
ALONE = [
    "kind=art",
    "model.backbone=uniformerv2_b16",
    "model.backbone_options={}",  # of the backbone in the place of which this one is
    "model.backbone_options={width: 24, layers: 2, heads: 2, patch_size: 8, input_size: 24, global_dropout: 0}",
    "model.dropout=0",
]


def weights(folder):
    return load_model(folder / "checkpoints" / "last").state_dict()


def assert_close_runs(one, other, recorded, tolerance):
    """Every number of every step and epoch, and every weight."""
    for event in ("step", "epoch"):
        for a, b in zip(recorded(one, event), recorded(other, event), strict=True):
            assert a.pop("event") == b.pop("event")
            assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    assert_close(weights(one), weights(other), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "given",
    [
        ["optim.clip_grad_norm=1", "optim.warmup_epochs=1.5", "optim.schedule=cosine", "optim.ema=0.9"],
        ["data.mixup=0.8", "data.cutmix=1"],
        ["optim.batch_size=12"],  # nine clips: parts of six and three
    ],
    ids=["clipped", "mixed", "not full"],
)
def test_parts_of_a_batch_give_the_step_of_the_batch(configured, recorded, tmp_path, given):
    train(configured(tmp_path / "whole", *ALONE, *given))
    train(configured(tmp_path / "parts", *ALONE, *given, "optim.accumulate=2"))
    assert recorded(tmp_path / "parts", "step")[-1]["gradient_norm/total"] > 0
    assert_close_runs(tmp_path / "parts", tmp_path / "whole", recorded, 1e-5)


def test_scaled_gradients_are_unscaled_once_a_step(configured, recorded, tmp_path, monkeypatch):
    # With a scale at which no step is skipped.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=8.0))
    for name, parts in (("whole", 1), ("parts", 4)):
        train(configured(tmp_path / name, *ALONE, "precision=fp16", f"optim.accumulate={parts}", "optim.epochs=1"))
    scalers = [load_training_state(tmp_path / name / "checkpoints" / "last")["scaler"] for name in ("whole", "parts")]
    assert scalers[0] == scalers[1]
    assert scalers[1]["_growth_tracker"] == STEPS / 3
    one, other = (recorded(tmp_path / name, "step")[-1] for name in ("parts", "whole"))
    assert one["gradient_norm/total"] == pytest.approx(other["gradient_norm/total"], rel=0.05)


def test_a_part_that_is_not_finite_is_named_by_its_clips_and_the_checkpoint_stays(configured, in_step, tmp_path):
    saved = {}

    def poison(training):
        folder = tmp_path / "run" / "checkpoints"
        saved.update({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        original, calls = training.state.model.loss, []

        def loss(*given):
            calls.append(given)
            terms = original(*given)
            terms.total.mul_(float("nan") if len(calls) == 2 else 1.0)
            return terms

        training.state.model.loss = loss

    in_step(STEPS // 3 + 1, poison)
    with pytest.raises(NonFiniteLoss) as error:
        train(configured(tmp_path / "run", "optim.accumulate=4"))
    message = str(error.value)
    assert "loss/total is nan" in message
    assert "at step 3 (epoch 2)" in message
    assert message.count(".mp4") == 1
    assert f"{tmp_path / 'run' / 'checkpoints' / 'last'} holds the last good state" in message
    assert saved
    assert all(path.read_bytes() == content for path, content in saved.items())


def test_averaged_weights_are_evaluated_and_saved_and_training_goes_on_from_its_own(
    configured, in_step, recorded, assert_same_run, tmp_path
):
    averages = {}

    def follow(training):
        """Reads the weights after each step, and averages them by the book."""
        original, decay = training.state.after_step, 0.6

        def after_step():
            original()
            steps = training.state.position.step
            for name, value in training.state.model.state_dict().items():
                now, share = value.double(), min(decay, (1 + steps) / (10 + steps))
                averages[name] = share * averages[name] + (1 - share) * now if value.is_floating_point() else now

        averages.update({name: v.double() for name, v in training.state.model.state_dict().items()})
        training.state.after_step = after_step

    in_step(1, follow)
    result = train(configured(tmp_path / "run", "optim.ema=0.6", "eval_every=3"))
    found = weights(tmp_path / "run")
    assert_close(found, {name: value.to(found[name].dtype) for name, value in averages.items()}, rtol=1e-5, atol=1e-6)
    train(configured(tmp_path / "plain", "eval_every=3"))
    assert not torch.allclose(found["video_head.weight"], weights(tmp_path / "plain")["video_head.weight"], rtol=1e-3)
    # The steps are those of a training without an average; what is evaluated is not.
    assert recorded(tmp_path / "run", "step") == recorded(tmp_path / "plain", "step")
    from art.eval.evaluate import evaluate_checkpoint

    again = evaluate_checkpoint(tmp_path / "run")
    assert_close(torch.tensor(again.probabilities), torch.tensor(result.evaluation.probabilities))

    in_step(4, lambda training: training.interruption._note(15, None))
    with pytest.raises(Interrupted):
        train(configured(tmp_path / "stopped", "optim.ema=0.6", "eval_every=3"))
    train(configured(tmp_path / "stopped", "optim.ema=0.6", "eval_every=3"), resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "run")


def test_a_backbone_without_layers_is_refused_before_anything_is_written(configured, tmp_path, monkeypatch):
    result = train(configured(tmp_path / "run", "optim.layer_decay=0.5", "optim.epochs=1"))
    assert result.measured["steps"] == STEPS / 3
    monkeypatch.setattr(Tiny, "parameters_by_depth", lambda self: None)
    with pytest.raises(ConfigError, match=r"optim\.layer_decay"):
        train(configured(tmp_path / "other", "optim.layer_decay=0.5"))
    assert not (tmp_path / "other").exists()


def test_a_compiled_model_trains_as_it_does_otherwise_and_its_checkpoint_is_plain(
    configured, recorded, unbroken, tmp_path, monkeypatch
):
    compiled = []
    original = nn.Module.compile
    # Graphs are captured and run as they are: generating code for them takes half a minute.
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self) or original(self, backend="eager"))
    config = configured(tmp_path / "run", "compile=true", "optim.epochs=1", "model.dropout=0")
    train(config)
    assert len(compiled) == 1
    train(configured(tmp_path / "plain", "optim.epochs=1", "model.dropout=0"))
    assert_close_runs(tmp_path / "run", tmp_path / "plain", recorded, 1e-3)
    assert weights(tmp_path / "run").keys() == weights(unbroken / "backbone").keys()


@pytest.fixture
def own_tf32():
    """Puts the settings back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("own_tf32")
def test_tf32_is_what_the_configuration_says(configured, tmp_path):
    for allowed in (True, False):
        train(configured(tmp_path / str(allowed), f"tf32={allowed}", "optim.epochs=1"))
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


def test_what_a_step_tells_beside_its_losses(configured, tmp_path):
    given = ["kind=art", "log.histograms_every=3", "log_every=2", "log.profile=[2, 3]", "optim.epochs=2"]
    train(configured(tmp_path / "run", *given))
    lines = {line["step"]: line for line in read_history(tmp_path / "run" / "metrics.jsonl") if line["event"] == "step"}
    assert list(lines) == [2, 3, 4]  # each second, and the third for its histograms
    for line in lines.values():
        parts = [line[f"gradient_norm/{name}"] ** 2 for name in ("backbone", "head", "bank")]
        assert line["gradient_norm/total"] == pytest.approx(sum(parts) ** 0.5, rel=1e-5)
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


def test_what_is_switched_off_is_not_there(configured, recorded, tmp_path):
    train(configured(tmp_path / "run", "kind=art", "log.gradient_norms=false", "log.tensorboard=false"))
    assert not any("gradient" in name or "similarity" in name for name in recorded(tmp_path / "run", "step")[0])
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not (tmp_path / "run" / "trace").exists()


def test_a_missing_library_stops_before_anything_is_written(configured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"log\.wandb needs wandb"):
        train(configured(tmp_path / "run", "log.wandb=fencing"))
    assert not (tmp_path / "run").exists()
