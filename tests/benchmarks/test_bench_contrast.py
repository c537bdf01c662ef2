"""The benchmark of contrast: what it measures is right, counted, and named where it is left out."""

import json
import time

import pytest
import torch

from benchmarks import bandwidth, contrast_measure, contrast_providers, gpu, matrix_rate
from benchmarks.bench_contrast import main
from benchmarks.contrast_measure import Settings, errors, pass_call, require_exact, run
from benchmarks.contrast_providers import PROVIDERS, build, draw_inputs, refusal, truth
from benchmarks.contrast_shapes import SHAPES, ContrastShape
from benchmarks.findings import OUT_OF_TIME
from benchmarks.timing import effort_for

CPU = torch.device("cpu")
TINY = {
    "tiny": ContrastShape("tiny", "mtc_loss", (9, 4, 3, 8), 4),
    "tiny-pool": ContrastShape("tiny-pool", "pool_tracklets", (9, 4, 3, 8), 4),
    "tiny-nce": ContrastShape("tiny-nce", "tracklet_nce", (40, 8), 40),
    "large": ContrastShape("large", "tracklet_nce", (40, 8), 0),
}


@pytest.fixture
def tiny(monkeypatch):
    """Shapes that take no time; nothing is compiled to machine code, copy and product are short."""
    for name, shape in TINY.items():
        monkeypatch.setitem(SHAPES, name, shape)
    monkeypatch.setattr(contrast_providers, "COMPILER", "aot_eager")
    monkeypatch.setattr(contrast_providers.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(bandwidth.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(contrast_measure, "CPU_EFFORT", effort_for(CPU, quick=True))
    monkeypatch.setitem(matrix_rate.SIZES, "cpu", 32)


def test_every_provider_is_measured_or_named(tiny):
    result = run(Settings(shapes=("tiny", "tiny-pool", "tiny-nce", "large"), quick=False, passes=("forward", "both")))
    assert result["failures"] == [] and result["benchmark"] == "contrast"
    json.dumps(result)
    measured = {(record["shape"], record["provider"], record["pass"]) for record in result["records"]}
    for shape, there in (
        ("tiny", {"naive", "vectorised", "vectorised compiled", "art_kernels"}),
        ("tiny-pool", {"naive", "vectorised", "vectorised compiled", "art_kernels"}),
        ("tiny-nce", {"materialised", "materialised compiled", "art_kernels"}),
    ):
        assert {(shape, provider, kind) for provider in there for kind in ("forward", "both")} <= measured
        missing = set(PROVIDERS[TINY[shape].operation]) - there
        reasons = {
            entry["provider"]: entry["reason"]
            for entry in result["left_out"]
            if entry["shape"] == shape and "provider" in entry
        }
        assert set(reasons) == missing and all(reasons.values())
    cuts = [entry["reason"] for entry in result["left_out"] if entry["shape"] == "tiny" and "provider" not in entry]
    assert cuts == ["cut to 4 videos, 4 frames, 3 tracklets of 8 from 9"]
    assert [entry["reason"] for entry in result["left_out"] if entry["shape"] == "large"] == [
        "it would take minutes on a CPU"
    ]
    for record in result["records"]:
        assert record["median_ms"] > 0 and record["share_of_limit"] > 0
        assert (record["served_by"] == "native") == (record["provider"] == "art_kernels")


def test_nothing_is_begun_after_the_deadline(tiny):
    result = run(Settings(shapes=("tiny",), quick=True), deadline=time.monotonic())
    assert result["records"] == []
    assert OUT_OF_TIME in {entry["reason"] for entry in result["left_out"]}


def test_a_provider_that_computes_something_else_fails(tiny, monkeypatch):
    monkeypatch.setattr(
        contrast_providers,
        "vectorised",
        lambda responses, aggregated: 1.001 * contrast_providers.naive(responses, aggregated),
    )
    result = run(Settings(shapes=("tiny",), quick=True, passes=("forward",)))
    assert "vectorised" in {entry["provider"] for entry in result["failures"]}
    assert "vectorised" not in {record["provider"] for record in result["records"]}
    with pytest.raises(ArithmeticError, match="grad_0 errs by nan"):
        require_exact({"grad_0": float("nan")}, {"grad_0": 1.0})


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


@pytest.mark.parametrize("name", ["tiny", "tiny-pool", "tiny-nce"])
def test_passes_give_what_they_are_called(name):
    shape = TINY[name]
    inputs = draw_inputs(shape, CPU, torch.float32)
    loss = build("art_kernels", shape)
    expected = truth(shape, inputs)
    value = pass_call("forward", loss, inputs)()
    assert not value.requires_grad
    for kind in ("backward", "both"):
        assert max(errors([value, *pass_call(kind, loss, inputs)()], expected).values()) < 1e-4


def test_peers_need_a_gpu_or_have_another_loss():
    assert "GPU" in refusal("memeff", TINY["tiny-nce"], CPU)
    assert "sigmoid" in refusal("siglip-kernel", TINY["tiny-nce"], CPU)


def test_the_command_writes_results_and_pictures(tiny, tmp_path, capsys):
    arguments = ["--shapes", "tiny,tiny-pool,tiny-nce", "--quick", "--passes", "both", "--threads", "1"]
    assert main([*arguments, "--out", str(tmp_path / "deep" / "r.json"), "--plots", str(tmp_path / "plots")]) == 0
    assert json.loads((tmp_path / "deep" / "r.json").read_text())["records"]
    for name in ("contrast", "pooling"):
        assert (tmp_path / "plots" / f"{name}-float32.png").read_bytes()[:4] == b"\x89PNG"
    assert "left out: tiny-nce, float32, memeff: its kernels need a GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shapes", "papre"], "'papre' is no shape, expected some of paper"),
        (["--dtypes", "int8"], "'int8' is no dtype"),
        (["--threads", "0"], "'0', expected a whole number of at least 1"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_it_is_one_of_the_benchmarks_on_a_gpu():
    assert gpu.BENCHMARKS["contrast"] == "benchmarks.bench_contrast"
    assert contrast_measure.OURS_REPLAYED in PROVIDERS["mtc_loss"]
