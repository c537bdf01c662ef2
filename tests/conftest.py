"""Without a GPU the Triton kernels run in Triton's interpreter, which is to be asked for before they are imported."""

import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from art.train.config import Config

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

CLASSES = ("move right", "move left", "stand")
SIZE, FRAMES = 32, 6
PER_CLASS = {"train": 3, "test": 2}


def write_clip(path: Path, label: int, row: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(FRAMES):
            picture = np.full((SIZE, SIZE, 3), 30, dtype=np.uint8)
            left = (4 * i, SIZE - 8 - 4 * i, 12)[label]
            picture[4 * row : 4 * row + 8, left : left + 8] = 230
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="session", name="write_clip")
def _write_clip():
    return write_clip


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """The root of the data set, in the form of the "csv" reader: nine clips to train on, six to test."""
    root = tmp_path_factory.mktemp("clips")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, count in PER_CLASS.items():
        lines = ["path,label"]
        for label in range(len(CLASSES)):
            for i in range(count):
                name = f"{split}_{label}_{i}.mp4"
                write_clip(root / name, label, row=i + (split == "test"))
                lines.append(f"{name},{label}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def configured(clips):
    """Makes configurations of runs that take a fraction of a second: ``configured(output, *overrides)``."""

    def small(output: Path) -> list[str]:
        return [
            f"output={output}",
            "kind=backbone",
            "device=cpu",
            "report=false",
            "log_every=1",
            "data.name=csv",
            f"data.root={clips}",
            "data.workers=0",
            "model.num_frames=3",
            "model.backbone_options={width: 4, depth: [1, 1, 1]}",
            "model.latent_dim=16",
            "model.num_heads=2",
            "model.feedforward_dim=16",
            "model.enhancement_layers=1",
            "model.activation_layers=1",
            "optim.epochs=3",
            "optim.batch_size=4",
        ]

    def make(output: Path, *overrides: str) -> "Config":
        from art.train.config import load_config

        return load_config(None, [*small(output), *overrides])

    make.small = small
    return make


@pytest.fixture(scope="session")
def unbroken(configured, tmp_path_factory):
    """A folder with one run of each kind, "backbone" and "art", from start to end without a stop: six steps."""
    from art.train.loop import train

    root = tmp_path_factory.mktemp("unbroken")
    for kind in ("backbone", "art"):
        train(configured(root / kind, f"kind={kind}"))
    return root


@pytest.fixture
def in_step(monkeypatch):
    """``in_step(step, action)`` calls ``action(training)`` in the middle of that training step, until undone."""

    from art.train import loop as training_module

    def arrange(step, action):
        original = training_module._Training._step

        def stepping(self, batch):
            if self.state.position.step + 1 == step:
                monkeypatch.undo()
                action(self)
            return original(self, batch)

        monkeypatch.setattr(training_module._Training, "_step", stepping)

    return arrange


def _recorded(folder, event):
    from art.train.run_dir import read_history

    lines = [line for line in read_history(folder / "metrics.jsonl") if line["event"] == event]
    measured = ("seconds", "clips_per_second", "memory")
    return [{k: value for k, value in line.items() if not any(name in k for name in measured)} for line in lines]


@pytest.fixture(scope="session")
def recorded():
    """``recorded(folder, event)``: the lines of one kind without times and memory, exactly as they were written."""
    return _recorded


@pytest.fixture(scope="session")
def assert_same_run():
    """``assert_same_run(one, other)``: every loss, every accuracy and every weight is the same, bit for bit."""

    from art.model.pretrained import load_model

    def check(one, other):
        for event in ("step", "epoch"):
            assert _recorded(one, event) == _recorded(other, event)
        a, b = (load_model(folder / "checkpoints" / "last").state_dict() for folder in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)

    return check
