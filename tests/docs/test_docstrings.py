"""Every public name has a docstring with an example, the examples run, and the API reference shows them."""

import doctest
import importlib
import inspect
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from art import ARTModel
from art.backbones import base as interface
from art.data.datasets import base as registry

ROOT = Path(__file__).parents[2]

#: The page of each public module, and its public names where it has no ``__all__`` (with the module that has them).
PAGES = {
    "art_kernels": "art_kernels",
    "art": "art",
    "art.backbones": "backbones",
    "art.text": "text",
    "art.data": "data",
    "art.train.config": "engine",
    "art.train.loop": "engine",
    "art.eval.evaluate": "engine",
    "art.experiments.compare": "engine",
    "art.model.losses": "art",
    "art.tools.predict": "prediction",
    "art.tools.explain": "explain",
    "art.tools.bank": "bank",
    "art.tools.serve": "serving",
    "art.tools.export": "export",
    "art.tools.hub": "hub",
    "art.tools.profile": "profiling",
    "art.experiments": "ablation",
    "art.eval.report": "visualize",
}
OF_MODULES_WITHOUT_ALL = {
    "art.train.config": (
        "Config", "DataConfig", "OptimConfig", "ParallelConfig", "CheckpointConfig", "LogConfig",
        "load_config", "config_from_dict", "to_dict", "save_config", "with_values", "variants", "ConfigError",
    ),
    "art.train.loop": ("train", "TrainResult"),
    "art.eval.evaluate": ("evaluate_checkpoint",),
    "art.experiments.compare": ("compare",),
    "art.model.losses": ("LossTerms",),
}  # fmt: skip
#: Public names without an example, and why.
WITHOUT_EXAMPLE = {
    **dict.fromkeys(
        ("DataConfig", "OptimConfig", "ParallelConfig", "CheckpointConfig", "LogConfig", "Config", "ConfigError"),
        "keys of the configuration: `load_config` shows how they are set, and what a wrong one says",
    ),
    **dict.fromkeys(
        ("ClipViT", "TimmViT", "TransformersVideo"),
        "needs another library, whose import takes seconds: docs/backbones.md, tests/model",
    ),
    "UniFormerV2": "builds 115 million parameters at least: docs/backbones.md, tests/model",
    "Backbone": "an abstract base: docs/how_to_add.md has a whole one, which runs",
    "explain_to_directory": "the command `art explain`, which docs/explain.md runs",
    "write_bank_analysis": "the command `art bank`, likewise",
    **dict.fromkeys(
        ("serve", "ServeSettings", "RequestOptions", "Limits", "Refused"),
        "a page that is served until it is stopped: the command `art serve`, docs/serve.md, tests/serving",
    ),
    "TrainResult": "what `train` gives, in whose example it is",
    "compare": "trains several models: docs/ablations.md, tests/engine/test_engine_compare.py",
    "embed": "needs the extra [embed], which the tests do without: docs/explain.md",
    "export_checkpoint": "the command `art export`, which docs/export.md runs",
    "read_facts": "of a file that `export_checkpoint` wrote: docs/export.md",
    **dict.fromkeys(("push_to_hub", "download"), "talks to the Hub; tests/hub has a server of its own"),
    **dict.fromkeys(
        ("profile", "as_table", "model_maker", "count_stages", "StageCount", "measure_stages", "StageMeasure"),
        "takes seconds: the command `art profile`, tests/profiling",
    ),
    **dict.fromkeys(("ablate", "Plan"), "trains many models: docs/ablations.md, tests/engine"),
    **dict.fromkeys(
        (
            "Localization", "measure_localization", "PairExamples", "collect_pairs", "SampleClip", "collect_samples",
            "comparison_figure", "training_curves", "write_report",
        ),
        "takes what a training or evaluation left behind: `art train` writes the report; tests/visualize",
    ),
}  # fmt: skip


def public_names(module: str) -> tuple[str, ...]:
    return OF_MODULES_WITHOUT_ALL.get(module) or tuple(importlib.import_module(module).__all__)


PUBLIC = [(module, name) for module in PAGES for name in public_names(module)]


def is_documented(value: object) -> bool:
    """Classes and functions have docstrings; constants have a comment."""
    return inspect.isclass(value) or inspect.isroutine(value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the examples name: ``clip.mp4``, ``data/mine`` in class folders, ``runs/motion`` with a small model."""
    folder = tmp_path_factory.mktemp("examples")
    for place in ("clip", *(f"data/mine/{s}/{c}/1" for s in ("train", "test") for c in ("run", "walk"))):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_clip(folder / f"{place}.mp4")
    torch.manual_seed(0)
    model = ARTModel(
        ["run", "walk"], num_frames=2, backbone_options={"width": 8}, latent_dim=32, feedforward_dim=32,
        enhancement_layers=1, activation_layers=1, semantics=torch.randn(16, 2, 256),
    )  # fmt: skip
    model.save_pretrained(folder / "runs/motion/checkpoints/last")
    return folder


def write_clip(path: Path) -> None:
    """A second of a bright square that goes to the right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(10):
            picture = np.full((64, 64, 3), 40, dtype=np.uint8)
            picture[24:40, 4 * i : 4 * i + 16] = 220
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def nothing_is_left_registered():
    """What an example registers is gone after it; what it made a room register stays."""
    yield
    for known, maker in (
        (interface._REGISTRY, lambda value: value),
        (registry._entries, lambda value: value.opener),
    ):
        for name in [name for name, value in known.items() if maker(value).__module__ == "examples"]:
            del known[name]


@pytest.mark.parametrize("module", PAGES)
@pytest.mark.usefixtures("nothing_is_left_registered")
def test_examples_run(module, world, monkeypatch):
    monkeypatch.chdir(world)
    finder, told = doctest.DocTestFinder(), []
    runner = doctest.DocTestRunner(verbose=False)
    for name in public_names(module):
        value = getattr(importlib.import_module(module), name)
        if not is_documented(value):
            continue
        for test in finder.find(value, name, globs={"__name__": "examples"}):
            torch.manual_seed(0)
            runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)


def test_every_public_name_has_an_example():
    names = {name for _, name in PUBLIC}
    assert names >= set(WITHOUT_EXAMPLE), "an exception that is no public name"
    for module, name in PUBLIC:
        value = getattr(importlib.import_module(module), name)
        if not is_documented(value):
            continue
        has = any(test.examples for test in doctest.DocTestFinder().find(value, name, globs={}))
        assert inspect.getdoc(value), f"{module}.{name} has no docstring"
        assert has != (name in WITHOUT_EXAMPLE), f"{module}.{name}: an example, or else a reason in WITHOUT_EXAMPLE"


def test_every_public_name_is_in_the_reference():
    pages = {page: (ROOT / "docs/api" / f"{page}.md").read_text().split() for page in set(PAGES.values())}
    everywhere = {path.rpartition(".")[2] for paths in pages.values() for path in paths if "." in path}
    for module, name in PUBLIC:
        assert name in everywhere, f"{module}.{name} is missing on docs/api/{PAGES[module]}.md"
