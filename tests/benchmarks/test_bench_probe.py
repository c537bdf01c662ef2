"""The benchmark of efficient probing: providers compute the same, and wrong values are an error."""

import json

import pytest
import torch

from art.heads import EfficientProbing, FeatureShape
from benchmarks import bench_probe
from benchmarks.bench_probe import PROVIDERS, SHAPES, main, step
from benchmarks.common.measure import OURS


def test_providers_compute_the_same():
    torch.manual_seed(0)
    head = EfficientProbing(FeatureShape(1, (1, 20), 12), ["a", "b"], num_queries=3).double()
    tokens, labels = torch.randn(4, 20, 12, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    expected = step(PROVIDERS["published"], head, tokens, labels)
    for provider, forward in PROVIDERS.items():
        for name, value in step(forward, head, tokens, labels).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=f"{provider}: {name}")


def test_operations_are_those_of_pooling_and_projection():
    shape = SHAPES["vjepa2-l"]
    tokens = 8 * 2048 * 1024
    assert shape.operations() == 4 * 2 * tokens * 16 + 3 * 2 * 8 * 1024 * (1024 + 174)
    assert shape.moved_bytes(torch.float32) == 8 * tokens


@pytest.mark.slow
def test_quick_run_and_wrong_values(tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    assert main(["--quick", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [record["provider"] for record in result["records"]] == list(PROVIDERS)
    assert all(max(record["errors"].values()) < 1e-4 for record in result["records"])
    assert [each["pass"] for each in result["reading"]] == ["reading", "reading and mean", "reading and ep"]
    assert all(each["clips_per_second"] > 0 for each in result["reading"])
    monkeypatch.setitem(bench_probe.PROVIDERS, OURS, lambda head, tokens: 2 * bench_probe.published(head, tokens))
    assert main(["--quick"]) == 1
