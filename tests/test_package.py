"""The packages as a whole: public names, what imports load, optional libraries, and former import paths."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import art
from art._deprecated import MOVED
from art.extras import TRAIN_LIBRARIES

ROOT = Path(__file__).parent.parent
# Code that makes the libraries of the extra [train] appear missing.
BLOCK_TRAIN_LIBRARIES = f"import sys; sys.modules.update(dict.fromkeys({TRAIN_LIBRARIES}))"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a subprocess and print its output, which pytest shows if the test fails."""
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    print(result.stdout, result.stderr, sep="\n")
    return result


def test_public_names():
    for name in art.__all__:
        assert getattr(art, name).__module__.startswith("art.")
    with pytest.raises(AttributeError, match="no attribute 'ARTModell'"):
        _ = art.ARTModell


@pytest.mark.slow
@pytest.mark.parametrize(
    "code, absent",
    [
        ("import art_kernels", ["art"]),  # the kernels do not depend on the model
        ("import art, art.cli; art.cli.main([])", ["torch"]),  # `art --help` does not load torch
        ("from art import ARTModel", ["open_clip", "pybullet", "matplotlib", "omegaconf"]),
    ],
)
def test_imports_do_not_load(code, absent):
    assert python("-c", f"import sys; {code}; sys.exit(not sys.modules.keys().isdisjoint({absent}))").returncode == 0


@pytest.mark.slow
def test_backends_report():
    report = python("-m", "art_kernels")
    assert report.returncode == 0
    for operation in ("region_attention", "mtc_loss", "pool_tracklets", "link_tracklets"):
        assert operation in report.stdout


@pytest.mark.slow
def test_model_and_predict_without_the_train_extra(clips, tmp_path):
    code = f"""{BLOCK_TRAIN_LIBRARIES}
import torch
from art import ARTModel
from art.cli import main
model = ARTModel(["walk", "jump"], num_frames=2, backbone_options={{"width": 4, "depth": [1, 1, 1]}}).eval()
assert model(torch.rand(1, 2, 3, 32, 32)).logits.shape == (1, 2)
model.save_pretrained({str(tmp_path)!r})
sys.exit(main(["predict", {str(clips / "test_0_0.mp4")!r}, "--checkpoint", {str(tmp_path)!r}]))
"""
    result = python("-c", code)
    assert result.returncode == 0
    assert "walk" in result.stdout and "jump" in result.stdout


@pytest.mark.slow
def test_commands_print_how_to_install_the_train_extra():
    commands = (
        ["train", "configs/motion.yaml"],
        ["evaluate", "--checkpoint", "nowhere"],
        ["explain", "clip.mp4", "--checkpoint", "nowhere"],
    )
    result = python("-c", f"{BLOCK_TRAIN_LIBRARIES}\nfrom art.cli import main\nprint([main(c) for c in {commands}])")
    assert result.stdout.strip() == str([2] * len(commands))
    for command, message in zip(commands, result.stderr.splitlines(), strict=True):
        assert message.startswith(f"art: error: art {command[0]} needs ")
        assert message.endswith(": pip install 'art-kernels[train]'")


@pytest.mark.parametrize("old", MOVED)
def test_moved_modules(old):
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}$"):
        sys.modules.pop(old, None)
        moved = importlib.import_module(old)
    assert moved is importlib.import_module(MOVED[old])
    assert moved.__spec__.name == MOVED[old]


def test_removed_submodule_of_a_moved_package():
    with warnings.catch_warnings(), pytest.raises(ModuleNotFoundError, match=r"^art\.engine\.pace was removed; see"):
        warnings.simplefilter("error")  # nothing claims that it has moved
        importlib.import_module("art.engine.pace")


@pytest.mark.slow
def test_names_of_moved_modules():
    code = """
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
from art.pretrained import VideoClassifier, build_model, load_model
from art.model import ARTModel, ARTOutput
from art.options import ARTOptions
from art.backbones.interface import as_unit_range, layered
from art.engine.train import train
from art.engine.config import load_config
from art.engine.config_file import ConfigError
from art.engine.observers import Observer, require_observers
from art.data.video import ShownFrame, read_frames
from art.data.registry import open_dataset
from art.engine.evaluate import evaluate_checkpoint
from art.prediction import find_sources
from art.hub import push_to_hub
from art.visualize import write_report
import art, art.engine, sys
assert ARTModel is art.ARTModel and load_model is art.load_model
assert sys.modules["art.engine.config"] is sys.modules["art.train.config"]
"""
    assert python("-c", code).returncode == 0


def test_unknown_modules_are_not_found():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in ("art.nothing", "art.engine.nothing"):
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(name)
