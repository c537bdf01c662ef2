"""Public names, imports with only torch installed, and the report of `python -m art_kernels`."""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import art_kernels
from art_kernels.__main__ import main
from art_kernels._core import backends, launch

OPERATIONS = ["linear_assignment", "link_tracklets", "mtc_loss", "pool_tracklets", "region_attention", "tracklet_nce"]
#: Hides every module except torch, its hard dependencies, this package, and the standard library.
ONLY_TORCH = """
import sys

ALLOWED = {"torch", "torchgen", "functorch", "filelock", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2",
           "markupsafe", "fsspec", "setuptools", "art_kernels"} | set(sys.stdlib_module_names)


class Filter:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if (top in ALLOWED or top.startswith("_")) and not name.endswith("._csrc"):
            return self.finder.find_spec(name, path, target)


sys.meta_path[:] = map(Filter, sys.meta_path)
"""


def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options).stdout


def test_public_names_have_docstrings():
    assert all(inspect.getdoc(getattr(art_kernels, name)) for name in art_kernels.__all__)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_registered_and_has_a_backend_keyword(name):
    last = list(inspect.signature(getattr(art_kernels, name)).parameters.values())[-1]
    assert (last.name, last.kind, last.default) == ("backend", inspect.Parameter.KEYWORD_ONLY, None)
    assert name in backends.operations()


@pytest.mark.slow
def test_import_is_light():
    names = "{'art', 'jaxtyping', 'omegaconf', 'torch._dynamo'}"
    assert run_python(f"import sys, art_kernels; print(*{names} & set(sys.modules))").strip() == ""


@pytest.mark.slow
def test_import_requires_only_torch():
    code = (
        ONLY_TORCH
        + """
import torch
import art_kernels
from art_kernels.__main__ import main

x = torch.randn(2, 3, 4)
art_kernels.region_attention(x, x)
art_kernels.RegionCrossAttention(4, 2)(x, x)
art_kernels.pool_tracklets(x[:, None], x)
art_kernels.mtc_loss(x[None]).total
art_kernels.tracklet_nce(x[0], x[0], torch.arange(3), temperature=0.1)
for call in (lambda: art_kernels.linear_assignment(torch.rand(3, 3), backend="cpp"),
             lambda: art_kernels.link_tracklets(x[None], backend="cpp"),
             lambda: art_kernels.region_attention(x, x, backend="triton")):
    try:
        call()
    except ValueError as error:
        print(error)
main([])
"""
    )
    lines = run_python(code).splitlines()
    assert "linear_assignment: backend='cpp' does not support" in lines[0] and "pip install ." in lines[0]
    assert lines[1].startswith("link_tracklets: ") and "pip install ." in lines[1]
    assert "triton cannot be imported: No module named 'triton'" in lines[2]
    report = "\n".join(lines[3:])
    for fact in (
        "triton                cannot be imported",
        "numpy                 cannot be imported",
        "pip install .",
    ):
        assert fact in report


@pytest.mark.slow
def test_functions_do_not_hide_the_submodules_of_their_packages():
    import art_kernels.region_attention.torch as torch_backend
    import art_kernels.tracklet_nce.reference as reference

    names = torch_backend.__name__, reference.__name__
    assert names == ("art_kernels.region_attention.torch", "art_kernels.tracklet_nce.reference")
    package = importlib.import_module("art_kernels.region_attention")
    assert art_kernels.region_attention is package.region_attention and callable(art_kernels.tracklet_nce)


def test_report_lists_every_operation_and_backend(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("art_kernels ")
    for name in OPERATIONS:
        rows = [line.split() for line in lines if line.split()[:1] == [name]][: len(backends.BACKENDS)]
        assert [row[1] for row in rows] == list(backends.BACKENDS)
        if name in ("linear_assignment", "link_tracklets"):
            assert [row[2] for row in rows][:2] == ["no", "default"]
            assert f"{name} has no triton implementation" in " ".join(rows[0])
        else:  # the tests run the kernels in the interpreter
            assert [row[2] for row in rows] == ["no" if torch.cuda.is_available() else "yes", "no", "default", "yes"]
    report = "\n".join(lines)
    for word in ("python", "torch", "triton", "cuda", "native module", "threads", "ART_KERNELS_BACKEND", "not set"):
        assert word in report


@pytest.mark.parametrize(
    "value, default, note",
    [
        ("reference", ["reference"] * 4, "reference"),
        ("triton", ["triton"] * 4, "triton"),  # on a GPU if there is one, otherwise on the CPU
        ("quick", [], "quick: not a backend"),
    ],
)
def test_report_reflects_the_environment(capsys, monkeypatch, value, default, note):
    monkeypatch.setenv("ART_KERNELS_BACKEND", value)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.split()[2:3] == ["default"]][:4] == default
    assert any(line.strip().startswith("ART_KERNELS_BACKEND") and note in line for line in lines)


@pytest.mark.parametrize(
    "value, note", [("", "off, "), ("0", "off, "), ("1", "on; "), ("yes", "error: ART_KERNELS_AUTOTUNE=yes is invalid")]
)
def test_report_shows_the_autotuning_switch(capsys, monkeypatch, value, note):
    monkeypatch.setenv("ART_KERNELS_AUTOTUNE", value)
    launch._autotune_default.cache_clear()
    assert main([]) == 0
    launch._autotune_default.cache_clear()
    line = next(line for line in capsys.readouterr().out.splitlines() if "ART_KERNELS_AUTOTUNE " in line)
    assert line.split(maxsplit=1)[1].startswith(note)


@pytest.mark.slow
def test_report_in_a_checkout_is_about_the_installed_package(tmp_path):
    """`python -m` finds the sources in the working directory first, which have no native module after pip install."""
    source = Path(art_kernels.__file__).parent
    shutil.copytree(source, tmp_path / "site" / "art_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    sources_only = shutil.ignore_patterns("__pycache__", "_csrc*")
    shutil.copytree(source, tmp_path / "checkout" / "art_kernels", ignore=sources_only)
    done = subprocess.run(
        [sys.executable, "-m", "art_kernels"], cwd=tmp_path / "checkout", capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert str(tmp_path / "site" / "art_kernels") in done.stdout and "region_attention" in done.stdout
    assert "cannot be imported" not in done.stdout and done.stderr == ""
