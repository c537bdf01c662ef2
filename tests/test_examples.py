"""Run each example at a small size and check its claims. (`onnx_predict.py`: tests/tools/test_export.py)"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(name, *arguments):
    """Return the output of an example."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def number(pattern, text):
    found = re.search(pattern + r" ?([-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?)", text)
    assert found is not None, text
    return float(found.group(1))


def needs(library):
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed")


def test_detr_decoder():
    output = run("detr_decoder.py", "--steps", 60)
    assert number("step 60: mean box error", output) < 0.6 * number("step 1: mean box error", output)
    assert 0 < number("with the same weights:", output) < 1e-5


@needs("transformers")
def test_qformer():
    output = run("qformer.py")
    assert 0 < number("all tokens: largest difference", output) < 1e-5
    assert 0 < number("some masked: largest difference", output) < 1e-5
    assert "layers replaced: 2 of 4" in output


@needs("timm")
def test_timm_attention_pool():
    output = run("timm_attention_pool.py", "--images", 8, "--rounds", 3)
    assert 0 < number("largest difference", output) < 1e-5
    assert number("speedup:", output) > 1


@needs("transformers")
def test_vjepa2_heads():
    output = run("vjepa2_heads.py")
    assert "'tokens': [2, 4, 16, 48]" in output and "prefix tokens: False" in output
    for line in ("attentive and VJEPA2ForVideoClassification", "folded and published", "after loading"):
        assert 0 < number(f"{line}.*largest difference", output) < 1e-5


def test_tracker():
    output = run("tracker.py")
    assert "tracks: 6, of 6 objects" in output
    assert number("identity switches:", output) == 0 and number("without linking", output) > 100
    assert number("longest step within a track:", output) < 0.05


def test_contrast_loop():
    output = run("contrast_loop.py", "--steps", 80)
    without, with_loss = output.splitlines()
    between, along = "slots of a frame", "a slot in adjacent frames"
    assert number(between, without) > 0.9 and number(between, with_loss) < 0.2
    assert number(along, with_loss) > 0.9


def test_examples_show_their_command_and_are_in_the_docs():
    listed = (ROOT / "docs" / "examples.md").read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f"python examples/{example.name}" in example.read_text().split('"""')[1]
        assert f"](../examples/{example.name})" in listed
