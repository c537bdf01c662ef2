"""The benchmark of whole models: the providers compute the same, operations and goals are counted."""

import json
import time

import pytest
import torch

from benchmarks import bench_model
from benchmarks.bench_model import (
    ART_OURS,
    MODELS,
    OURS,
    PROVIDERS,
    PUBLISHED,
    Settings,
    build_all,
    compare,
    count,
    goals,
    macs,
    main,
    run,
)
from benchmarks.common.results import OUT_OF_TIME, ROOT

TINY = MODELS["tiny"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    return build_all(TINY, CPU)


def video(seed=1):
    return torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_all_providers_share_one_set_of_parameters(models):
    own = {id(parameter) for parameter in models[ART_OURS].parameters()}
    for model in models.values():
        assert {id(parameter) for parameter in model.parameters()} <= own
        assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_the_published_blocks_have_the_same_outputs_and_gradients(models):
    gradients = {}
    for name in (PUBLISHED, OURS):
        model = models[name].eval()
        model.zero_grad()
        model(video()).logits.square().sum().backward()
        gradients[name] = [parameter.grad for parameter in model.backbone.transformer.dec[0].attn.parameters()]
    for published, ours in zip(gradients[PUBLISHED], gradients[OURS], strict=True):
        assert published.abs().max() > 0
        torch.testing.assert_close(ours, published, rtol=1e-4, atol=1e-5 * published.abs().max().item())
    assert max(compare(models, video(), "float32").values()) < 1e-5


def test_global_blocks_that_compute_something_else_are_an_error(models, monkeypatch):
    original = bench_model.PublishedGlobalBlock._attend
    monkeypatch.setattr(bench_model.PublishedGlobalBlock, "_attend", lambda self, q, r: 2 * original(self, q, r))
    with pytest.raises(ArithmeticError, match=r"art_kernels: logits differ by .* from the published ones"):
        compare(models, video(), "float32")


@pytest.mark.slow
def test_operations_saved_in_the_global_blocks():
    published, ours = (count(name, TINY)[0]["forward_macs"] for name in (PUBLISHED, OURS))
    width, tokens, heads, blocks = 48, 4 * 17, 3, 2
    projected = 2 * width * width * (tokens + 1) + 2 * tokens * width
    folded = 4 * width * width + 2 * heads * tokens * width + 2 * width * width  # and ln_3's β through both projections
    assert published - ours == blocks * (projected - folded)


@pytest.mark.slow
def test_the_command_measures_and_draws_every_model(tmp_path, capsys):
    out = tmp_path / "deep" / "r.json"
    assert main(["--quick", "--out", str(out), "--plots", str(tmp_path / "plots")]) == 0
    result = json.loads(out.read_text())
    assert [(r["pass"], r["provider"]) for r in result["records"]] == [
        (kind, name) for kind in ("forward", "both") for name in PROVIDERS
    ]
    assert result["failures"] == [] and set(result["counts"]) == {"tiny"}
    for record in result["records"]:
        assert record["median_ms"] > 0 and record["peak_extra_bytes"] > 0 and record["macs"] > 0
    assert (tmp_path / "plots" / "model-tiny-float32.png").read_bytes()[:4] == b"\x89PNG"
    assert goals(result) == []
    assert "backbone" in capsys.readouterr().out


def test_goals():
    stages = [{"stage": "backbone", "forward_macs": 1_400_000_000_000, "backward_macs": 0}]
    records = [
        {"provider": ART_OURS, "model": "b16-8", "dtype": "float32", "pass": kind, "ratio": 1.01, "peak_ratio": 1.02}
        for kind in ("forward", "both")
    ]
    result = {"arguments": {"quick": False}, "records": records, "machine": {"kind": "cpu"}}
    result["counts"] = {"l14-16": {ART_OURS: stages}}
    assert [(found, bound) for _, found, bound in goals(result)] == [(1.01, 1.0), (1.02, 1.05), (1400.0, 1332.0)]
    result["machine"]["kind"] = "cuda"
    assert [bound for _, _, bound in goals(result)] == [1.0, 1.03, 1.05, 1332.0]
    assert macs([*stages, {"stage": "loss", "forward_macs": 7, "backward_macs": 0}]) == 1_400_000_000_000


@pytest.mark.slow
def test_no_case_starts_after_the_deadline():
    result = run(Settings(models=("tiny",), quick=True), deadline=time.monotonic() - 1)
    assert result["records"] == []
    assert {entry["reason"] for entry in result["skipped"]} == {OUT_OF_TIME}


def test_committed_results_can_be_drawn(tmp_path):
    path = ROOT / "benchmarks" / "results" / "model-cpu.json"
    assert main(["--draw", str(path), "--plots", str(tmp_path)]) == 0
    assert (tmp_path / "model-b16-8-float32.png").is_file()
