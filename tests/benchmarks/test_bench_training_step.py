"""The benchmark of a training step: rates of the recipes, and saved activations."""

import json
import time

import pytest
import torch

from art import ARTModel
from benchmarks import bench_training_step
from benchmarks.bench_training_step import Settings, main, run, saved_mib
from benchmarks.common.results import OUT_OF_TIME

SMALL = {"width": 24, "layers": 3, "heads": 2, "patch_size": 8, "input_size": 24}


def saved(**options):
    torch.manual_seed(0)
    names = ["run", "jump"]
    sizes = {"latent_dim": 16, "num_heads": 2, "feedforward_dim": 32, "activation_layers": 1, "num_frames": 2}
    backbone_options = {**SMALL, **options.pop("backbone_options", {})}
    arguments = {"backbone_options": backbone_options, "enhancement_layers": 1, **options}
    model = ARTModel(names, backbone="uniformerv2_b16", semantics=torch.randn(2, 2, 8), **sizes, **arguments)
    return saved_mib(model.train())


def test_checkpointing_and_fewer_layers_save_fewer_activations():
    total = saved()
    assert saved() == pytest.approx(total)
    assert saved(backbone_options={"gradient_checkpointing": True}) < 0.7 * total
    # One layer saves at least its input and its hidden layer: 2 frames of 9 regions and 2 semantics, in two bytes.
    assert total - saved(enhancement_layers=0) > 2 * 11 * (16 + 32) * 2 / 2**20


@pytest.mark.slow
def test_the_command_measures_and_draws(fast_limits, tmp_path, capsys, monkeypatch):
    rows = [{"backbone": "b", "checkpointing": True, "mib_per_clip": 10.0, "enhancement_mib": 2.0}]
    monkeypatch.setattr(bench_training_step, "count_activations", lambda backbone: rows)
    out, plots = tmp_path / "r.json", tmp_path / "plots"
    arguments = ["--quick", "--recipes", "b16", "--activations", "uniformerv2_b16", "--out", str(out)]
    assert main([*arguments, "--plots", str(plots)]) == 0
    result = json.loads(out.read_text())
    assert result["benchmark"] == "training_step" and not result["failures"] and not result["skipped"]
    (record,) = result["records"]
    assert (record["recipe"], record["clips"], record["precision"]) == ("b16", 1, "fp32")
    assert record["passes"]["median_ms"] > 0 and record["update"]["median_ms"] > 0
    rate = result["matrix_tflops"]["float32"]
    assert record["tflops"] > 0 and record["matrix_fraction"] == pytest.approx(record["tflops"] / rate)
    assert "| `b` | blocks | 10 | 2 (20 %) |" in capsys.readouterr().out
    assert (plots / "training-step.png").is_file()


def test_no_case_starts_after_the_deadline(fast_limits):
    result = run(Settings(quick=True), deadline=time.monotonic() - 1)
    assert result["records"] == [] and {entry["reason"] for entry in result["skipped"]} == {OUT_OF_TIME}
