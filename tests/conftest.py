"""Shared fixtures. Without a GPU, kernels run in Triton's interpreter, which must be enabled before they are imported.

Module-level imports are limited to torch, NumPy, pytest and the standard library: GPU machines may lack the others.
"""

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
    """Writes a video of a bright square that moves right, moves left, or does not move."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(FRAMES):
            image = np.full((SIZE, SIZE, 3), 30, dtype=np.uint8)
            left = (4 * i, SIZE - 8 - 4 * i, 12)[label]
            image[4 * row : 4 * row + 8, left : left + 8] = 230
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="session", name="write_clip")
def _write_clip():
    return write_clip


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Root of a dataset for the "csv" reader: nine training clips, six test clips."""
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
    """``configured(output, *overrides)`` returns the configuration of a run that takes a fraction of a second."""

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
    """Directory with an uninterrupted run of six steps of each kind: "backbone" and "art"."""
    from art.train.loop import train

    root = tmp_path_factory.mktemp("unbroken")
    for kind in ("backbone", "art"):
        train(configured(root / kind, f"kind={kind}"))
    return root


@pytest.fixture
def in_step(monkeypatch):
    """``in_step(step, action)`` calls ``action(trainer)`` once, in that training step."""
    from art.train import loop

    def arrange(step, action):
        original = loop._Trainer._step

        def patched(self, batch):
            if self.state.position.step + 1 == step:
                monkeypatch.undo()
                action(self)
            return original(self, batch)

        monkeypatch.setattr(loop._Trainer, "_step", patched)

    return arrange


def _recorded(directory, event):
    from art.train.checkpoint import read_history

    lines = [line for line in read_history(directory / "metrics.jsonl") if line["event"] == event]
    measured = ("seconds", "clips_per_second", "memory")
    return [{k: value for k, value in line.items() if not any(name in k for name in measured)} for line in lines]


@pytest.fixture(scope="session")
def recorded():
    """``recorded(directory, event)`` returns the log lines of one event without times and memory."""
    return _recorded


@pytest.fixture(scope="session")
def assert_same_run():
    """``assert_same_run(one, other)``: every loss, accuracy and weight is bitwise equal."""
    from art.model.loading import load_model

    def check(one, other):
        for event in ("step", "epoch"):
            assert _recorded(one, event) == _recorded(other, event)
        a, b = (load_model(directory / "checkpoints" / "last").state_dict() for directory in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)

    return check
