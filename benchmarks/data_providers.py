"""Who reads frames out of a video file: art, and what a user would pick instead. Each in one thread."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

#: A file, the numbers of the frames, and height and width of the result (None: as they are) to what the library gives.
Read = Callable[[str, Sequence[int], "tuple[int, int] | None"], Any]

OURS, OURS_TORCHCODEC = "art", "art, decoder=torchcodec"
TORCHCODEC, DECORD, OPENCV = "torchcodec", "decord", "opencv"
#: By provider, its functions, of which the fastest counts.
PROVIDERS: dict[str, tuple[str, ...]] = {
    TORCHCODEC: ("exact", "approximate"),
    DECORD: ("get_batch",),
    OPENCV: ("in order", "seeking"),
    OURS: ("read_chosen",),
    OURS_TORCHCODEC: ("read_chosen",),
}
_MODULES = {TORCHCODEC: "torchcodec.decoders", DECORD: "decord", OPENCV: "cv2"}
_PACKAGES = {"av": "av", TORCHCODEC: "torchcodec", DECORD: "decord", OPENCV: "opencv-python-headless"}


def refusal(provider: str) -> str | None:
    """Why a provider is left out, or None: its library must import and, torchcodec, decode a probe."""
    if provider in (TORCHCODEC, OURS_TORCHCODEC):
        from art.data.decoding.torchcodec import probe

        problem = probe()
        return None if problem is None else f"torchcodec {problem}"
    if provider == OURS:
        return None
    try:
        importlib.import_module(_MODULES[provider])
    except Exception as error:
        return f"cannot be imported ({type(error).__name__}: {str(error)[:200]}): pip install {_PACKAGES[provider]}"
    return None


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for name, package in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def build(provider: str, function: str) -> Read:
    """A function of a provider that can be had here (see `refusal`)."""
    if provider in (OURS, OURS_TORCHCODEC):
        return _art("pyav" if provider == OURS else "torchcodec")
    module = importlib.import_module(_MODULES[provider])
    return {TORCHCODEC: _torchcodec, DECORD: _decord, OPENCV: _opencv}[provider](module, function)


def as_frames(result: Any) -> np.ndarray:
    """[n, h, w, 3] of whatever a provider gives."""
    frames = result.numpy() if isinstance(result, torch.Tensor) else np.asarray(result)
    return frames.transpose(0, 2, 3, 1) if frames.shape[1] == 3 else frames


def _art(decoder: str) -> Read:
    from art.data.decoding.video import read_chosen

    def read(path: str, indices: Sequence[int], size: tuple[int, int] | None) -> Any:
        return read_chosen(path, lambda _: indices, short_side=None if size is None else min(size), decoder=decoder)

    return read


def _torchcodec(module: Any, function: str) -> Read:
    def read(path: str, indices: Sequence[int], size: tuple[int, int] | None) -> Any:
        decoder = module.VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=function)
        frames = decoder.get_frames_at(list(indices)).data
        return frames if size is None else F.interpolate(frames, size, mode="bilinear", antialias=True)

    return read


def _decord(module: Any, function: str) -> Read:
    def read(path: str, indices: Sequence[int], size: tuple[int, int] | None) -> Any:
        height, width = size or (-1, -1)
        reader = module.VideoReader(path, ctx=module.cpu(0), width=width, height=height, num_threads=1)
        return reader.get_batch(list(indices)).asnumpy()

    return read


def _opencv(module: Any, function: str) -> Read:
    module.setNumThreads(1)

    def picture(found: Any, size: tuple[int, int] | None) -> np.ndarray:
        if size is not None:
            found = module.resize(found, size[::-1], interpolation=module.INTER_AREA)
        return module.cvtColor(found, module.COLOR_BGR2RGB)

    def read(path: str, indices: Sequence[int], size: tuple[int, int] | None) -> Any:
        capture = module.VideoCapture(path, module.CAP_FFMPEG, [module.CAP_PROP_N_THREADS, 1])
        pictures = []
        for i in range(indices[-1] + 1) if function == "in order" else indices:
            if function == "seeking":
                capture.set(module.CAP_PROP_POS_FRAMES, i)
            capture.grab()
            if i in indices:
                pictures.append(picture(capture.retrieve()[1], size))
        capture.release()
        return np.stack(pictures)

    return read
