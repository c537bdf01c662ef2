"""A video of a moving square, and small models."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from art import ARTModel, BackboneClassifier

NAMES = ["walk", "run " + "and then run on " * 5, "jump", "cartwheel to the right " * 4]
SMALL = {
    "backbone_options": {"width": 8, "depth": [1, 1, 1]},
    "num_frames": 3,
    "latent_dim": 16,
    "num_heads": 2,
    "feedforward_dim": 32,
    "enhancement_layers": 1,
    "activation_layers": 2,
}


@pytest.fixture(scope="session")
def make_video():
    """``make_video(path, …)`` writes a bright square that moves to the right on a dark background."""

    def make(path, count=10, *, width=96, height=64, rate=10, times=None, codec="libx264"):
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1
            for i in range(count):
                image = np.full((height, width, 3), 40, dtype=np.uint8)
                left = round((width - 16) * i / max(1, count - 1))
                image[24:40, left : left + 16] = (220, 180, 60)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = times[i] if times else i, Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture
def clip(make_video, tmp_path):
    return make_video(tmp_path / "square.mp4")


@pytest.fixture(scope="session")
def make_model():
    """``make_model(kind, **options)`` builds a small model with four classes."""

    def make(kind="art", **options):
        torch.manual_seed(0)
        cls = {"art": ARTModel, "backbone": BackboneClassifier}[kind]
        return cls(NAMES, **{**SMALL, **options}).eval()

    return make
