"""Each example as a user would run it, in a small size, and what it claims. (`onnx_predict.py`: tests/export.)"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(name, *arguments):
    """What an example prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(pattern, text):
    found = re.search(pattern + r" ?([-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?)", text)
    assert found is not None, text
    return float(found.group(1))


def needs(library):
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed")


def test_the_decoder_learns_and_says_what_multihead_attention_says():
    told = run("detr_decoder.py", "--steps", 60)
    assert number("step 60: mean error of a side", told) < 0.6 * number("step 1: mean error of a side", told)
    assert 0 < number("with the same weights:", told) < 1e-5


@needs("transformers")
def test_the_qformer_has_the_outputs_of_the_library():
    told = run("qformer.py")
    assert 0 < number("all tokens: largest difference", told) < 1e-5
    assert 0 < number("some masked: largest difference", told) < 1e-5
    assert "layers replaced: 2 of 4" in told


@needs("timm")
def test_the_pool_has_the_outputs_of_timm_and_is_faster():
    told = run("timm_attention_pool.py", "--images", 8, "--rounds", 3)
    assert 0 < number("largest difference", told) < 1e-5
    assert number("times as fast:", told) > 1


def test_the_tracker_keeps_identities():
    told = run("tracker.py")
    assert "tracks: 6, of 6 objects" in told
    assert number("identity switches:", told) == 0 and number("of boxes as they come", told) > 100
    assert number("longest step within a track:", told) < 0.05


def test_the_loss_parts_slots_and_keeps_each():
    told = run("contrast_loop.py", "--steps", 80)
    without, with_loss = told.splitlines()
    between, along = "slots of a frame", "a slot in adjacent frames"
    assert number(between, without) > 0.9 and number(between, with_loss) < 0.2
    assert number(along, with_loss) > 0.9


def test_every_example_says_how_it_is_run_and_is_listed():
    listed = (ROOT / "docs" / "examples.md").read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f"python examples/{example.name}" in example.read_text().split('"""')[1]
        assert f"](../examples/{example.name})" in listed
