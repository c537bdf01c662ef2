"""What the packages promise as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest

import art

ROOT = Path(__file__).parent.parent


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own; pytest shows what it printed where a test fails."""
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    print(result.stdout, result.stderr, sep="\n")
    return result


def test_every_public_name_is_there():
    for name in art.__all__:
        assert getattr(art, name).__module__.startswith("art.")
    with pytest.raises(AttributeError, match="no attribute 'ARTModell'"):
        _ = art.ARTModell


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import art_kernels", "art"),  # the kernels know nothing of the model
        ("import art", "torch"),  # the command line answers before torch is loaded
        ("import art.cli", "torch"),
        ("from art import ARTModel", "open_clip"),
        ("from art import ARTModel", "pybullet"),
    ],
)
def test_what_an_import_does_not_load(code, absent):
    check = f"import sys; {code}; sys.exit({absent!r} in sys.modules)"
    assert python("-c", check).returncode == 0


def test_backends_report():
    report = python("-m", "art_kernels")
    assert report.returncode == 0
    for operation in ("region_attention", "mtc_loss", "pool_tracklets", "link_tracklets"):
        assert operation in report.stdout
