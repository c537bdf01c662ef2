"""What every decoder gives, and which one a configuration asks for."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxtyping import UInt8
from torch import Tensor

_log = logging.getLogger(__name__)

#: What ``data.decoder`` may be.
DECODERS = ("pyav", "torchcodec", "auto")


@dataclass(frozen=True)
class StoredClip:
    """A clip that is in memory, as it came out of an archive.

    Attributes:
        name: what it is called in errors.
        files: the content of its one video file, or of its frames, by their names.
    """

    name: str
    files: Mapping[str, bytes]


class FrameSpan(Protocol):
    """The frames that a video shows in some time: found, and not decoded before they are asked for."""

    @property
    def count(self) -> int:
        """How many frames there are, at least one."""
        ...

    @property
    def times(self) -> Sequence[float]:
        """When each is shown, ascending, in seconds since the first frame of the video.

        Raises:
            art.data.decoding.packets.Unreadable: nothing tells.
        """
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame as it is stored, before it is turned upright."""
        ...

    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """The frames at some positions, 0 up to ``count``, in any order; one that is repeated is decoded once.

        Args:
            positions: at least one.
            short_side: pixels of the shorter side, to which frames are scaled; None leaves them as they are.

        Returns:
            RGB, upright.

        Raises:
            art.data.decoding.packets.Unreadable: one of them cannot be decoded.
        """
        ...


class Decoder(Protocol):
    """Opens a video, a file or the content of one, and finds the frames from ``start`` (included) to ``end``
    (excluded), seconds since the first."""

    def __call__(self, file: Path | bytes, start: float | None, end: float | None) -> AbstractContextManager[FrameSpan]:
        """A context in which the frames can be read.

        Raises:
            art.data.decoding.packets.Unreadable: there is none, or the file is damaged.
            OSError: the file cannot be opened.
        """
        ...


@functools.cache
def find_decoder(name: str) -> Decoder:
    """The decoder of video files that ``data.decoder`` names.

    ``"pyav"`` is there with every installation. ``"torchcodec"`` needs that library and the FFmpeg that it looks for.
    ``"auto"`` is torchcodec where that decodes a probe, and PyAV elsewhere; it logs which, and why. Which frames a clip
    holds is the same with both; their colours may differ by rounding, so that only the first two make a run that can be
    repeated on another machine.

    Raises:
        ValueError: an unknown name.
        ImportError: torchcodec was asked for and cannot be imported, or does not decode a probe.
    """
    from art.data.decoding import pyav_decoder

    if name == "pyav":
        return pyav_decoder.open_span
    if name not in DECODERS:
        raise ValueError(f"decoder {name!r} is unknown, expected one of {', '.join(DECODERS)}")
    from art.data.decoding import torchcodec_decoder

    problem = torchcodec_decoder.probe()
    if problem is None:
        if name == "auto":
            _log.info("data.decoder=auto: videos are decoded with torchcodec")
        return torchcodec_decoder.open_span
    if name == "auto":
        _log.warning("data.decoder=auto: videos are decoded with PyAV, because torchcodec %s", problem)
        return pyav_decoder.open_span
    raise ImportError(
        f"data.decoder=torchcodec: torchcodec {problem}. Install a torchcodec made for this PyTorch (pip install "
        "'art-kernels[torchcodec]') and FFmpeg's shared libraries, or use data.decoder=pyav"
    )


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width of a frame whose shorter side is brought to ``short_side`` pixels, its aspect ratio kept.

    Raises:
        ValueError: ``short_side`` is below 1.
    """
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, got {short_side}")
    factor = short_side / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))
