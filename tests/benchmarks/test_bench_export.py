"""The benchmark of exported models."""

import json
from importlib.util import find_spec

import pytest

from benchmarks import bench_export

if find_spec("onnxruntime") is None:
    pytest.skip("the extra [onnx] is not installed", allow_module_level=True)


@pytest.fixture
def small(monkeypatch):
    options = {
        "classes": 3, "backbone": "tiny", "num_frames": 2, "num_heads": 2, "latent_dim": 8, "feedforward_dim": 8,
        "enhancement_layers": 0, "activation_layers": 1, "backbone_options": {"width": 4, "depth": [1, 1, 1]},
    }  # fmt: skip
    monkeypatch.setitem(bench_export.MODELS, "tiny", options)


@pytest.mark.slow
def test_the_command_measures_every_provider(small, tmp_path, capsys):
    out = tmp_path / "deep" / "r.json"
    arguments = ["--models", "tiny", "--quick", "--out", str(out), "--plots", str(tmp_path / "plots")]
    assert bench_export.main(arguments) == 0
    result = json.loads(out.read_text())
    assert result["failures"] == [] and result["benchmark"] == "export"
    assert [record["provider"] for record in result["records"]] == list(bench_export.PROVIDERS)
    eager, *files = result["records"]
    assert eager["ratio"] == 1 and eager["file_bytes"] is None
    for record in files:
        assert record["median_ms"] > 0 and record["file_bytes"] > 10_000 and 0 <= record["difference"] <= 1e-4
    assert bench_export.goals(result) == []
    assert (tmp_path / "plots" / "export.png").is_file()
    assert "onnxruntime" in capsys.readouterr().out


def test_the_goal_is_about_onnx():
    records = [
        {"model": "tiny", "provider": name, "ratio": r} for name, r in (("torch.export", 2.0), ("onnxruntime", 1.2))
    ]
    assert bench_export.goals({"arguments": {"quick": False}, "records": records}) == [
        ("time in onnxruntime over that of eager PyTorch (tiny)", 1.2, 1.0)
    ]


def test_a_model_that_cannot_be_exported_is_a_failure(small, monkeypatch):
    def fail(*_):
        raise ValueError("no")

    monkeypatch.setattr(bench_export, "export_model", fail)
    result = bench_export.run(bench_export.Settings(("tiny",), quick=True))
    assert result["records"] == [] and result["failures"] == [{"model": "tiny", "error": "ValueError: no"}]
