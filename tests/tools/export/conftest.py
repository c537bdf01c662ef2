"""A run with an untrained model of every part of ART, and a few videos of its test split."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import nn

from art import ARTModel
from art.data.transforms.sampling import FrameSampling
from art.train.config import load_config, save_config

CLASSES = ("move right", "move left", "stand", "kick")
SMALL = {"latent_dim": 16, "num_heads": 2, "feedforward_dim": 16, "enhancement_layers": 1, "activation_layers": 1}


def write_clip(path: Path, seed: int, frames: int = 9) -> None:
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(frames):
            picture = np.kron(generator.integers(0, 256, (9, 11, 3)), np.ones((16, 16, 1))).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def no_zeros():
    """``no_zeros(model)``: parameters that begin as zeros would hide what they do."""

    def fill(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.02)
        return model.eval()

    return fill


@pytest.fixture(scope="session")
def make_art(no_zeros):
    def make(**options) -> ARTModel:
        torch.manual_seed(0)
        backbone = {"width": 4, "depth": [1, 1, 1]}
        return no_zeros(ARTModel(CLASSES, num_frames=3, backbone_options=backbone, **{**SMALL, **options}))

    return make


@pytest.fixture(scope="session")
def run(make_art, tmp_path_factory) -> Path:
    """The folder of the run; its test split has three clips, ``0.mp4`` to ``2.mp4`` in ``data``."""
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data"
    data.mkdir()
    (data / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for seed in range(3):
        write_clip(data / f"{seed}.mp4", seed)
    (data / "test.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{i}\n" for i in range(3)))
    save_config(load_config(None, ["data.name=csv", f"data.root={data}"]), folder / "config.yaml")
    model = make_art(test_crop=0.9)
    model.sampling = FrameSampling("dense", 2)
    model.save_pretrained(folder / "checkpoints" / "last")
    return folder


@pytest.fixture
def clips():
    return torch.randint(0, 256, (3, 3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
