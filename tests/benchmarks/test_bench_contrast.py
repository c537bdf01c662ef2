"""The benchmark of contrast: providers compute the same, counts are right, and everything is measured or named."""

import json
import time

import pytest
import torch

from benchmarks import bench_contrast, contrast_providers
from benchmarks.bench_contrast import Settings, main, run
from benchmarks.common import measure
from benchmarks.common.results import OUT_OF_TIME, ROOT
from benchmarks.common.timing import QUICK
from benchmarks.contrast_providers import (
    OURS_REPLAYED,
    PROVIDERS,
    SHAPES,
    ContrastShape,
    build,
    draw_inputs,
    errors,
    oracle,
    pass_call,
)

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY = {
    "tiny": ContrastShape("tiny", "mtc_loss", (9, 4, 3, 8), 4),
    "tiny-pool": ContrastShape("tiny-pool", "pool_tracklets", (9, 4, 3, 8), 4),
    "tiny-nce": ContrastShape("tiny-nce", "tracklet_nce", (40, 8), 40),
    "large": ContrastShape("large", "tracklet_nce", (40, 8), 0),
}


@pytest.fixture
def tiny(monkeypatch, fast_limits):
    """Shapes that take no time; nothing is compiled to machine code."""
    for name, shape in TINY.items():
        monkeypatch.setitem(SHAPES, name, shape)
    monkeypatch.setitem(measure.COMPILERS, False, "aot_eager")
    monkeypatch.setattr(measure.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(bench_contrast, "CPU_TIMING", QUICK)


def test_every_provider_is_measured_or_named(tiny):
    result = run(Settings(shapes=("tiny", "tiny-pool", "tiny-nce", "large"), passes=("forward", "both")))
    assert result["failures"] == [] and result["benchmark"] == "contrast"
    json.dumps(result)
    measured = {(record["shape"], record["provider"], record["pass"]) for record in result["records"]}
    for shape in ("tiny", "tiny-pool", "tiny-nce"):
        own = {entry["provider"] for entry in result["skipped"] if entry["shape"] == shape and "provider" in entry}
        available = set(PROVIDERS[TINY[shape].operation]) - own - {OURS_REPLAYED}
        assert own == ({"memeff"} if shape == "tiny-nce" else set())
        assert {(shape, provider, kind) for provider in available for kind in ("forward", "both")} <= measured
    reasons = [(entry["shape"], entry["reason"]) for entry in result["skipped"] if "provider" not in entry]
    assert reasons[0] == ("tiny", "reduced to 4 videos, 4 frames, 3 tracklets of 8 from 9")
    assert reasons[-1] == ("large", "it would take minutes on a CPU")
    for record in result["records"]:
        assert record["median_ms"] > 0 and record["limit_fraction"] > 0
        assert (record["served_by"] == "torch") == (record["provider"] == "art_kernels")


def test_no_case_starts_after_the_deadline(tiny):
    result = run(Settings(shapes=("tiny",), quick=True), deadline=time.monotonic() - 1)
    assert result["records"] == []
    assert {entry["reason"] for entry in result["skipped"]} == {OUT_OF_TIME}


def test_a_provider_that_computes_something_else_fails(tiny, monkeypatch):
    original = contrast_providers.mtc_naive
    monkeypatch.setitem(
        contrast_providers.LOSSES, ("mtc_loss", "vectorized"), lambda *inputs: 1.001 * original(*inputs)
    )
    result = run(Settings(shapes=("tiny",), quick=True, passes=("forward",)))
    assert "vectorized" in {entry["provider"] for entry in result["failures"]}
    assert "vectorized" not in {record["provider"] for record in result["records"]}


def test_counts():
    mtc, nce = TINY["tiny"], TINY["tiny-nce"]
    responses, tracklets = 9 * 4 * 3 * 8, 9 * 3 * 8
    assert mtc.moved_bytes(torch.float32, "forward") == 4 * (responses + tracklets)
    assert mtc.moved_bytes(torch.bfloat16, "both") == 2 * 2 * (responses + tracklets)
    assert nce.moved_bytes(torch.float32, "backward") == 4 * 2 * 2 * 40 * 8
    assert nce.operations("both") == 3 * 2 * 40 * 40 * 8
    assert mtc.operations("forward") == 2 * 8 * 9 * (4 * 9 + 4 * 3 + 9)
    pool, saliency = TINY["tiny-pool"], 9 * 4 * 3
    assert pool.moved_bytes(torch.float32, "forward") == 4 * (responses + tracklets + tracklets + saliency)
    assert pool.moved_bytes(torch.float32, "backward") == 4 * (2 * (responses + tracklets) + tracklets + saliency)
    assert pool.moved_bytes(torch.float32, "both") == 4 * (3 * (responses + tracklets) + 2 * (tracklets + saliency))
    assert pool.operations("both") == pool.operations("forward") + pool.operations("backward")
    assert pool.operations("forward") == 2 * responses * (3 + 2)


def test_quick_shapes_are_minimal_but_keep_their_channels():
    for shape in SHAPES.values():
        quick = shape.sized(CPU, quick=True)
        assert quick.sizes[-1] == shape.sizes[-1] and max(quick.sizes[:-1]) < 22


@pytest.mark.parametrize("name", ["tiny", "tiny-pool", "tiny-nce"])
def test_passes_compute_what_their_names_state(name):
    shape = TINY[name]
    inputs = draw_inputs(shape, CPU, torch.float32)
    loss = build("art_kernels", shape)
    expected = oracle(shape, inputs)
    value = pass_call("forward", loss, inputs)()
    assert not value.requires_grad
    for kind in ("backward", "both"):
        assert max(errors([value, *pass_call(kind, loss, inputs)()], expected).values()) < 1e-4


def test_the_command_writes_results_and_charts(tiny, tmp_path, capsys):
    arguments = ["--shapes", "tiny-pool,tiny-nce", "--quick", "--passes", "both"]
    assert main([*arguments, "--out", str(tmp_path / "deep" / "r.json"), "--plots", str(tmp_path / "plots")]) == 0
    assert json.loads((tmp_path / "deep" / "r.json").read_text())["records"]
    for name in ("contrast", "pooling"):
        assert (tmp_path / "plots" / f"{name}-float32.png").read_bytes()[:4] == b"\x89PNG"
    assert "skipped: tiny-nce, float32, memeff: its kernels require a GPU" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["contrast", "pooling"])
def test_committed_results_can_be_drawn(name, tmp_path):
    path = ROOT / "benchmarks" / "results" / f"{name}-cpu.json"
    assert main(["--draw", str(path), "--plots", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}-float32.png").is_file()
