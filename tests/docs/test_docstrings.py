"""Every public name has a docstring with an example, the examples run, and the API pages list them."""

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
from art.backbones import base as backbones
from art.data.datasets import base as datasets

ROOT = Path(__file__).parents[2]

#: The API page of each public module.
PAGES = {
    "art_kernels": "art_kernels",
    "art": "art",
    "art.model.losses": "art",
    "art.backbones": "backbones",
    "art.text": "backbones",
    "art.data": "data",
    "art.train.config": "train",
    "art.train.loop": "train",
    "art.eval.evaluate": "eval",
    "art.eval.report": "eval",
    "art.experiments": "experiments",
    "art.experiments.compare": "experiments",
    "art.tools.predict": "tools",
    "art.tools.explain": "tools",
    "art.tools.bank": "tools",
    "art.tools.serve": "tools",
    "art.tools.export": "tools",
    "art.tools.hub": "tools",
    "art.tools.profile": "tools",
}
#: Public names of modules without ``__all__``.
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
#: Public names without an example, and the reason.
WITHOUT_EXAMPLE = {
    **dict.fromkeys(
        ("DataConfig", "OptimConfig", "ParallelConfig", "CheckpointConfig", "LogConfig", "Config", "ConfigError"),
        "keys of the configuration: see the example of `load_config`",
    ),
    **dict.fromkeys(
        ("ClipViT", "EfficientNetLite0", "TimmViT", "TransformersImage", "TransformersVideo"),
        "requires a library whose import takes seconds: tests/model",
    ),
    "UniFormerV2": "has at least 115 million parameters: tests/model",
    "Backbone": "abstract: docs/how_to_add.md has a complete example, which runs",
    "Query": "the result of `VideoClassifier.map_queries`: tests/tools/explain",
    "explain_to_directory": "the command `art explain`",
    "write_bank_analysis": "the command `art bank`",
    **dict.fromkeys(
        ("serve", "ServeSettings", "RequestOptions", "Limits", "Refused"), "the command `art serve`: tests/tools/serve"
    ),
    "TrainResult": "returned by `train`, in whose example it is",
    "compare": "trains several models: tests/experiments",
    "embed": "requires the extra [embed]",
    "export_checkpoint": "the command `art export`",
    "read_facts": "reads a file written by `export_checkpoint`",
    **dict.fromkeys(("push_to_hub", "download"), "requires a server: tests/tools/test_hub.py has one"),
    **dict.fromkeys(
        ("profile", "as_table", "model_maker", "count_stages", "StageCount", "measure_stages", "StageMeasure"),
        "takes seconds: tests/tools/test_profile.py",
    ),
    **dict.fromkeys(("ablate", "Plan"), "trains many models: tests/experiments"),
    **dict.fromkeys(
        (
            "Localization", "measure_localization", "PairExamples", "collect_pairs", "SampleClip", "collect_samples",
            "comparison_figure", "training_curves", "write_report",
        ),
        "requires the results of a training or an evaluation: tests/eval",
    ),
}  # fmt: skip


def public_names(module: str) -> tuple[str, ...]:
    return OF_MODULES_WITHOUT_ALL.get(module) or tuple(importlib.import_module(module).__all__)


PUBLIC = [(module, name) for module in PAGES for name in public_names(module)]


def is_documented(value: object) -> bool:
    """Return whether a value has a docstring: classes and functions, not constants."""
    return inspect.isclass(value) or inspect.isroutine(value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with the files of the examples: ``clip.mp4``, ``data/mine``, ``runs/motion`` with a small model."""
    directory = tmp_path_factory.mktemp("examples")
    for path in ("clip", *(f"data/mine/{s}/{c}/1" for s in ("train", "test") for c in ("run", "walk"))):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        write_clip(directory / f"{path}.mp4")
    torch.manual_seed(0)
    model = ARTModel(
        ["run", "walk"], num_frames=2, backbone_options={"width": 8}, latent_dim=32, feedforward_dim=32,
        enhancement_layers=1, activation_layers=1, semantics=torch.randn(16, 2, 256),
    )  # fmt: skip
    model.save_pretrained(directory / "runs/motion/checkpoints/last")
    return directory


def write_clip(path: Path) -> None:
    """Write one second of a bright square that moves to the right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(10):
            image = np.full((64, 64, 3), 40, dtype=np.uint8)
            image[24:40, 4 * i : 4 * i + 16] = 220
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def unregister_examples():
    """Remove what an example registers; built-in entries stay."""
    yield
    for known, module_of in (
        (backbones._REGISTRY, lambda value: value),
        (datasets._entries, lambda value: value.opener),
    ):
        for name in [name for name, value in known.items() if module_of(value).__module__ == "examples"]:
            del known[name]


@pytest.mark.parametrize("module", PAGES)
@pytest.mark.usefixtures("unregister_examples")
def test_examples_run(module, world, monkeypatch):
    monkeypatch.chdir(world)
    finder, output = doctest.DocTestFinder(), []
    runner = doctest.DocTestRunner(verbose=False)
    for name in public_names(module):
        value = getattr(importlib.import_module(module), name)
        if not is_documented(value):
            continue
        for test in finder.find(value, name, globs={"__name__": "examples"}):
            torch.manual_seed(0)
            runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_every_public_name_has_an_example():
    names = {name for _, name in PUBLIC}
    assert names >= set(WITHOUT_EXAMPLE), "an exception that is not a public name"
    for module, name in PUBLIC:
        value = getattr(importlib.import_module(module), name)
        if not is_documented(value):
            continue
        has = any(test.examples for test in doctest.DocTestFinder().find(value, name, globs={}))
        assert inspect.getdoc(value), f"{module}.{name} has no docstring"
        assert has != (name in WITHOUT_EXAMPLE), f"{module}.{name}: add an example, or a reason to WITHOUT_EXAMPLE"


def test_every_public_name_is_on_an_api_page():
    pages = {page: (ROOT / "docs/api" / f"{page}.md").read_text().split() for page in set(PAGES.values())}
    listed = {path.rpartition(".")[2] for paths in pages.values() for path in paths if "." in path}
    for module, name in PUBLIC:
        assert name in listed, f"{module}.{name} is missing on docs/api/{PAGES[module]}.md"
