"""Ahead-of-time compilation of the kernels for GPUs that are not present."""

import os
import subprocess
import sys

import pytest
import torch

from art_kernels import compile as compiler

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
SMALLEST = r"\.combine\.bf16\.c32$"


def run(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "art_kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})


def test_machine_code_and_table(tmp_path):
    out = tmp_path / "deep" / "kernels"
    done = run("compile", "--targets", "sm_90,gfx942", "--only", SMALLEST, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    files = {path.name: path.read_bytes()[:4] for path in out.iterdir()}
    name = "region_attention.combine.bf16.c32"
    assert files == {f"{name}.sm_90.cubin": b"\x7fELF", f"{name}.gfx942.hsaco": b"\x7fELF"}
    header, first, second, last = done.stdout.splitlines()
    assert header.split()[:5] == ["variant", "target", "registers", "local", "shared"]
    assert first.split()[:2] == [name, "sm_90"] and second.split()[:2] == [name, "gfx942"]
    assert int(first.split()[2]) > 0 and first.split()[3] == "0"
    assert last.startswith("2 of 2 variants compiled without fault")


def test_faults_are_reported(tmp_path, monkeypatch):
    done = run("compile", "--targets", "sm_90", "--only", SMALLEST, "--out", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "TRITON_INTERPRET is set; unset it to compile" in done.stdout
    assert compiler._fault("sm_90", 8, 100, True, 4) == "8 bytes of local memory"
    assert compiler._fault("sm_89", 0, 102400, True, 4) == "102400 bytes of shared memory, sm_89 has 101376"
    assert compiler._fault("sm_90", 0, 100, True, 0) == "products of 16-bit numbers without tensor cores"
    assert compiler._fault("sm_90", 0, 100, True, 4) == compiler._fault("sm_90", 0, 100, False, 0) == ""


def test_products_without_tensor_cores_fail_in_every_operation(tmp_path):
    """With a pattern that matches no tensor-core instruction, exactly the variants with 16-bit products fail."""
    only = (
        r"region_attention\.forward\.bf16\.c32\.m16\.plain|nce\.forward\.anchors\.bf16\.c32\.plain"
        r"|contrast\.(tracklets\.fp16\.c96\.k2\.(plain|all)|mean\.bf16\.c96\.k2\.plain)"
        r"|pooling\.forward\.(fp16|fp32)\.c256\.j16\.t16\.plain"
    )
    program = "import re, sys; from art_kernels import compile as c; c._TENSOR_CORE = re.compile('none such'); c.run("
    arguments = ["--targets", "sm_90", "--only", only, "--out", str(tmp_path), "--jobs", "1"]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", f"{program}{arguments!r})"], capture_output=True, text=True, env=kept)
    lines = [line for line in done.stdout.splitlines() if " sm_90 " in line]
    assert len(lines) == 7, done.stdout + done.stderr
    failed = {line.split()[0] for line in lines if "without tensor cores" in line}
    assert failed == {
        "region_attention.forward.bf16.c32.m16.plain",
        "tracklet_nce.forward.anchors.bf16.c32.plain",
        "tracklet_contrast.tracklets.fp16.c96.k2.all",  # "plain" compares the mean, which is in float32
        "tracklet_pooling.forward.fp16.c256.j16.t16.plain",
    }


def test_variant_names():
    names = [name for name, _ in compiler.all_variants("sm_90")]
    assert len(names) == len(set(names))
    for part in ("forward.fp32.c1000.m64.all", "backward.bf16.c1536.m16.normed", "combine.fp16.c96"):
        assert f"region_attention.{part}" in names
    assert "tracklet_pooling.backward.bf16.c256.j16.t16.plain" in names


def test_splits_write_float32():
    """A split writes float32 partial results instead of results in the input dtype, which is another variant."""
    launches = dict(compiler.all_variants("sm_90"))
    for kernel, result in (("forward", "p_output"), ("backward", "p_grad_queries")):
        written = {
            rows: launches[f"region_attention.{kernel}.bf16.c768.{rows}.plain"].arguments[result].dtype
            for rows in ("split", "m16")
        }
        assert written == {"split": torch.float32, "m16": torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x", "--targets", "sm_90,sm_42"], "'sm_42' is not a target, expected some of sm_80,"),
        (["--out", "x", "--only", "("], "'(' is not a regular expression"),
        (["--out", "x", "--only", "nothing like it"], "matches no variant; a name is region_attention."),
        ([], "the following arguments are required: --out"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        compiler.run(arguments)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_command():
    done = run("compiel")
    assert done.returncode == 2 and "unknown arguments 'compiel', expected none, or: compile --out DIR" in done.stderr
