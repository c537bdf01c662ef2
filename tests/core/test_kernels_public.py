"""The public names, that the package stands alone, and the report of `python -m art_kernels`."""

import inspect
import subprocess
import sys

import pytest
import torch

import art_kernels
from art_kernels import backends
from art_kernels.__main__ import main

OPERATIONS = ["linear_assignment", "link_tracklets", "mtc_loss", "pool_tracklets", "region_attention", "tracklet_nce"]


def test_public_names():
    assert sorted(art_kernels.__all__) == [
        "MTCLoss",
        "PositiveRule",
        "Positives",
        "RegionCrossAttention",
        "TrackletLinks",
        "autotune",
        "gather_tracklets",
        "linear_assignment",
        "link_tracklets",
        "mtc_loss",
        "pool_tracklets",
        "positive_rule",
        "region_attention",
        "tracklet_nce",
    ]
    assert all(inspect.getdoc(getattr(art_kernels, name)) for name in art_kernels.__all__)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_registered_and_takes_a_backend_last(name):
    operation = getattr(art_kernels, name)
    assert callable(operation)
    last = list(inspect.signature(operation).parameters.values())[-1]
    assert (last.name, last.kind, last.default) == ("backend", inspect.Parameter.KEYWORD_ONLY, None)
    assert name in backends.operations()


def test_import_is_light():
    code = (
        "import sys, art_kernels; print(*sorted({'art', 'jaxtyping', 'omegaconf', 'torch._dynamo'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_report_lists_every_operation_and_backend(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("art_kernels ")
    for name in OPERATIONS:
        rows = [line.split() for line in lines if line.split()[:1] == [name]]
        assert [row[1] for row in rows[:3]] == list(backends.PREFERENCE)
        if name not in ("linear_assignment", "link_tracklets"):  # the tests import the kernels for the interpreter
            assert [row[2] for row in rows[:3]] == ["no" if torch.cuda.is_available() else "yes", "default", "yes"]
        else:
            assert [row[2] for row in rows[:3]] == ["no", "default", "yes"]
            assert "this release has no triton implementation" in " ".join(rows[0])
    report = "\n".join(lines)
    for word in ("python", "torch", "triton", "cuda", "native module", "threads", "ART_KERNELS_BACKEND", "not set"):
        assert word in report


@pytest.mark.parametrize(
    "value, default, note",
    [
        ("reference", ["reference"] * 4, "reference"),
        ("triton", ["triton"] * 4, "triton"),  # on a GPU where there is one, and else on the CPU
        ("quick", [], "quick: not a backend"),
    ],
)
def test_report_follows_the_environment(capsys, monkeypatch, value, default, note):
    monkeypatch.setenv("ART_KERNELS_BACKEND", value)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.split()[2:3] == ["default"]][:4] == default
    assert any(line.strip().startswith("ART_KERNELS_BACKEND") and note in line for line in lines)


@pytest.mark.parametrize(
    "value, note", [(None, "off, "), ("0", "off, "), ("1", "on; "), ("yes", "refused: ART_KERNELS_AUTOTUNE=yes is no")]
)
def test_report_says_whether_sizes_are_tuned_and_where_results_are(capsys, monkeypatch, tmp_path, value, note):
    monkeypatch.setenv("ART_KERNELS_CACHE", str(tmp_path / "cache"))
    if value is not None:
        monkeypatch.setenv("ART_KERNELS_AUTOTUNE", value)
    assert main([]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "ART_KERNELS_AUTOTUNE " in line)
    assert line.split(maxsplit=1)[1].startswith(note)
    assert line.endswith(f"results in {tmp_path / 'cache' / 'tuning-v1.json'}")
    assert not (tmp_path / "cache").exists()


def test_report_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "art_kernels"], capture_output=True, text=True, check=True)
    assert "region_attention" in run.stdout and run.stderr == ""
