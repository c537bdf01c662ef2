"""Runs written by an earlier version still load, resume, evaluate, and score.

``tests/data/legacy_run/run.tar.xz`` was written by the version with the package ``art.engine``: ``clips`` is a dataset,
``finished`` a run of six steps of kind "art" with AdamW and an EMA, without its training state, and ``stopped`` that
run interrupted after step 3. Its configuration has the former key ``data.max_bad_share``.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from art.eval.evaluate import evaluate_checkpoint
from art.eval.predictions import score
from art.experiments.compare import is_finished
from art.model.loading import load_model
from art.train.checkpoint import RunDir, load_training_state, read_history, saved_tensors
from art.train.config import load_config
from art.train.loop import train

ARCHIVE = Path(__file__).parents[1] / "data" / "legacy_run" / "run.tar.xz"


@pytest.fixture
def legacy(tmp_path, monkeypatch):
    """Directory with the extracted archive, which is the working directory, because paths in it are relative."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_config_and_model_load(legacy):
    config = load_config(legacy / "finished" / "config.yaml")
    assert config.data.max_failed_fraction == 0.1
    assert is_finished(config)
    model = load_model(legacy / "finished" / "checkpoints" / "last")
    assert (model.kind, list(model.class_names)) == ("art", ["move right", "move left", "stand"])
    stopped = legacy / "stopped" / "checkpoints" / "last"
    assert load_training_state(stopped)["position"]["step"] == 3
    names = saved_tensors(stopped)
    assert {"model.semantics.bank", "average.semantics.agent", "optimizer.video_head.weight.exp_avg"} <= names.keys()


def test_evaluation_and_score_are_unchanged(legacy):
    saved = json.loads((legacy / "finished" / "evaluation.json").read_text())
    scored = score([legacy / "finished" / "predictions.npz"]).evaluation
    assert scored.top1 == saved["top1"] and scored.relinked == saved["relinked"]
    evaluation = evaluate_checkpoint(legacy / "finished")
    assert evaluation.top1 == saved["top1"]
    np.testing.assert_allclose(evaluation.probabilities, scored.probabilities, rtol=1e-4, atol=1e-5)


@pytest.fixture
def one_thread():
    """The number of threads of the recorded run, which determines the rounding of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_interrupted_run_resumes_to_the_same_result(legacy, one_thread):
    config = load_config(legacy / "stopped" / "config.yaml")
    result = train(config, resume=True)
    steps, expected = (
        [line for line in read_history(RunDir(legacy / name).metrics) if line["event"] == "step"]
        for name in ("stopped", "finished")
    )
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line, before in zip(steps, expected, strict=True):
        names = [name for name in before if name.startswith(("loss/", "lr/", "gradient_norm/"))]
        assert [line[name] for name in names] == pytest.approx([before[name] for name in names], rel=1e-4, abs=1e-4)
    weights, before = (load_model(legacy / name / "checkpoints/last").state_dict() for name in ("stopped", "finished"))
    for state in (weights, before):
        for name in [name for name in state if name.endswith("in_proj_bias")]:
            state[name].unflatten(0, (3, -1))[1] = 0  # softmax ignores biases of keys: AdamW amplifies rounding errors
    torch.testing.assert_close(weights, before, rtol=1e-4, atol=1e-4)
    assert result.evaluation.top1 == json.loads((legacy / "finished" / "evaluation.json").read_text())["top1"]
